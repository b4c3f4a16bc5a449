"""`iolane bench lanes`: one disk in every lane of one guest, all of it in the lab.

The lab is an emulated processor, and the guest in it is emulated once more: times say little in themselves.
What carries over is how often the guest is left for a request, and who must then work.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from iolane.bench.document import machine, put_section
from iolane.bench.lanes_in_lab import LOADS, DiskMeasured, LanesRequest, Measured
from iolane.bench.lanes_picture import Row, draw
from iolane.bench.native import build
from iolane.engines.qemu.cache import Report
from iolane.errors import IolaneError
from iolane.lab.disk import make_disk
from iolane.lab.hardware import Kind, LabDevice
from iolane.lab.lanes import DISKS, LaneDisk, Way, disk
from iolane.lab.lines import Lines
from iolane.lab.machine import Lab, LabConfig

TITLE = "Lanes"
PROGRAM = "disk_load"
PICTURE = "lanes.svg"
DISK_BYTES = 32 << 20
LAB_MIB = 3072
SECONDS = 3600.0
"""For everything in the lab, on a machine that may be busy."""
WORTH = 0.9
"""Of the rate of direct passthrough, for a mediator that traces nothing."""
SAME = 0.1
"""Traps of a request by which a mediator that traces nothing may differ from direct passthrough: others of
the guest's accesses, to config space for instance, fall into either time.
"""

EXPLAINED = """
One guest (Debian's kernel, one processor, on QEMU with the lab's nested KVM) with one disk for each row,
all with the same content, loaded in turns: 4 KiB at random places, past the page cache; medians of {rounds}
rounds of {milliseconds} ms. **The lab's processor is emulated, and so is its NVMe disk: absolute times
would mean little and are left out.** Rate, p50, p99 and host CPU (QEMU, which runs the guest too, and our
server) are ratios to direct passthrough. The counts are for one request: how often the guest's processor
was left (KVM's count), how often because it waited for an interrupt (HLT), how often for a register access
that QEMU had to handle, how many accesses or kicks reached iolane, and the guest's message interrupts. The
rates flatter the passed disk: it is hardware, which the lab's QEMU emulates at full speed outside, while
what serves the other disks runs on the emulated processor; on a real host the rates should lie closer
together, which nobody has measured yet. Direct and mediated make the same accesses: how far their rates and
times lie apart is this machine's noise.
"""


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of the rounds of one load; times are microseconds, counts are for one request."""

    load: str
    rate: float
    """Requests a second."""
    p50: float
    p99: float
    cpu: float
    exits: float
    halts: float
    to_user: float
    traps: float | None
    interrupts: float


class DiskResult(msgspec.Struct, frozen=True, kw_only=True):
    """One disk."""

    id: str
    lane: str
    device: str
    way: str
    carrier: str
    checksum: str
    wrong: int
    """Blocks that did not hold what had been written to them."""
    loads: list[LoadResult]

    def load(self, name: str) -> LoadResult:
        """One of its loads."""
        return next(each for each in self.loads if each.load == name)


class LanesResult(msgspec.Struct, frozen=True, kw_only=True):
    """All disks; `missed` has what does not hold."""

    machine: str
    command: str
    rounds: int
    milliseconds: int
    disks: list[DiskResult]
    missed: list[str]


def run_lanes_bench(
    *, rounds: int, milliseconds: int, report: Report, disks: Sequence[str] = ()
) -> LanesResult:
    """Boot the lab, measure in it. Raises IolaneError when it, or the guest in it, does not come up."""
    wanted = [disk(identity) for identity in disks] if disks else list(DISKS)
    here = machine()
    program = build([PROGRAM], static=True) / PROGRAM
    with tempfile.TemporaryDirectory(prefix="iolane-lanes-") as scratch:
        passed = [each for each in wanted if each.way in (Way.DIRECT, Way.MEDIATED)]
        devices = [_device(each, Path(scratch)) for each in passed]
        if not devices:
            raise IolaneError("no disk is passed through", remedy="the content comes from one: add direct")
        with Lab(LabConfig(devices=devices, memory_mib=LAB_MIB), report=report) as lab:
            shutil.copy(program, lab.share / PROGRAM)
            request = LanesRequest(
                functions={each.id: str(lab.address(each.id)) for each in passed},
                disks=[each.id for each in wanted],
                program=f"/lab/share/{PROGRAM}",
                rounds=rounds,
                milliseconds=milliseconds,
            )
            measured = _measure(lab, request, report)
    results = [_result(disk(each.disk), each) for each in measured]
    return LanesResult(
        machine=here,
        command=f"iolane bench lanes --rounds {rounds} --milliseconds {milliseconds}",
        rounds=rounds,
        milliseconds=milliseconds,
        disks=results,
        missed=missed(results),
    )


def _device(each: LaneDisk, scratch: Path) -> LabDevice:
    """The hardware of the lab, all with the same content."""
    image = scratch / f"{each.id}.raw"
    make_disk(image, "lanes", DISK_BYTES)
    return LabDevice(Kind.NVME, id=each.id, image=image)


def _measure(lab: Lab, request: LanesRequest, report: Report) -> list[DiskMeasured]:
    found: list[DiskMeasured] = []
    command = [sys.executable, "-m", "iolane.bench.lanes_in_lab", msgspec.json.encode(request).decode()]
    lines = Lines(lambda line: found.append(msgspec.json.decode(line, type=DiskMeasured)), report)
    lab.run(command, timeout=SECONDS, on_output=lines.take).check()
    return found


def _result(which: LaneDisk, measured: DiskMeasured) -> DiskResult:
    rounds = {load.name: [each for each in measured.loads if each.load == load.name] for load in LOADS}
    return DiskResult(
        id=which.id,
        lane=which.lane,
        device=which.device,
        way=which.way,
        carrier=which.carrier,
        checksum=measured.checksum,
        wrong=measured.wrong,
        loads=[medians(name, each) for name, each in rounds.items()],
    )


def medians(name: str, rounds: list[Measured]) -> LoadResult:
    def median(value: Callable[[Measured], float]) -> float:
        return statistics.median(value(each) for each in rounds)

    counted = [each.traps / each.requests for each in rounds if each.traps is not None]
    return LoadResult(
        load=name,
        rate=median(lambda each: each.requests * 1e9 / each.nanoseconds),
        p50=median(lambda each: each.p50 / 1000),
        p99=median(lambda each: each.p99 / 1000),
        cpu=median(lambda each: each.cpu / 1000 / each.requests),
        exits=median(lambda each: each.exits / each.requests),
        halts=median(lambda each: each.halts / each.requests),
        to_user=median(lambda each: each.to_user / each.requests),
        traps=statistics.median(counted) if counted else None,
        interrupts=median(lambda each: each.interrupts / each.requests),
    )


def missed(disks: Sequence[DiskResult]) -> list[str]:
    """What does not hold: what is `wrong`, and the rate that a mediator may cost when it traces nothing."""
    found = wrong(disks)
    if (pair := _direct_and_mediated(disks)) is not None:
        direct, mediated = pair
        share = statistics.geometric_mean(
            mediated.load(load.name).rate / direct.load(load.name).rate for load in LOADS
        )
        if share < WORTH:
            found.append(f"mediated: {share:.2f} of the rate of direct, over all loads")
    return found


def wrong(disks: Sequence[DiskResult]) -> list[str]:
    """What does not hold on a machine of any speed: contents, and traps of a mediator that traces nothing."""
    found = [f"{each.id}: {each.wrong} blocks hold what was not written" for each in disks if each.wrong]
    if len({each.checksum for each in disks}) > 1:
        found.append("the guest does not read the same from all disks")
    if (pair := _direct_and_mediated(disks)) is not None:
        for load in LOADS:
            plain, between = (each.load(load.name) for each in pair)
            if between.to_user > plain.to_user + SAME or (between.traps or 0) > SAME:
                found.append(f"mediated, {load.name}: more traps than direct")
    return found


def _direct_and_mediated(disks: Sequence[DiskResult]) -> tuple[DiskResult, DiskResult] | None:
    ways = {each.way: each for each in disks}
    direct, mediated = ways.get(Way.DIRECT), ways.get(Way.MEDIATED)
    return None if direct is None or mediated is None else (direct, mediated)


COLUMNS = ("disk", "lane", "carrier", "rate", "p50", "p99", "host CPU")
COUNTS = ("left the guest", "waiting", "to QEMU", "to iolane", "interrupts")


def rows(result: LanesResult, load: str) -> list[tuple[str, ...]]:
    """A row for each disk: what it is, times as ratios to direct passthrough, counts for a request."""
    base = next((each for each in result.disks if each.way == Way.DIRECT), result.disks[0]).load(load)
    found = []
    for each in result.disks:
        one = each.load(load)
        times = ((one.rate, base.rate), (one.p50, base.p50), (one.p99, base.p99), (one.cpu, base.cpu))
        counts = (one.exits, one.halts, one.to_user, one.traps, one.interrupts)
        found.append(
            (
                f"{each.device}, {each.way}",
                each.lane,
                each.carrier,
                *(f"{value / against:.2f}" if against else "-" for value, against in times),
                *("-" if count is None else f"{count:.2f}" for count in counts),
            )
        )
    return found


def to_markdown(result: LanesResult) -> str:
    """The section of the document."""
    parts = [
        f"`{result.command}` on {result.machine}.",
        EXPLAINED.format(rounds=result.rounds, milliseconds=result.milliseconds).strip(),
        f"![For a read, how often the guest is left, and the rate]({PICTURE})",
    ]
    for load in LOADS:
        header = (*COLUMNS, *COUNTS)
        lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows(result, load.name)]
        parts += [f"Random {load.name}:", "\n".join(lines)]
    parts.append("Everything held." if not result.missed else f"Missed: {'; '.join(result.missed)}.")
    return "\n\n".join(parts)


def write_numbers(result: LanesResult, path: Path) -> None:
    """Put the section into the document, and the picture beside it."""
    put_section(path, TITLE, to_markdown(result))
    (path.parent / PICTURE).write_text(picture(result))


def picture(result: LanesResult) -> str:
    """The first load of all disks, drawn."""
    load = LOADS[0].name
    drawn = []
    for each in result.disks:
        one = each.load(load)
        other = max(0.0, one.exits - one.halts - one.to_user)
        name = f"{each.device}, {each.way}"
        drawn.append(Row(name, each.lane, each.carrier, one.halts, one.to_user, other, one.rate))
    return draw(drawn, f"One disk in every lane: random {load}, 4 KiB")
