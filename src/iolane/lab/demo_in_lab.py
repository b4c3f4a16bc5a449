"""The part of `iolane lab demo` that runs in the lab: `python -m iolane.lab.demo_in_lab NVME SHARED`, the
addresses of an NVMe function and of one that shares its IOMMU group. It prints one line of JSON for each lane
(`LaneSeen`) and each check (`Check`), tagged; what takes time it tells on standard error.
"""

from __future__ import annotations

import hashlib
import sys

import msgspec

from iolane.engines.qemu.cache import report_to_stderr
from iolane.host.binding import driver_of
from iolane.host.sysfs import Host
from iolane.host.verdict import Survey
from iolane.lab.exits import read_exits
from iolane.lab.lanes import STEP, LaneDisk, LanesGuest, block_device, disk
from iolane.model.pci import PcieId

READS = 200
DISKS = ("emulated", "paravirtual", "direct")


class Check(msgspec.Struct, frozen=True, tag="check"):
    """One thing that must hold."""

    what: str
    ok: bool
    detail: str


class LaneSeen(msgspec.Struct, frozen=True, kw_only=True, tag="lane"):
    """What a 4 KiB read by one lane cost; counts are for one read."""

    lane: str
    device: str
    carrier: str
    driver: str
    """That the guest has bound."""
    left: float
    """The guest's processor was left."""
    to_qemu: float
    """Of these, for a register access that QEMU had to handle."""
    to_iolane: float | None
    """Accesses or kicks that reached our device; None where there is none."""
    interrupts: float
    """That the guest counted."""


def say(message: Check | LaneSeen) -> None:
    """One line for who started this."""
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def main(nvme: PcieId, shared: PcieId) -> None:
    verdicts(nvme, shared)
    before = driver_of(Host(), nvme)
    content = hashlib.sha256(block_device(nvme).read_bytes()).hexdigest()
    disks = [disk(identity) for identity in DISKS]
    with LanesGuest(disks, {"direct": nvme}, report_to_stderr) as guest:
        now = driver_of(Host(), nvme)
        say(Check("the function is taken for the guest", now == "vfio-pci", f"from {before} to {now}"))
        for each in disks:
            report_to_stderr(f"reading by the {each.lane} lane")
            read_all(guest, each, content)
            say(cost(guest, each))
    after = driver_of(Host(), nvme)
    say(Check("the function is given back", after == before, f"its driver is {after} again"))


def verdicts(nvme: PcieId, shared: PcieId) -> None:
    """What the inventory says of both functions."""
    survey = Survey(Host(), probe=True)
    good, bad = survey.verdict(nvme), survey.verdict(shared)
    say(Check(f"{nvme} can be passed through", good.possible, "alone in its IOMMU group, can be reset"))
    reasons = "; ".join(str(reason.text) for reason in bad.reasons)
    say(Check(f"{shared} can't be, and why is told", not bad.possible, reasons))


def read_all(guest: LanesGuest, each: LaneDisk, content: str) -> None:
    """The guest reads the same by each lane."""
    seen = guest.machine.check(f"sha256sum < {guest.path(each)}", timeout=STEP).split()[0]
    what = f"{each.lane}: the guest reads what is on the disk"
    say(Check(what, seen == content, f"sha256 {seen[:16]}..."))


def cost(guest: LanesGuest, each: LaneDisk) -> LaneSeen:
    """READS reads one after the other, less what asking for none takes."""
    empty, loaded = (_count(guest, each, reads) for reads in (1, READS + 1))
    left, to_qemu, to_iolane, interrupts = (
        max(0, more - less) / READS for more, less in zip(loaded, empty, strict=True)
    )
    return LaneSeen(
        lane=each.lane,
        device=each.device,
        carrier=each.carrier,
        driver=guest.driver(each),
        left=left,
        to_qemu=to_qemu,
        to_iolane=to_iolane if guest.counters(each) else None,
        interrupts=interrupts,
    )


def _count(guest: LanesGuest, each: LaneDisk, reads: int) -> tuple[int, int, int, int]:
    """Exits, those to QEMU, accesses and kicks, interrupts, while the guest reads."""
    command = f"dd if={guest.path(each)} of=/dev/null bs=4096 count={reads} iflag=direct 2>/dev/null"
    ours, interrupts = _ours(guest, each), _interrupts(guest)
    exits = read_exits(guest.machine.pid)
    guest.machine.check(command, timeout=STEP)
    spent = read_exits(guest.machine.pid).since(exits)
    return spent.of_devices, spent.mmio, _ours(guest, each) - ours, _interrupts(guest) - interrupts


def _ours(guest: LanesGuest, each: LaneDisk) -> int:
    counters = guest.counters(each)
    return counters.get("traps", 0) + counters.get("kicks", 0)


def _interrupts(guest: LanesGuest) -> int:
    lines = guest.machine.check("cat /proc/interrupts", timeout=STEP).splitlines()
    return sum(int(line.split()[1]) for line in lines if "PCI-MSI" in line)


if __name__ == "__main__":
    main(PcieId.from_string(sys.argv[1]), PcieId.from_string(sys.argv[2]))
