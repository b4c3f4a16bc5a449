"""IOMMU faults in the kernel's log: what VT-d and AMD-Vi refused, read from the messages of Linux 3.x to 6.x.

The messages: drivers/iommu/intel/dmar.c and drivers/iommu/amd/iommu.c (before 5.8 intel-iommu.c,
amd_iommu.c). VT-d reports the page of an address, not the address. A number of a reason is decimal without
0x and hexadecimal with it (since 5.11).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from iolane.host.fault_reasons import AmdFlags, FaultKind, amd_reason, vtd_reason
from iolane.host.kmsg import KernelRecord

_HEX = r"(?:0x)?[0-9a-f]"
_DEVICE = (
    rf"(?:(?P<segment>[0-9a-f]{{4}}):)?(?P<bus>{_HEX}{{2}}):(?P<device>{_HEX}{{2}})\.(?P<function>[0-7])"
)
_VTD = re.compile(
    rf"\[(?P<what>DMA Read|DMA Write|INTR-REMAP)(?: (?:NO_PASID|PASID (?P<pasid>(?:0x)?[0-9a-f]+)))?\] "
    rf"Request device \[{_DEVICE}\](?: PASID (?P<older_pasid>[0-9a-f]+))? "
    r"fault (?:addr|index) (?P<where>(?:0x)?[0-9a-f]+)"
)
_VTD_REASON = re.compile(r"\[fault reason (?P<reason>(?:0x)?[0-9a-f]+)\]")
_AMD = re.compile(r"AMD-Vi: Event logged \[(?P<event>[A-Z_]+)(?P<rest>[^\]]*)")
_AMD_NUMBER = re.compile(r"\b(\w+)=(0x[0-9a-f]+)")
_AMD_DEVICE = re.compile(rf"\bdevice={_DEVICE}")
_PREFIX_DEVICE = re.compile(r"^\S+ ([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): AMD-Vi")
_SUPPRESSED = re.compile(r"\b(?:dmar_fault|(?:amd_)?iommu_\w+): (\d+) callbacks suppressed")
_STATUS = re.compile(r"DRHD: handling fault status reg ([0-9a-f]+)")
_PRIMARY_FAULT_OVERFLOW = 0x1
"""Fault Status Register, PFO (VT-d, 11.4.7.1): faults were lost since their registers were full."""
_NO_PASID = 0xFFFF_FFFF
_IGNORED_PASID = (None, _NO_PASID)


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One refused request."""

    time: float
    """Seconds since boot, when the kernel said it."""
    sequence: int
    """Of the kernel's record."""
    iommu: str
    """VT-d or AMD-Vi."""
    kind: FaultKind
    requester: str
    """The requester id as an address, with segment where the kernel says it: 0000:01:00.0 or 01:00.0."""
    reason: str
    function: str | None = None
    """The host's function that has this id, with segment."""
    machine: str | None = None
    """Whose function that was."""
    direction: str | None = None
    """read or write, where it is known."""
    address: int | None = None
    """The IOVA; VT-d tells its page."""
    index: int | None = None
    """Of an interrupt in the remapping table."""
    pasid: int | None = None
    domain: int | None = None
    code: int | None = None
    """VT-d: the fault reason; AMD-Vi: the flags."""
    event: str | None = None
    """AMD-Vi: the event's name."""

    def __str__(self) -> str:
        who = self.function or self.requester
        what = {"read": "DMA read", "write": "DMA write"}.get(self.direction or "", "DMA")
        if self.kind is FaultKind.INTERRUPT:
            what = "interrupt"
        where = f" at {self.address:#x}" if self.address is not None else ""
        where += f" with index {self.index:#x}" if self.index is not None else ""
        where += f" with PASID {self.pasid:#x}" if self.pasid is not None else ""
        machine = f" ({self.machine})" if self.machine else ""
        name = f" [{self.event or f'reason {self.code:#04x}'}]" if self.event or self.code else ""
        return f"{who}{machine}: {what}{where} refused by {self.iommu}: {self.reason}{name}"


