"""The part of `iolane bench lanes` that runs in the lab: `python -m iolane.bench.lanes_in_lab REQUEST`,
where REQUEST is JSON (`LanesRequest`). It prints one line of JSON for each disk (`DiskMeasured`); what takes
time it tells on standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from iolane.bench.process import cpu_ns
from iolane.engines.qemu.cache import report_to_stderr
from iolane.lab.exits import Exits, read_exits
from iolane.lab.lanes import STEP, LaneDisk, LanesGuest, disk
from iolane.model.pci import PcieId

PROGRAM = "bin/disk_load"


class Load(msgspec.Struct, frozen=True):
    """One way of using a disk: 4 KiB at random places, so many threads with one request each."""

    name: str
    mode: str
    threads: int


LOADS = (
    Load("read, depth 1", "read", 1),
    Load("write, depth 1", "write", 1),
    Load("read, depth 4", "read", 4),
)
IDLE = Load("idle", "idle", 1)


class LanesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured."""

    functions: dict[str, str]
    """Disk -> address of the function that is passed for it."""
    disks: list[str]
    program: str
    """The load program here, statically linked."""
    rounds: int
    milliseconds: int


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one disk, once. The counts are those of the whole load, exits and interrupts less those of
    as long an idle time; times are nanoseconds.
    """

    load: str
    requests: int
    nanoseconds: int
    p50: int
    p99: int
    interrupts: int
    """Message interrupts that the guest counted."""
    exits: int
    """Times the guest's processor left the guest (KVM's count), but for those of the serial port by which the
    guest is told what to do."""
    halts: int
    """Those of them that were HLT: it waited for an interrupt."""
    to_user: int
    """Those of them that went on to QEMU: accesses to registers that are not mapped."""
    traps: int | None
    """Accesses, or kicks, that reached our device; None where iolane has no part in it."""
    cpu: int
    """Processor time of the host: QEMU, which runs the guest too, and this process with our devices."""


class DiskMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """All of one disk."""

    disk: str
    checksum: str
    """SHA-256 of its content before the loads."""
    loads: list[Measured]
    marked: int
    """Blocks that the writes have marked."""
    wrong: int
    """Those of them that hold anything else than what was written."""


class _Said(msgspec.Struct, frozen=True):
    requests: int
    nanoseconds: int
    p50: int
    p99: int
    interrupts: int


class _Written(msgspec.Struct, frozen=True):
    marked: int
    wrong: int


class _Counts(NamedTuple):
    """What is counted outside the guest."""

    exits: Exits
    traps: int
    cpu: int

    def since(self, before: _Counts) -> _Counts:
        return _Counts(self.exits.since(before.exits), self.traps - before.traps, self.cpu - before.cpu)


class Bench:
    """Loads the disks of one guest."""

    def __init__(self, guest: LanesGuest, request: LanesRequest) -> None:
        self._guest = guest
        self._request = request
        self._pid = guest.machine.pid

    def measure(self, disks: Sequence[LaneDisk]) -> list[DiskMeasured]:
        """All disks, all loads, in turns, so that what else the machine does meets all of them."""
        checksums = {each.id: self._output(f"sha256sum < {self._guest.path(each)}") for each in disks}
        loads: dict[str, list[Measured]] = {each.id: [] for each in disks}
        for number in range(self._request.rounds):
            for each in disks:
                report_to_stderr(f"round {number + 1} of {self._request.rounds}: {each.id}")
                loads[each.id] += self._round(each)
        found = []
        for each in disks:
            said = self._output(f"/{PROGRAM} {self._guest.path(each)} written 1 0")
            written = msgspec.json.decode(said, type=_Written)
            found.append(
                DiskMeasured(
                    disk=each.id,
                    checksum=checksums[each.id].split()[0],
                    loads=loads[each.id],
                    marked=written.marked,
                    wrong=written.wrong,
                )
            )
        return found

    def _output(self, command: str) -> str:
        return self._guest.machine.check(command, timeout=STEP)

    def _round(self, wanted: LaneDisk) -> list[Measured]:
        ours = bool(self._guest.counters(wanted))
        idle, quiet = self._run(wanted, IDLE)
        found = []
        for load in LOADS:
            said, counts = self._run(wanted, load)
            found.append(_measured(load, said, counts, idle, quiet, ours=ours))
        return found

    def _run(self, wanted: LaneDisk, load: Load) -> tuple[_Said, _Counts]:
        words = [f"/{PROGRAM}", self._guest.path(wanted), load.mode, load.threads, self._request.milliseconds]
        before = self._counts(wanted)
        said = self._guest.machine.check([str(word) for word in words], timeout=STEP)
        return msgspec.json.decode(said, type=_Said), self._counts(wanted).since(before)

    def _counts(self, wanted: LaneDisk) -> _Counts:
        ours = self._guest.counters(wanted)
        return _Counts(
            exits=read_exits(self._pid),
            traps=ours.get("traps", 0) + ours.get("kicks", 0),
            cpu=cpu_ns(self._pid) + cpu_ns(os.getpid()),
        )


def _measured(
    load: Load, said: _Said, counts: _Counts, idle: _Said, quiet: _Counts, *, ours: bool
) -> Measured:
    share = said.nanoseconds / idle.nanoseconds

    def more(loaded: int, unloaded: int) -> int:
        return max(0, round(loaded - unloaded * share))

    return Measured(
        load=load.name,
        requests=said.requests,
        nanoseconds=said.nanoseconds,
        p50=said.p50,
        p99=said.p99,
        interrupts=more(said.interrupts, idle.interrupts),
        exits=more(counts.exits.of_devices, quiet.exits.of_devices),
        halts=more(counts.exits.halts, quiet.exits.halts),
        to_user=more(counts.exits.mmio, quiet.exits.mmio),
        traps=counts.traps if ours else None,
        cpu=counts.cpu,
    )


def main(text: str) -> None:
    request = msgspec.json.decode(text, type=LanesRequest)
    functions = {name: PcieId.from_string(address) for name, address in request.functions.items()}
    disks = [disk(identity) for identity in request.disks]
    with LanesGuest(disks, functions, report_to_stderr, {PROGRAM: Path(request.program)}) as guest:
        for each in Bench(guest, request).measure(disks):
            sys.stdout.buffer.write(msgspec.json.encode(each) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
