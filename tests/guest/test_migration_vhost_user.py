"""A guest moves between two QEMU processes while it uses a disk and a network carried by vhost-user.

Each side has a back end of its own, both have the same image open, and the destination's takes the image's
lock when the rings start there. What devices write to the guest's memory meanwhile must come along: the guest
keeps the pages that it read into and compares them at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from iolane.backends.lock import ImageLock
from iolane.carriers.vhost_user import VhostUserServer
from iolane.carriers.vhost_user.choice import PLANES
from iolane.carriers.vhost_user.session import Session
from iolane.carriers.vhost_user.vring import Start
from iolane.devices.virtio.block import Block
from iolane.devices.virtio.net import BareNet
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.migration import Migration
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError
from iolane.model.workers import Workers
from iolane.testing.host_namespace import NetworkNamespace
from iolane.uapi.virtio import DeviceType

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

HOST, GUEST, PORT = "10.74.0.1", "10.74.0.2", 7000
CHUNK = 16 << 10
SIZE = 16 << 20
"""As many blocks as the guest's load writes."""
MODULES = ("virtio_pci", "virtio_blk", "virtio_net")
RIGHT = "failed 0, wrong when read 0, wrong pages 0, wrong blocks 0"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's load, compiled."""
    program = tmp_path_factory.mktemp("load") / "load"
    source = Path(__file__).with_name("load.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-s", "-o", program, source], check=True)
    return program


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as name:
        yield Path(name)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@contextlib.contextmanager
def served(image: Path, path: Path, plane: str) -> Iterator[Block]:
    """The image behind a back end of its own."""
    block = Block(image)
    with Workers() as workers, contextlib.closing(block):
        with VhostUserServer(block, path, workers=workers, plane=PLANES[plane]):
            yield block


def config(load: Path, *devices: VhostUserDevice) -> MachineConfig:
    content = InitramfsContent(modules=MODULES, files={"bin/load": load})
    return MachineConfig(name="source", memory_mib=192, devices=devices, content=content)


def at_other_end(config: MachineConfig, *devices: VhostUserDevice) -> MachineConfig:
    return replace(config, name="destination", devices=devices, incoming=True)


def disk(path: Path) -> VhostUserDevice:
    return VhostUserDevice("disk", path, DeviceType.BLOCK)


def network(path: Path) -> VhostUserDevice:
    return VhostUserDevice("net", path, DeviceType.NET, mac="52:54:00:00:00:0a")


def start_load(machine: QemuMachine, what: str) -> None:
    machine.check(f"setsid load {what} >/dev/null 2>&1 </dev/null &")


def work_on(machine: QemuMachine, what: str, amount: int) -> None:
    """Until the load has done this much more."""
    file = f"/tmp/{what}.count"
    machine.check(
        f"until [ -e {file} ]; do sleep 0.02; done; before=$(cat {file});"
        f" until [ $(($(cat {file}) - before)) -ge {amount} ]; do sleep 0.02; done",
        timeout=60,
    )


def verdict(machine: QemuMachine, what: str) -> str:
    file = f"/tmp/{what}.verdict"
    return machine.check(f"touch /tmp/stop; until [ -e {file} ]; do sleep 0.02; done; cat {file}", timeout=60)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def move(source: QemuMachine, destination: QemuMachine) -> Migration:
    moved = source.migrate_to(destination)
    assert not source.running
    assert moved.passes >= 2, "memory changed while it went over"
    return moved


@pytest.mark.slow
@pytest.mark.parametrize("plane", sorted(PLANES))
def test_the_guest_notices_when_nothing_is_logged(
    image: Path, load: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, plane: str
) -> None:
    """A mutant of the carrier: it proves that the test below tests the log."""
    prepare = Session._prepare
    monkeypatch.setattr(Session, "apply_log", lambda self: None)
    monkeypatch.setattr(Session, "_prepare", lambda self, vring: without_log(prepare(self, vring)))
    first, second = folder / "a", folder / "b"
    with served(image, first, plane), served(image, second, plane):
        wanted = config(load, disk(first))
        with QemuMachine(wanted) as source, QemuMachine(at_other_end(wanted, disk(second))) as destination:
            start_load(source, "disk /dev/vda")
            work_on(source, "disk", 2000)
            move(source, destination)
            found = verdict(destination, "disk")
            assert re.search(r"wrong pages [1-9]", found), found


def without_log(start: Start | None) -> Start | None:
    return None if start is None else replace(start, log=None)


