"""`iolane bench migrate`: a guest moves with iolane's vhost-user devices, and with QEMU's own, in turns.

Both guests are of one kind: the same kernel, memory and load, a disk of the same content and the same
network. The devices' servers are processes of their own, one for each device on each side, as an operator has
them. What counts are ratios.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import msgspec

from iolane.bench.confidence import confidence_of_median
from iolane.bench.document import machine
from iolane.bench.native import build
from iolane.bench.target import Target
from iolane.bench.wire import GUEST, GUEST_MAC, Wire
from iolane.devices.specification import parse
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.qmp import Event
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError
from iolane.memory.available import available_memory
from iolane.operations.device_process import DeviceProcess
from iolane.uapi.virtio import DeviceType

OURS, QEMUS = "iolane", "QEMU"
DISK_MIB = 64
READS = 100
"""Blocks of the disk that the guest reads in a second."""
WARM = 50
"""Rounds of the load, of 10 ms, before a move."""
WARM_UP = 2
"""Moves of each guest that do not count: one to each side."""
AFTERWARDS = 1.0
"""Seconds after a move in which the network must have found the guest."""
CLOCK = "tsc=unstable clocksource=acpi_pm"
"""A clock that is right without being measured first: a busy host makes a guest measure its TSC wrongly, and
then `a second` is another one in each guest."""
BOOT_TIMEOUT = 300.0
MODULES = ("virtio_pci", "virtio_blk", "virtio_net")
TARGET = Target(at_most=1.1)
MAC = GUEST_MAC.hex(":")


class Case(msgspec.Struct, frozen=True):
    """What moves."""

    memory: int
    """MiB; half of it is filled with what does not compress."""
    dirty: int
    """MiB a second that the guest changes of that."""

    @property
    def name(self) -> str:
        """As the tables show it."""
        return f"{self.memory} MiB, {self.dirty} MiB/s changed"


CASES = (*(Case(memory, dirty) for memory in (256, 1024) for dirty in (0, 64)), Case(4096, 64))
MACHINES = 3
"""With memory of their own at one time: both kinds' guests, and the one that a guest moves to."""
SPARE = 2048
"""MiB that the host keeps."""


class Figures(msgspec.Struct, frozen=True):
    """One move, or medians of several. Times are seconds."""

    total: float
    """From the command until the guest runs at the destination."""
    downtime: float
    """From when QEMU begins to stop the guest at the source until it runs at the destination."""
    qemu_downtime: float
    """The same as QEMU counts it: until it has sent everything."""
    silence: float
    """The longest time without an answer of the guest on the network."""
    transferred: float
    """Bytes."""
    passes: float

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.transferred / self.total


class CaseResult(msgspec.Struct, frozen=True):
    """Medians over the rounds, and each round's ratios, iolane's to QEMU's."""

    case: Case
    figures: dict[str, Figures]
    totals: list[float]
    downtimes: list[float]


class MigrateBenchResult(msgspec.Struct, frozen=True):
    """A whole run."""

    command: str
    machine: str
    qemu: str
    rounds: int
    cases: tuple[CaseResult, ...]
    lazy: bool = False
    """The host gave each machine its memory while it moved."""
    left_out: tuple[Case, ...] = ()
    """For want of memory."""

    @property
    def totals(self) -> list[float]:
        """The ratios of total time, of all rounds of all guests."""
        return [ratio for item in self.cases for ratio in item.totals]

    @property
    def downtimes(self) -> list[float]:
        """The ratios of downtime, of all rounds of all guests."""
        return [ratio for item in self.cases for ratio in item.downtimes]

    @property
    def missed(self) -> list[str]:
        """The targets that were missed, in words: those of each guest, and of all of them."""
        judged = [
            *((item.case.name, item.totals, item.downtimes) for item in self.cases),
            ("all of them", self.totals, self.downtimes),
        ]
        return [
            f"{name}: {what} {in_words(ratios)}, should be {TARGET}"
            for name, totals, downtimes in judged
            for what, ratios in (("total time", totals), ("downtime", downtimes))
            if not TARGET.holds(median(ratios))
        ]


def in_words(ratios: list[float]) -> str:
    """Their median, and where the true one lies with 95 % confidence."""
    low, high = confidence_of_median(ratios)
    return f"{median(ratios):.2f} ({low:.2f} to {high:.2f})"