class Unseen(msgspec.Struct, frozen=True):
    """Faults that the kernel only counted, or that were lost."""

    suppressed: int = 0
    """Messages that the kernel's rate limit held back."""
    overflow: bool = False
    """The hardware had no room for more; how many were lost is not known."""


class FaultReader:
    """Finds faults in records given in order; a reason may come in the line after its fault."""

    def __init__(self) -> None:
        self._pending: tuple[KernelRecord, re.Match[str]] | None = None

    def read(self, record: KernelRecord) -> Iterator[Fault | Unseen]:
        """What a record says, line by line."""
        for line in record.text.split("\n"):
            yield from self._line(record, line)

    def _line(self, record: KernelRecord, line: str) -> Iterator[Fault | Unseen]:
        reason = _VTD_REASON.search(line)
        if (match := _VTD.search(line)) is not None:
            if reason is not None:
                yield _vtd(record, match, reason["reason"])
            else:  # before 4.8 the reason had a line of its own
                self._pending = record, match
        elif reason is not None and self._pending is not None:
            (earlier, match), self._pending = self._pending, None
            yield _vtd(earlier, match, reason["reason"])
        elif (match := _AMD.search(line)) is not None:
            yield _amd(record, line, match)
        elif (match := _SUPPRESSED.search(line)) is not None:
            yield Unseen(suppressed=int(match[1]))
        elif _tells_of_overflow(line):
            yield Unseen(overflow=True)


def _tells_of_overflow(line: str) -> bool:
    if (match := _STATUS.search(line)) is not None:
        return bool(int(match[1], 16) & _PRIMARY_FAULT_OVERFLOW)
    return "IOMMU event log overflow" in line or "IOMMU Event log restarting" in line


def _vtd(record: KernelRecord, match: re.Match[str], reason: str) -> Fault:
    code = int(reason, 16 if reason.startswith("0x") else 10)
    kind, text = vtd_reason(code)
    if match["what"] == "INTR-REMAP":
        kind = FaultKind.INTERRUPT
    pasid = int(match["pasid"] or match["older_pasid"] or f"{_NO_PASID:x}", 16)
    where = int(match["where"], 16)
    interrupt = kind is FaultKind.INTERRUPT
    return Fault(
        time=record.time,
        sequence=record.sequence,
        iommu="VT-d",
        kind=kind,
        requester=_requester(match),
        reason=text,
        direction=None if interrupt else match["what"].removeprefix("DMA ").lower(),
        address=None if interrupt else where,
        index=where if interrupt else None,
        pasid=None if pasid in _IGNORED_PASID else pasid,
        code=code,
    )


def _amd(record: KernelRecord, line: str, match: re.Match[str]) -> Fault:
    numbers = {name: int(value, 16) for name, value in _AMD_NUMBER.findall(match["rest"])}
    flags = AmdFlags(numbers.get("flags", 0) & 0x1FF)
    kind, text = amd_reason(match["event"], flags)
    known = AmdFlags.PR in flags or AmdFlags.RW in flags
    direction = ("write" if AmdFlags.RW in flags else "read") if known and kind is FaultKind.DMA else None
    return Fault(
        time=record.time,
        sequence=record.sequence,
        iommu="AMD-Vi",
        kind=kind,
        requester=_amd_requester(record, line, match["rest"]),
        reason=text,
        direction=direction,
        address=numbers.get("address", numbers.get("gpa")),
        pasid=numbers.get("pasid") or None,
        domain=numbers.get("domain"),
        code=int(flags),
        event=match["event"],
    )


def _requester(match: re.Match[str]) -> str:
    segment = f"{match['segment']}:" if match["segment"] else ""
    return f"{segment}{match['bus'][-2:]}:{match['device'][-2:]}.{match['function']}"


def _amd_requester(record: KernelRecord, line: str, rest: str) -> str:
    """`device=` if it is there: then the message's own device is the IOMMU."""
    if (match := _AMD_DEVICE.search(rest)) is not None:
        return _requester(match)
    if (match := _PREFIX_DEVICE.search(line)) is not None:
        return match[1]
    return record.properties.get("DEVICE", "").removeprefix("+pci:") or "unknown"
