"""A machine under load that goes from one side to the other of this host, for the tests of migration.

Each side has a tap on one bridge; the disk's image is the same. What the guest does is in load.c.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pyroute2 import IPRoute

from iolane.operations.machine import DeviceDescription, Machine, MachineDescription
from iolane.operations.migration.arriving import ArrivingGuest, GuestMaker
from iolane.operations.migration.move import Moved
from iolane.operations.migration.preflight import Welcome
from iolane.operations.migration.receiver import Receiver
from iolane.operations.migration.source import SourcePhase
from iolane.operations.migration.uri import Place
from iolane.testing.host_namespace import NetworkNamespace

HOST, GUEST, PORT, FETCH_PORT = "10.75.0.1", "10.75.0.2", 7001, 7002
MAC = "52:54:00:00:00:0b"
BLOCK, BLOCKS = 4096, 4096
SIZE = BLOCK * BLOCKS
MEMORY_MIB = 160
CHUNK = 16 << 10
RARP = 0x8035
SIDES = ("a", "b")
RIGHT = "failed 0, wrong when read 0, wrong pages 0, wrong blocks 0"
_WORDS = BLOCK // 8
_MASK = (1 << 64) - 1
_FACTOR = 0x9E37_79B9_7F4A_7C15
_ZEROES = (0,) * _WORDS


def compile_load(folder: Path) -> Path:
    """The guest's load."""
    program = folder / "load"
    source = Path(__file__).with_name("load.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-s", "-o", program, source], check=True)
    return program


class Network:
    """A namespace with a bridge and a tap for each side. A context manager; IolaneError: it needs root."""

    def __init__(self) -> None:
        self._namespace = NetworkNamespace()

    def __enter__(self) -> Self:
        self._namespace.__enter__()
        with IPRoute() as route:
            route.link("add", ifname="bridge", kind="bridge")
            [bridge] = route.link_lookup(ifname="bridge")
            for side in SIDES:
                self._namespace.make_tap(f"tap-{side}")
                [index] = route.link_lookup(ifname=f"tap-{side}")
                route.link("set", index=index, master=bridge, state="up")
        self._namespace.set_up("bridge", address=HOST)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._namespace.__exit__(kind, error, trace)


class Echoed:
    """The host's side of the guest's echo: sends numbers without end, and compares what comes back."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, PORT))
        self._stop = threading.Event()
        self._accepted = threading.Event()
        self._connection: socket.socket | None = None
        self.sent = self.received = 0
        self.problem = ""
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Send no more, and wait for the rest."""
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        self.close()

    def close(self) -> None:
        self._stop.set()
        if self._connection is not None:
            self._connection.close()
        self._listener.close()

    def _send(self) -> None:
        try:
            self._connection, _ = self._listener.accept()
            self._accepted.set()
            while not self._stop.is_set():
                self._connection.sendall(numbers(self.sent, CHUNK))
                self.sent += CHUNK
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:  # the guest has been ended
            return

    def _receive(self) -> None:
        self._accepted.wait(120)
        assert self._connection is not None
        try:
            with self._connection.makefile("rb") as stream:
                while data := stream.read(CHUNK):
                    if data != numbers(self.received, len(data)):
                        self.problem = self.problem or f"other bytes than were sent, near {self.received}"
                    self.received += len(data)
        except OSError:
            return


