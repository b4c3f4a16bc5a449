"""Why an IOMMU refused a request: VT-d's fault reasons and AMD-Vi's events, in words.

VT-d: "Intel Virtualization Technology for Directed I/O", 7.1.3 and 5.1.4.1; names and numbers as there.
AMD-Vi: "AMD I/O Virtualization Technology (IOMMU) Specification" (48882), 2.5.
"""

from __future__ import annotations

from enum import IntFlag, StrEnum


class FaultKind(StrEnum):
    """What was refused."""

    DMA = "dma"
    INTERRUPT = "interrupt"
    OTHER = "other"
    """An error of the IOMMU itself or of its tables."""


VTD_DMA = {
    0x01: "root entry not present",
    0x02: "context entry not present: no domain for this function",
    0x03: "context entry invalid",
    0x04: "address beyond what the IOMMU translates (MGAW)",
    0x05: "no write permission, or nothing mapped there",
    0x06: "no read permission, or nothing mapped there",
    0x07: "page table could not be read",
    0x08: "root table could not be read",
    0x09: "context table could not be read",
    0x0A: "reserved field set in root entry",
    0x0B: "reserved field set in context entry",
    0x0C: "reserved field set in page table entry",
    0x0D: "translation requests of this function are blocked",
    0x0E: "write to the interrupt window by a translated request or with the wrong length",
    0x10: "address in the interrupt window in a request that must not use it",
}
VTD_INTERRUPT = {
    0x20: "reserved field set in the interrupt request",
    0x21: "interrupt index beyond the remapping table",
    0x22: "interrupt entry not present: the function was not given this interrupt",
    0x23: "interrupt remapping table could not be read",
    0x24: "reserved field set in the interrupt entry",
    0x25: "compatibility format interrupt, which is blocked",
    0x26: "interrupt entry belongs to another function (source-id)",
    0x27: "interrupt posting descriptor could not be read",
    0x28: "reserved field set in the interrupt posting descriptor",
}
VTD_SCALABLE = {
    0x30: "root table could not be read",
    0x31: "translation type does not allow a request with PASID",
    0x32: "translation type does not allow a page group request",
    0x38: "root entry could not be read",
    0x39: "root entry not present",
    0x3A: "reserved field set in root entry",
    0x40: "context entry could not be read",
    0x41: "context entry not present: no domain for this function",
    0x42: "reserved field set in context entry",
    0x43: "context entry invalid",
    0x44: "device TLB is not enabled for this function",
    0x45: "PASIDs are not enabled for this function",
    0x46: "PASID larger than the context entry allows",
    0x47: "page requests are not enabled for this function",
    0x48: "PASID for requests without one is invalid",
    0x50: "PASID directory entry could not be read",
    0x51: "PASID directory entry not present",
    0x52: "reserved field set in PASID directory entry",
    0x58: "PASID table entry could not be read",
    0x59: "PASID table entry not present",
    0x5A: "reserved field set in PASID table entry",
    0x5B: "PASID table entry invalid",
    0x5C: "execute requests are not enabled for this PASID",
    0x5D: "supervisor requests are not enabled for this PASID",
    0x70: "first-stage entry could not be read",
    0x71: "first-stage entry not present: nothing mapped there",
    0x72: "reserved field set in first-stage entry",
    0x73: "first-stage table could not be read",
    0x74: "first-stage entry beyond what the IOMMU translates (MGAW)",
    0x75: "no read permission for the first-stage table",
    0x76: "no read permission for a first-stage entry",
    0x77: "no write permission for a first-stage entry",
    0x78: "second-stage entry could not be read",
    0x79: "no permission, or nothing mapped there (second stage)",
    0x7A: "reserved field set in second-stage entry",
    0x7B: "second-stage table could not be read",
    0x7C: "second-stage entry needs an accessed or dirty bit it may not set",
    0x80: "address not canonical",
    0x81: "user request for a supervisor page",
    0x82: "no execute permission",
    0x83: "address beyond the hardware's",
    0x84: "second-stage address beyond the hardware's",
    0x85: "no write permission",
    0x86: "no read permission",
    0x87: "address in the interrupt window in a request that must not use it",
    0x90: "first-stage entry needs an accessed or dirty bit it may not set",
    0x91: "no permission in the second stage for a first-stage table",
}


def vtd_reason(number: int) -> tuple[FaultKind, str]:
    """What a VT-d fault reason means."""
    if number in VTD_INTERRUPT:
        return FaultKind.INTERRUPT, VTD_INTERRUPT[number]
    text = VTD_DMA.get(number) or VTD_SCALABLE.get(number)
    return FaultKind.DMA, text or f"reason {number:#04x}, which is not in the table"


class AmdFlags(IntFlag):
    """The flags of an event log entry, from GN on (48882, 2.5.3)."""

    GN = 0x001
    NX = 0x002
    US = 0x004
    I = 0x008  # noqa: E741
    PR = 0x010
    RW = 0x020
    PE = 0x040
    RZ = 0x080
    TR = 0x100


AMD_EVENTS = {
    "ILLEGAL_DEV_TABLE_ENTRY": (FaultKind.OTHER, "device table entry is illegal"),
    "IO_PAGE_FAULT": (FaultKind.DMA, "page fault"),
    "DEV_TAB_HARDWARE_ERROR": (FaultKind.OTHER, "device table could not be read"),
    "PAGE_TAB_HARDWARE_ERROR": (FaultKind.OTHER, "page table could not be read"),
    "ILLEGAL_COMMAND_ERROR": (FaultKind.OTHER, "the kernel's command is illegal"),
    "COMMAND_HARDWARE_ERROR": (FaultKind.OTHER, "command buffer could not be read"),
    "IOTLB_INV_TIMEOUT": (FaultKind.OTHER, "the function did not answer an invalidation of its TLB"),
    "INVALID_DEVICE_REQUEST": (FaultKind.DMA, "request of a kind that the function is not allowed"),
    "INVALID_PPR_REQUEST": (FaultKind.OTHER, "page request that is not allowed"),
    "EVENT_COUNTER_ZERO": (FaultKind.OTHER, "event counter reached zero"),
    "RMP_HW_ERROR": (FaultKind.OTHER, "reverse map table could not be read"),
    "RMP_PAGE_FAULT": (FaultKind.DMA, "memory belongs to another (reverse map table)"),
}


def amd_reason(event: str, flags: AmdFlags) -> tuple[FaultKind, str]:
    """What an AMD-Vi event means, its flags considered for page faults."""
    kind, text = AMD_EVENTS.get(event, (FaultKind.OTHER, f"event {event}, which is not in the table"))
    if event == "IO_PAGE_FAULT":
        if AmdFlags.I in flags:
            text = "interrupt entry not present" if AmdFlags.PR not in flags else "interrupt not allowed"
            return FaultKind.INTERRUPT, text
        if AmdFlags.RZ in flags:
            return kind, "reserved field set in page table entry"
        if AmdFlags.PR not in flags:
            return kind, "nothing mapped there"
        if AmdFlags.PE in flags:
            return kind, f"no {'write' if AmdFlags.RW in flags else 'read'} permission"
    return (FaultKind.INTERRUPT if AmdFlags.I in flags else kind), text
