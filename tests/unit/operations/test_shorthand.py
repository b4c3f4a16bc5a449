"""`--disk` and `--net` as the devices that they are short for."""

from __future__ import annotations

import pytest

from iolane.devices.registry import carrier_of
from iolane.devices.specification import Carrier, parse
from iolane.errors import IolaneError
from iolane.operations.shorthand import disk_device, net_devices


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("disk.raw", "block,image=disk.raw"),
        ("disk.raw,lane=paravirtual", "block,image=disk.raw"),
        ("disk.raw,lane=emulated", "nvme,image=disk.raw"),
        ("disk.raw,read_only=on,lane=emulated,id=root", "nvme,image=disk.raw,read_only=on,id=root"),
        ("/a=b/disk.raw", "block,image=/a=b/disk.raw"),
        ("a,,b.raw,serial=x,,y", "block,image=a,,b.raw,serial=x,,y"),
    ],
)
def test_disks(text: str, device: str) -> None:
    assert disk_device(text) == device
    assert parse(device).options["image"] == [
        text.split(",lane")[0].split(",r")[0].split(",s")[0].replace(",,", ",")
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "disk '' has no file"),
        (",lane=emulated", "disk ',lane=emulated' has no file"),
        ("lane=emulated", "disk 'lane=emulated' has no file"),
        ("image=disk.raw", "disk 'image=disk.raw' has no file"),
        ("a,lane=", "disk 'a,lane=': an image has no lane ''"),
        ("a,lane", "disk 'a,lane': an image has no lane ''"),
        (
            "a,lane=emulatde",
            "disk 'a,lane=emulatde': an image has no lane 'emulatde' (did you mean emulated?)",
        ),
        ("a,lane=emulated,lane=paravirtual", "disk 'a,lane=emulated,lane=paravirtual': lane is given twice"),
    ],
)
def test_no_disks(text: str, line: str) -> None:
    with pytest.raises(IolaneError) as refusal:
        disk_device(text)
    assert str(refusal.value).startswith(line)


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("none", []),
        ("tap=tap0", ["net,tap=tap0"]),
        ("tap=tap0,queues=2,mac=02:00:00:00:00:01", ["net,tap=tap0,queues=2,mac=02:00:00:00:00:01"]),
        ("passt", ["net,passt=on"]),
        ("passt,forward=8080:80", ["net,passt=on,forward=8080:80"]),
    ],
)
def test_networks(text: str, devices: list[str]) -> None:
    assert net_devices(text) == devices


@pytest.mark.parametrize("text", ["", "tap", "tap=", "none,mtu=1", "user", "tap0", "=", "passt=on"])
def test_no_networks(text: str) -> None:
    with pytest.raises(IolaneError, match=r"^net '"):
        net_devices(text)


@pytest.mark.parametrize(
    ("device", "carrier"),
    [
        ("block,image=a", Carrier.VHOST_USER),
        ("net,passt=on", Carrier.VHOST_USER),
        ("block,image=a,carrier=vfio-user", Carrier.VFIO_USER),
        ("rng", Carrier.VFIO_USER),
        ("rng,carrier=vhost-user", Carrier.VHOST_USER),
        ("nvme,image=a", Carrier.VFIO_USER),
        ("block,socket=/s", Carrier.VHOST_USER),
        ("socket=/s", Carrier.VFIO_USER),
    ],
)
def test_carriers(device: str, carrier: Carrier) -> None:
    assert carrier_of(parse(device)) is carrier