def numbers(offset: int, length: int) -> bytes:
    return struct.pack(f"<{length // 8}Q", *range(offset // 8, (offset + length) // 8))


class Announcements:
    """RARP frames on the bridge."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(RARP))
        self._socket.bind(("bridge", RARP))

    def forget(self) -> None:
        self._socket.setblocking(False)
        try:
            while self._socket.recv(2048):
                pass
        except BlockingIOError:
            return

    def wait(self, timeout: float) -> bytes:
        self._socket.settimeout(timeout)
        return self._socket.recv(2048)

    def close(self) -> None:
        self._socket.close()


class Traveller:
    """The machine, wherever it is.

    Attributes:
        machine: the one that runs.
        side: where.
        hops: how often it has moved.
    """

    def __init__(self, load: Path, image: Path, folder: Path, *, modules: Sequence[str] = ()) -> None:
        self._load, self.image, self.folder = load, image, folder
        self._modules = modules
        self.side, self.hops = "a", 0
        self.machine: Machine
        self.echoed: Echoed

    def make_image(self) -> None:
        """A fresh one."""
        with self.image.open("wb") as file:
            file.truncate(SIZE)

    def boot(self, disk: str | None = None) -> None:
        """Begin at side a."""
        self.side = "a"
        disk = disk or f"block,image={self.image}"
        devices: list[str | DeviceDescription] = [f"{disk},id=disk", f"net,tap=tap-a,mac={MAC},id=net"]
        self.hops += 1
        machine = Machine(
            MachineDescription(
                name=self._name(), memory_mib=MEMORY_MIB, devices=devices, modules=list(self._modules)
            )
        )
        machine.start()
        self.machine = machine
        machine.check(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
        fetch(machine, self._load)
        self.echoed = Echoed()
        for what in ("disk /dev/vda", f"echo {HOST} {PORT}", "clock"):
            machine.check(f"setsid load {what} >/dev/null 2>&1 </dev/null &")
        self.work()

    def _name(self) -> str:
        return f"traveller{self.hops}-{self.folder.name[-6:]}"

    def there(self) -> str:
        """The side where it is not."""
        return "b" if self.side == "a" else "a"

    def receiver(self, path: Path | None = None, **changed: str) -> Receiver:
        """What waits for it at the other side; not entered yet."""
        self.hops += 1
        devices = {"net": f"net,tap=tap-{self.there()}", **changed}
        maker = GuestMaker(Welcome(name=self._name(), devices=devices, folders=None))
        return Receiver(Place(path=path or self.folder / f"there{self.hops}"), maker)

    def left(self) -> None:
        """It runs in another process now, at the other side."""
        self.machine.stop()
        self.side = self.there()

    def came_back(self, machine: Machine) -> None:
        """From there."""
        self.machine, self.side = machine, self.there()

    def arrived(self, receiver: Receiver) -> list[str]:
        """It runs at the other side now. What did not come along."""
        arrival = receiver.receive(60)
        assert arrival is not None
        assert isinstance(arrival.machine, ArrivingGuest)
        before, self.machine = self.machine, arrival.machine.machine
        self.side = self.there()
        before.stop()
        return arrival.problems

    def move(self) -> Moved:
        """To the other side, which must work."""
        with self.receiver() as receiver:
            moved = self.machine.migrate(str(receiver.place))
            assert moved.phase is SourcePhase.MOVED, moved
            self.arrived(receiver)
        return moved

    def count(self, what: str) -> int:
        return int(self.machine.check(f"cat /tmp/{what}.count 2>/dev/null || echo 0"))

    def work(self, disk: int = 300, echo: int = 1 << 18, clock: int = 10) -> None:
        """Until it has done this much more: it runs, and its devices do."""
        wanted = {"disk": disk, "echo": echo, "clock": clock}
        before = {what: self.count(what) for what in wanted}
        deadline = time.monotonic() + 90
        while behind := [what for what in wanted if self.count(what) - before[what] < wanted[what]]:
            assert time.monotonic() < deadline, f"{behind} do nothing; {self.machine.console.tail()}"

    def finish(self, *, counters: bool = True) -> None:
        """Everything is compared: what the guest has acknowledged is in the image, and nothing else."""
        verdicts = {}
        self.machine.check("touch /tmp/stop")
        for what in ("disk", "clock"):
            file = f"/tmp/{what}.verdict"
            verdicts[what] = self.machine.check(
                f"until [ -e {file} ]; do sleep 0.05; done; cat {file}", timeout=120
            ).strip()
        assert verdicts["disk"] == RIGHT
        assert re.match("went back 0, ticks off by none", verdicts["clock"]), verdicts
        self.echoed.finish()
        file = "/tmp/echo.verdict"
        ended = self.machine.check(f"until [ -e {file} ]; do sleep 0.05; done; cat {file}")
        assert ended == f"{self.echoed.sent} bytes\n"
        assert (self.echoed.problem, self.echoed.received) == ("", self.echoed.sent)
        table = struct.unpack(f"<{BLOCKS}Q", self.machine.pull("/tmp/disk.table"))
        assert wrong_blocks(self.image, table) == []
        if counters:
            errors = [report.counters["errors"] for report in self.machine.devices.reports()]
            assert errors == [0, 0]

    def close(self) -> None:
        if hasattr(self, "machine"):
            self.machine.stop()
        if hasattr(self, "echoed"):
            self.echoed.close()


def fetch(machine: Machine, program: Path) -> None:
    """Into the guest's /bin, over the network: its serial port takes a byte at a time."""
    with socket.create_server((HOST, FETCH_PORT)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(program.read_bytes())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        path = f"/bin/{program.name}"
        machine.check(f"nc {HOST} {FETCH_PORT} </dev/null >{path}; chmod 755 {path}", timeout=120)
        thread.join(10)


def wrong_blocks(image: Path, table: tuple[int, ...]) -> list[int]:
    """Blocks of the image that do not hold what was acknowledged last, word for word (load.c)."""
    data = image.read_bytes()
    wrong = []
    for block, sequence in enumerate(table):
        found = struct.unpack_from(f"<{_WORDS}Q", data, block * BLOCK)
        base = block << 48 | (sequence & 0xFFFF_FFFF) << 16
        wanted = tuple((base | index) * _FACTOR & _MASK for index in range(_WORDS)) if sequence else _ZEROES
        if found != wanted:
            wrong.append(block)
    return wrong
