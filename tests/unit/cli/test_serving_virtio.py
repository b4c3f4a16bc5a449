"""`iolane serve` by vhost-user: ready lines, what `iolane devices` shows, what such a device refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from iolane.backends.lock import ImageLock
from iolane.carriers.vhost_user import VhostUserClient
from iolane.devices.registry import create_virtio
from iolane.devices.specification import parse
from tests.unit.cli.support import iolane, refused, said, serving, started


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    return path


def ready_of(*arguments: str, env: dict[str, str]) -> dict[str, object]:
    with started("serve", *arguments, "--json", env=env) as process:
        ready = json.loads(said(process))
        process.terminate()
        assert process.wait(20) == 0
    assert isinstance(ready, dict)
    return ready


def test_ready_lines_of_a_disk(image: Path, env: dict[str, str], runtime: Path) -> None:
    path = runtime / "disk, & co's.sock"
    ready = ready_of(f"block,image={image},queues=2,queue_size=64", "--socket", str(path), env=env)
    assert (ready["name"], ready["type"], ready["carrier"]) == ("block0", "Block", "vhost-user")
    chardev, device = ready["qemu"][-3:][0], json.loads(ready["qemu"][-1])  # type: ignore[index]
    assert chardev == f"socket,id=block0.socket,path={str(path).replace(',', ',,')},reconnect-ms=500"
    assert device == {
        "driver": "vhost-user-blk-pci",
        "id": "block0",
        "chardev": "block0.socket",
        "num-queues": 2,
        "queue-size": 64,
    }
    domain = ElementTree.fromstring(str(ready["libvirt"]))
    source = domain.find("devices/disk[@type='vhostuser']/source[@type='unix']")
    assert source is not None
    assert source.get("path") == str(path)
    assert domain.find("memoryBacking/access[@mode='shared']") is not None
    assert ready["uml"] == f"virtio_uml.device={path}:2"


def test_ready_lines_of_others(image: Path, env: dict[str, str], runtime: Path) -> None:
    listening = f"net,peer=listen:{runtime}/peer,mac=02:00:00:00:00:01"
    ready = ready_of(listening, "--socket", str(runtime / "s"), env=env)
    assert json.loads(ready["qemu"][-1])["mac"] == "02:00:00:00:00:01"  # type: ignore[index]
    address = ElementTree.fromstring(str(ready["libvirt"])).find("devices/interface[@type='vhostuser']/mac")
    assert address is not None
    assert address.get("address") == "02:00:00:00:00:01"
    ready = ready_of("console", "--socket", str(runtime / "s"), "--carrier", "vhost-user", env=env)
    assert (ready["qemu"], ready["libvirt"]) == ([], "")
    ready = ready_of(
        f"block,image={image}", "--socket", str(runtime / "s"), "--carrier", "vfio-user", env=env
    )
    assert (ready["carrier"], ready["type"], ready["uml"]) == ("vfio-user", "BlockFunction", "")


def test_the_text_says_the_same(image: Path, env: dict[str, str], runtime: Path) -> None:
    with started("serve", f"block,image={image}", "--socket", str(runtime / "s"), env=env) as process:
        text = ""
        while "Ctrl-C ends it" not in text:
            text += said(process)
    assert text.startswith(f"block0 (Block) is served by vhost-user on {runtime}/s\n")
    for words in ("vhost-user-blk-pci", '<disk type="vhostuser"', f"virtio_uml.device={runtime}/s:2"):
        assert words in text


def test_devices_shows_each_queue(image: Path, env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s"
    device = f"block,image={image},queues=2,id=disk"
    with serving(device, "--socket", str(path), env=env) as process:
        with VhostUserClient(path) as client:
            client.set_owner()
            client.set_features(client.get_features())
            [server] = json.loads(iolane("devices", "--json", env=env).stdout)
            assert server["pid"] == process.pid
            [shown] = server["devices"]
            assert (shown["name"], shown["type"], shown["connected"]) == ("disk", "Block", True)
            wanted = {"traps", "kicks", "requests", "interrupts", "interrupts_suppressed", "slow", "rejected"}
            assert wanted <= shown["counters"].keys()
            assert {f"requests{queue}.kicks" for queue in (0, 1)} <= shown["statistics"].keys()
            line = refused(iolane("reset", "disk", env=env))
            assert line.startswith(
                "disk is not reset: with vhost-user only the front end resets a device (res"
            )
        line = refused(iolane("trace", "disk", env=env))
        assert line.startswith(
            "disk can't be traced: carried by vhost-user it has no registers here (its que"
        )
        assert "disk  Block, waiting for a client" in iolane("devices", env=env).stdout
        assert iolane("reset", "disk", env=env).returncode == 0, "nobody is there whom it could disturb"


def test_an_image_in_use_is_told_of(image: Path, env: dict[str, str], runtime: Path) -> None:
    """It is served all the same: a guest may be about to move here."""
    lock = ImageLock(image, exclusive=True)
    lock.acquire()
    try:
        assert "in use by another" in refused(iolane("run", "--disk", str(image), "--", "ls", env=env))
        with started("serve", f"block,image={image}", "--socket", str(runtime / "s"), env=env) as process:
            assert "is served" in said(process)
            process.terminate()
            assert "for now block0: " in process.communicate(timeout=20)[1]
    finally:
        lock.release()


def test_two_disks_of_one_image(image: Path, env: dict[str, str]) -> None:
    done = iolane("run", "--disk", str(image), "--disk", str(image), "--", "ls", env=env)
    assert refused(done) == f"block0 and block1 both write to {image}"


def test_a_virtio_device_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "echo.py"
    file.write_text(
        "from iolane.model.virtio import VirtioDevice\n"
        "from iolane.uapi.virtio import DeviceType\n"
        "class Echo(VirtioDevice):\n"
        "    device_type = DeviceType.RNG\n"
        "    def __init__(self, size: int = 64):\n"
        "        super().__init__([size])\n"
    )
    device = create_virtio(parse(f"{file}:Echo,size=32,carrier=vhost-user,id=mine"))
    assert (device.name, device.queues[0].max_size) == ("mine", 32)
    device.close()