@pytest.mark.parametrize(("from_plane", "to_plane"), [("compiled", "python"), ("python", "compiled")])
def test_a_guest_moves_under_block_load(
    image: Path, load: Path, folder: Path, from_plane: str, to_plane: str
) -> None:
    """From one data plane to the other, so that both log, and both take up what the other left."""
    first, second = folder / "a", folder / "b"
    with served(image, first, from_plane) as here, served(image, second, to_plane) as there:
        wanted = config(load, disk(first))
        with QemuMachine(wanted) as source, QemuMachine(at_other_end(wanted, disk(second))) as destination:
            start_load(source, "disk /dev/vda")
            work_on(source, "disk", 2000)
            assert here.queues[0].running
            assert not there.queues[0].running
            move(source, destination)
            work_on(destination, "disk", 2000)
            assert there.queues[0].running
            assert not here.queues[0].running
            with pytest.raises(IolaneError, match="in use by another program"):
                ImageLock(image, exclusive=True).acquire()
            assert verdict(destination, "disk").strip() == RIGHT
            seen = destination.check("echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda", timeout=60)
            assert re.findall(r"[0-9a-f]{64}", seen) == [digest(image.read_bytes())]
            assert here.error_count == there.error_count == 0


@pytest.fixture
def bridged() -> Iterator[tuple[BareNet, BareNet]]:
    """Two network devices, each with a tap, on one bridge that this thread's namespace has an address on."""
    try:
        namespace = NetworkNamespace()
        namespace.__enter__()
    except IolaneError as error:
        pytest.skip(f"MIGRATION WITH A NETWORK IS NOT TESTED: {error}")
    with contextlib.ExitStack() as stack:
        stack.push(namespace.__exit__)
        taps = [stack.enter_context(contextlib.closing(BareNet(name))) for name in ("tap-a", "tap-b")]
        with IPRoute() as route:
            route.link("add", ifname="bridge", kind="bridge")
            [bridge] = route.link_lookup(ifname="bridge")
            for name in ("tap-a", "tap-b"):
                [index] = route.link_lookup(ifname=name)
                route.link("set", index=index, master=bridge)
        namespace.set_up("bridge", address=HOST)
        yield taps[0], taps[1]


class Echoed:
    """The host's side of the guest's echo: sends numbers without end, and compares what comes back."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, PORT))
        self._stop = threading.Event()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._accepted = threading.Event()
        self.sent = self.received = 0
        self.problem = ""
        self._sender.start()
        self._receiver.start()

    def finish(self) -> None:
        """Send no more, and wait for the rest."""
        self._stop.set()
        self._sender.join(60)
        self._receiver.join(60)
        self._connection.close()
        self._listener.close()

    def _send(self) -> None:
        self._connection, _ = self._listener.accept()
        self._accepted.set()
        while not self._stop.is_set():
            self._connection.sendall(numbers(self.sent, CHUNK))
            self.sent += CHUNK
        self._connection.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        self._accepted.wait(60)
        with self._connection.makefile("rb") as stream:
            while data := stream.read(CHUNK):
                if data != numbers(self.received, len(data)):
                    self.problem = self.problem or f"other bytes than were sent, near {self.received}"
                self.received += len(data)


def numbers(offset: int, length: int) -> bytes:
    return struct.pack(f"<{length // 8}Q", *range(offset // 8, (offset + length) // 8))


@pytest.mark.parametrize("plane", ["compiled", pytest.param("python", marks=pytest.mark.slow)])
def test_a_guest_moves_under_block_and_net_load(
    image: Path, load: Path, folder: Path, bridged: tuple[BareNet, BareNet], plane: str
) -> None:
    """A TCP connection goes on, and every byte of it comes back."""
    sockets = {name: folder / name for name in ("disk-a", "disk-b", "net-a", "net-b")}
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(served(image, sockets["disk-a"], plane))
        there = stack.enter_context(served(image, sockets["disk-b"], plane))
        for net, name in zip(bridged, ("net-a", "net-b"), strict=True):
            workers = stack.enter_context(Workers())
            stack.enter_context(VhostUserServer(net, sockets[name], workers=workers, plane=PLANES[plane]))
        wanted = config(load, disk(sockets["disk-a"]), network(sockets["net-a"]))
        other = at_other_end(wanted, disk(sockets["disk-b"]), network(sockets["net-b"]))
        source = stack.enter_context(QemuMachine(wanted))
        destination = stack.enter_context(QemuMachine(other))
        source.check(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
        echoed = Echoed()
        start_load(source, "disk /dev/vda")
        start_load(source, f"echo {HOST} {PORT}")
        work_on(source, "disk", 1000)
        work_on(source, "echo", 1 << 20)
        moved = move(source, destination)
        work_on(destination, "disk", 1000)
        work_on(destination, "echo", 1 << 20)
        assert verdict(destination, "disk").strip() == RIGHT, moved
        echoed.finish()
        assert verdict(destination, "echo") == f"{echoed.sent} bytes\n"
        assert (echoed.problem, echoed.received) == ("", echoed.sent)
        seen = destination.check("echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda", timeout=60)
        assert re.findall(r"[0-9a-f]{64}", seen) == [digest(image.read_bytes())]
        assert not any(queue.running for device in (here, bridged[0]) for queue in device.queues)
        assert all(queue.running for device in (there, bridged[1]) for queue in device.queues)
        assert [device.error_count for device in (here, there, *bridged)] == [0, 0, 0, 0]
