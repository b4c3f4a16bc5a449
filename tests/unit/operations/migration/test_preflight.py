"""What a destination refuses before anything is made. The offer is a stranger's word."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iolane.backends.lock import ImageLock
from iolane.errors import IolaneError
from iolane.operations.migration.images import image_findings, offered_image
from iolane.operations.migration.messages import Hello
from iolane.operations.migration.offer import Offer, OfferedDevice, OfferedKernel
from iolane.operations.migration.preflight import Welcome, description_of, findings
from iolane.operations.migration.uri import parse_place
from iolane.operations.receive import ReceiveRequest, welcome

ANYWHERE = Welcome(folders=None)


def offer(*devices: OfferedDevice, **changed: object) -> Offer:
    offer = Offer(
        name="web",
        engine="11.1.3",
        accelerator="tcg",
        memory_mib=64,
        cpus=1,
        ports=4,
        kernel=OfferedKernel(flavour="cloud"),
        devices=list(devices),
    )
    return msgspec.structs.replace(offer, **changed)


def problems(offered: Offer, welcome: Welcome = ANYWHERE) -> list[str]:
    found, _ = findings(offered, welcome, "11.1.3", {"tcg"})
    return [str(finding) for finding in found]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    return path


def disk(image: Path, **changed: object) -> OfferedDevice:
    facts = offered_image(image, read_only=False, locked=False)
    device = OfferedDevice(id="disk", text=f"block,image={image},id=disk", port="port2", image=facts)
    return msgspec.structs.replace(device, **changed)


def test_what_can_be_had_is_taken(image: Path) -> None:
    assert problems(offer(disk(image))) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"engine": "10.2.0"}, "QEMU 10.2.0"),
        ({"accelerator": "kvm"}, "KVM"),
        ({"memory_mib": 1 << 24}, "to spare"),
        ({"kernel": OfferedKernel(digest="0" * 64)}, "--kernel FILE"),
        ({"kernel": OfferedKernel(flavour="cloud", initrd="0" * 64)}, "--initrd FILE"),
        ({"kernel": OfferedKernel(flavour="/etc/passwd")}, "no kernel"),
        ({"cpu_flags": ["a_flag_of_tomorrow"]}, "a_flag_of_tomorrow"),
    ],
)
def test_what_this_host_has_not(changed: dict[str, object], words: str) -> None:
    [problem] = problems(offer(**changed))
    assert words in problem


def test_all_reasons_are_told_at_once(image: Path) -> None:
    bad = offer(disk(image, text="block,image=/none.raw"), engine="9.0", memory_mib=1 << 24)
    assert len(problems(bad)) == 3


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text",
    [
        "/tmp/evil.py:Evil",
        "os:system",
        "evil.py:Evil,carrier=vhost-user",
        "net,peer=fd:0",
        "net,peer=unix:/var/run/docker.sock",
        "net,peer=listen:/tmp/x",
        "net,tap=tap0,pcap=/home/me/.profile",
        "block,image=/etc/shadow",
        "block,image=shadow",
        "block,socket=/tmp/x.sock",
        "nvme,image=/tmp/x.raw",
        "no-such-device",
        "=,=",
        "",
    ],
)
def test_a_source_names_neither_code_nor_files_of_its_choice(text: str, tmp_path: Path) -> None:
    """Only below the folders that the operator opened, and only devices that iolane knows."""
    assert problems(offer(OfferedDevice(id="x", text=text)), Welcome(folders=[tmp_path]))


@pytest.mark.hostile
def test_a_folder_is_not_left_by_dots_or_links(tmp_path: Path, image: Path) -> None:
    opened = tmp_path / "opened"
    opened.mkdir()
    (opened / "link.raw").symlink_to(image)
    for path in (opened / ".." / "disk.raw", opened / "link.raw"):
        device = disk(image, text=f"block,image={path}")
        assert "may name no files" in problems(offer(device), Welcome(folders=[opened]))[0]
    assert problems(offer(disk(image)), Welcome(folders=[tmp_path])) == []


def test_the_operator_may_name_anything(image: Path) -> None:
    device = disk(image, text="block,image=/else/where.raw")
    here = Welcome(folders=[], devices={"disk": f"block,image={image}"})
    assert problems(offer(device), here) == []
    description = description_of(offer(device), here, "web2")
    assert description.name == "web2"
    assert [(each.text, each.port) for each in description.placed] == [
        (f"block,image={image},id=disk", "port2")
    ]


def test_an_address_comes_along_also_where_the_network_is_another() -> None:
    net = OfferedDevice(id="net", text="net,tap=tap0", mac="52:54:00:00:00:01")
    here = Welcome(folders=[], devices={"net": "net,tap=tap1"})
    [described] = description_of(offer(net), here, "web").placed
    assert described.text == "net,tap=tap1,mac=52:54:00:00:00:01,id=net"


def test_what_is_named_for_no_device_is_a_mistake() -> None:
    assert "has no such device" in problems(offer(), Welcome(devices={"disc": "block,image=/x"}))[0]


def test_an_image_whose_lock_is_free_is_another_one(image: Path) -> None:
    """The source holds the lock of the one that it means."""
    facts = offered_image(image, read_only=False, locked=True)
    [finding] = image_findings("disk", image, facts)
    assert "is another image here" in finding.problem
    lock = ImageLock(image, exclusive=True)
    lock.acquire()
    assert image_findings("disk", image, facts) == []
    lock.release()


def test_an_image_that_the_guest_does_not_use_is_known_by_its_inode(image: Path, tmp_path: Path) -> None:
    facts = offered_image(image, read_only=False, locked=False)
    assert image_findings("disk", image, facts) == []
    copy = tmp_path / "copy.raw"
    copy.write_bytes(image.read_bytes())
    assert "a copy?" in image_findings("disk", copy, facts)[0].problem
    copy.write_bytes(bytes(512))
    assert "512 bytes here" in image_findings("disk", copy, facts)[0].problem
    assert "no image" in image_findings("disk", tmp_path / "none.raw", facts)[0].problem


@pytest.mark.hostile
@given(
    st.dictionaries(
        st.sampled_from(["protocol", "version", "id", "offer", "dry_run", "x"]), st.text() | st.integers()
    )
)
def test_a_hello_of_any_shape_is_decoded_or_refused(fields: dict[str, object]) -> None:
    line = msgspec.json.encode({"say": "hello", **fields})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(line, type=Hello)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "changed",
    [
        {"name": "../x"},
        {"name": "x" * 64},
        {"memory_mib": 0},
        {"memory_mib": 1 << 40},
        {"cpus": -1},
        {"ports": 1000},
        {"devices": [{"id": "a/b", "text": "net,passt"}]},
        {"devices": [{"id": "a", "text": "x" * 5000}]},
        {"devices": [{"id": f"d{number}", "text": "net,passt"} for number in range(65)]},
        {"later": [{"id": "../../x"}]},
    ],
)
def test_fields_out_of_bounds_are_refused_where_they_enter(changed: dict[str, object]) -> None:
    fields = {**msgspec.to_builtins(offer()), **changed}
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(fields), type=Offer)


@pytest.mark.parametrize(
    "text",
    ["", "unix:", "tcp:", "tcp:host", "tcp:host:0", "tcp:host:65536", "tcp:::1:1", "http://x", "tcp:h:1x"],
)
def test_what_names_no_place(text: str) -> None:
    with pytest.raises(IolaneError, match="names no place"):
        parse_place(text)


@pytest.mark.parametrize("text", ["unix:/run/x.sock", "tcp:host:4444", "tcp:[::1]:4444", "tcp:10.0.0.1:1"])
def test_places(text: str) -> None:
    assert str(parse_place(text)) == text


def test_a_unix_socket_hears_this_user_who_may_name_any_file() -> None:
    assert welcome(ReceiveRequest("unix:/x"), parse_place("unix:/x")).folders is None
    assert welcome(ReceiveRequest("tcp:h:1"), parse_place("tcp:h:1")).folders == ()
    chosen = ReceiveRequest("unix:/x", folders=[Path("/srv")])
    assert welcome(chosen, parse_place("unix:/x")).folders == [Path("/srv")]


@pytest.mark.parametrize("text", ["net", "=net", "net=", "a/b=net"])
def test_a_device_that_does_not_say_which(text: str) -> None:
    with pytest.raises(IolaneError, match="does not say which"):
        welcome(ReceiveRequest("unix:/x", devices=[text]), parse_place("unix:/x"))
