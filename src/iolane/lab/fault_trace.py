"""What QEMU's emulated IOMMU says it has blocked: its own trace, which no kernel rate-limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from iolane.model.pci.pcie_id import PcieId

EVENTS = (
    "vtd_dmar_fault",
    "vtd_frr_new",
    "amdvi_page_fault",
    "amdvi_mode_invalid",
    "amdvi_dte_get_fail",
    "amdvi_invalid_dte",
    "amdvi_get_pte_hwerror",
    "amdvi_ir_err",
    "amdvi_ir_target_abort",
)
"""The trace events of QEMU that tell of something blocked."""

FIRST_INTERRUPT_REASON = 0x20
"""VT-d fault reasons from here on are about interrupt requests (VT-d specification, appendix A)."""


class Blocked(StrEnum):
    """What was blocked."""

    DMA = "dma"
    INTERRUPT = "interrupt"


@dataclass(frozen=True)
class TraceRecord:
    """One fault as the emulated IOMMU found it. What an IOMMU's trace does not tell is None."""

    event: str
    """QEMU's name of the trace event."""
    blocked: Blocked
    source: PcieId | None = None
    address: int | None = None
    """The IOVA of the access; of an interrupt None."""
    write: bool | None = None
    reason: int | None = None
    """VT-d's fault reason (appendix A of its specification)."""
    index: int | None = None
    """Of an interrupt: the index of its remapping table entry."""
    detail: str = ""


_DMAR_FAULT = re.compile(r"vtd_dmar_fault sid (0x[0-9a-f]+) fault (\d+) addr (0x[0-9a-f]+) write (\d)")
_FRR_NEW = re.compile(r"vtd_frr_new index \d+ high (0x[0-9a-f]+) low (0x[0-9a-f]+)")
_AMDVI = re.compile(r"(amdvi_\w+) (.*)")
_ADDRESS = re.compile(r"(?:address|addr|at) (0x[0-9a-f]+)")


def parse_trace(text: str) -> list[TraceRecord]:
    """The faults in QEMU's log, in their order; other lines are skipped."""
    records = (_vtd(line) or _amdvi(line) for line in text.splitlines())
    return [record for record in records if record is not None]


def _vtd(line: str) -> TraceRecord | None:
    if match := _DMAR_FAULT.search(line):
        source, reason, address, write = match.groups()
        routing = PcieId.from_routing(int(source, 16) & 0xFFFF)
        return TraceRecord(
            "vtd_dmar_fault", Blocked.DMA, routing, int(address, 16), write == "1", int(reason)
        )
    if match := _FRR_NEW.search(line):
        high, low = (int(word, 16) for word in match.groups())
        reason_code = high >> 32 & 0xFF  # Fault Recording Register, bits 103:96 (VT-d 11.4.14)
        if reason_code >= FIRST_INTERRUPT_REASON:  # one about DMA has had its own line
            return TraceRecord(
                "vtd_frr_new",
                Blocked.INTERRUPT,
                PcieId.from_routing(high & 0xFFFF),
                reason=reason_code,
                index=low >> 48,
            )
    return None


def _amdvi(line: str) -> TraceRecord | None:
    match = _AMDVI.search(line)
    if match is None or match[1] not in EVENTS:
        return None
    event, detail = match[1], match[2].strip()
    if event.startswith("amdvi_ir_"):
        return TraceRecord(event, Blocked.INTERRUPT, detail=detail)
    address = _ADDRESS.search(detail)
    return TraceRecord(event, Blocked.DMA, address=int(address[1], 16) if address else None, detail=detail)