def run_migrate_bench(
    *,
    rounds: int = 5,
    cases: Sequence[Case] = CASES,
    lazy: bool = False,
    cache: Cache | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> MigrateBenchResult:
    """Measure.

    Args:
        lazy: let the host give each machine its memory while it moves. Where this is a virtual machine
            itself, that takes most of a move's time, and no two moves the same.

    Raises:
        IolaneError: no C compiler, no archive, a guest that did not come up, or did not move.
    """
    if rounds < 1:
        raise IolaneError("at least one round")
    cache = cache or Cache()
    load = build(("memory_load",), cache, static=True) / "memory_load"
    described, version = machine(), ""
    results = []
    room = (available_memory() >> 20) - SPARE
    fitting = [case for case in cases if lazy or MACHINES * case.memory <= room]
    left_out = tuple(case for case in cases if case not in fitting)
    for case in left_out:
        report(f"{case.name}: left out, it takes {MACHINES * case.memory} MiB and {room} MiB are free")
    if not fitting:
        raise IolaneError("no guest fits into this machine's memory", remedy="give it more, or use --lazy")
    for case in fitting:
        with tempfile.TemporaryDirectory(prefix="iolane-bench-") as scratch, ExitStack() as stack:
            wires = {kind: stack.enter_context(Wire(Path(scratch) / f"{kind}.wire")) for kind in KINDS}
            sides = {kind: KINDS[kind](stack, Path(scratch), wires[kind]) for kind in KINDS}
            movers = {
                kind: stack.enter_context(_Mover(kind, case, sides[kind], wires[kind], load, cache, lazy))
                for kind in KINDS
            }
            version = movers[QEMUS].version()
            for mover in movers.values():
                for _ in range(WARM_UP):
                    mover.move()
            seen: dict[str, list[Figures]] = {kind: [] for kind in KINDS}
            for number in range(rounds):
                for kind in KINDS if number % 2 else reversed(KINDS):
                    seen[kind].append(movers[kind].move())
                    report(f"{case.name}: {kind}, {_seconds(seen[kind][-1])} (round {number + 1})")
        results.append(_summary(case, seen))
    command = f"iolane bench migrate --rounds {rounds}{' --lazy' if lazy else ''}"
    return MigrateBenchResult(command, described, version, rounds, tuple(results), lazy, left_out)


def _seconds(figures: Figures) -> str:
    return (
        f"{figures.total:.2f} s, {figures.transferred / (1 << 20):.0f} MiB in {figures.passes:g} passes,"
        f" stood still for {figures.downtime * 1000:.0f} ms"
    )


def _summary(case: Case, seen: dict[str, list[Figures]]) -> CaseResult:
    pairs = list(zip(seen[OURS], seen[QEMUS], strict=True))
    return CaseResult(
        case,
        {kind: medians(figures) for kind, figures in seen.items()},
        [ours.total / theirs.total for ours, theirs in pairs],
        [ours.downtime / theirs.downtime for ours, theirs in pairs],
    )


def medians(figures: Sequence[Figures]) -> Figures:
    """Each figure's median."""
    fields = Figures.__struct_fields__
    return Figures(**{name: median(getattr(each, name) for each in figures) for name in fields})


class Side(msgspec.Struct, frozen=True):
    """The devices of a machine, as one side has them: served by others, or QEMU's own."""

    devices: tuple[VhostUserDevice, ...] = ()
    arguments: tuple[str, ...] = ()


def _ours(stack: ExitStack, folder: Path, wire: Wire) -> tuple[Side, Side]:
    """A server for each device, and that twice: source and destination reach the same image."""
    image = _image(folder / "iolane.raw")
    sides = []
    for number, side in enumerate("ab"):
        processes = []
        for name, text in (("disk", f"block,image={image}"), ("net", f"net,peer=unix:{wire.path}")):
            with on_host(number):
                process = DeviceProcess(parse(text), name, folder / f"{side}-{name}.sock")
            stack.callback(process.stop)
            processes.append(process)
        for process in processes:
            process.wait_ready()
        disk, net = (process.socket for process in processes)
        devices = (
            VhostUserDevice("disk", disk, DeviceType.BLOCK, port="port1"),
            VhostUserDevice("net", net, DeviceType.NET, mac=MAC, port="port2"),
        )
        sides.append(Side(devices))
    return sides[0], sides[1]


def _qemus(stack: ExitStack, folder: Path, wire: Wire) -> tuple[Side, Side]:
    """QEMU opens the image itself; a destination only when the guest has arrived."""
    image = _image(folder / "qemu.raw")
    disk = f"driver=raw,node-name=image,file.driver=file,file.filename={image}"
    network = f"stream,id=wire,server=off,addr.type=unix,addr.path={wire.path}"
    side = Side(
        arguments=(
            *("-blockdev", disk, "-device", "virtio-blk-pci,id=disk,drive=image,bus=port1"),
            *("-netdev", network, "-device", f"virtio-net-pci,id=net,netdev=wire,mac={MAC},bus=port2"),
        )
    )
    return side, side


KINDS = {OURS: _ours, QEMUS: _qemus}


@contextmanager
def on_host(number: int) -> Iterator[None]:
    """What is started meanwhile has the even or the odd processors: the two sides of a move share none, as
    two hosts don't. A machine with one processor has that for both.
    """
    processors = os.sched_getaffinity(0)
    own = {each for place, each in enumerate(sorted(processors)) if place % 2 == number % 2}
    os.sched_setaffinity(0, own or processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)


def _image(path: Path) -> Path:
    with path.open("wb") as file:
        for block in range(DISK_MIB):
            file.write(bytes([block]) * (1 << 20))
    return path


class _Mover:
    """A guest that moves to and fro between two sides. It stands still between its moves."""

    def __init__(
        self,
        kind: str,
        case: Case,
        sides: tuple[Side, Side],
        wire: Wire,
        load: Path,
        cache: Cache,
        lazy: bool,
    ) -> None:
        self._sides = sides
        self._lazy = lazy
        self._wire = wire
        self._cache = cache
        self._case = case
        self._moves = 0
        content = InitramfsContent(modules=MODULES, files={"bin/memory_load": load})
        self._config = MachineConfig(
            name=f"bench-{kind}",
            memory_mib=case.memory,
            content=content,
            append=CLOCK,
            boot_timeout=BOOT_TIMEOUT,
        )
        self._machine = self._made(0, incoming=False)

    def _made(self, number: int, *, incoming: bool) -> QemuMachine:
        side = self._sides[number % 2]
        wanted = replace(
            self._config, devices=side.devices, extra_arguments=side.arguments, incoming=incoming
        )
        return QemuMachine(wanted, self._cache)

    def __enter__(self) -> _Mover:
        with on_host(0):
            self._machine.start()
        try:
            self._give_memory(self._machine)
            self._machine.check(f"ifconfig eth0 {GUEST} up")
            words = f"{self._case.memory // 2} {self._case.dirty} /dev/vda {READS} /tmp/count"
            self._machine.check(f"setsid memory_load {words} >/tmp/load.log 2>&1 </dev/null &")
            self._work(1)
            self._machine.pause()
        except BaseException:
            self._machine.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.stop()

    def version(self) -> str:
        """QEMU's."""
        told = self._machine.qmp.execute("query-version")["qemu"]
        return f"{told['major']}.{told['minor']}.{told['micro']}"

    def move(self) -> Figures:
        """Once, under load."""
        source = self._machine
        destination = self._made(self._moves + 1, incoming=True)
        with on_host(self._moves + 1):
            destination.start()
        try:
            self._give_memory(destination)
            source.resume()
            self._work(WARM)
            left = _Left(source)
            began, clock = time.monotonic(), time.time()
            moved = source.migrate_to(destination)
        except BaseException:
            destination.stop()
            raise
        self._machine, self._moves = destination, self._moves + 1
        self._work(WARM)
        ended = began + moved.seconds
        time.sleep(max(0.0, ended + AFTERWARDS - time.monotonic()))
        silence = self._wire.silence(began, ended + AFTERWARDS)
        destination.pause()
        return Figures(
            total=moved.seconds,
            downtime=clock + moved.seconds - (left.at - moved.downtime),
            qemu_downtime=moved.downtime,
            silence=silence,
            transferred=moved.transferred,
            passes=moved.passes,
        )

    def _give_memory(self, machine: QemuMachine) -> None:
        """All of it, as a host has it that is no virtual machine itself."""
        if not self._lazy:
            machine.qmp.execute("qom-set", path="/objects/ram", property="prealloc", value=True)

    def _work(self, rounds: int) -> None:
        """Until the load has done so much more, wherever the guest is."""
        self._machine.check(
            "until [ -s /tmp/count ]; do sleep 0.1; done; before=$(cat /tmp/count);"
            f" until [ $(($(cat /tmp/count) - before)) -ge {rounds} ];"
            " do pidof memory_load >/dev/null || { cat /tmp/load.log; exit 1; }; sleep 0.05; done",
            timeout=300.0,
        )


class _Left:
    """When a machine had sent everything: QEMU's own time of that event."""

    def __init__(self, machine: QemuMachine) -> None:
        self.at = 0.0
        machine.qmp.add_listener(self._note, lambda: None)

    def _note(self, event: Event) -> None:
        if event["event"] == "MIGRATION" and event["data"]["status"] == "completed":
            self.at = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
