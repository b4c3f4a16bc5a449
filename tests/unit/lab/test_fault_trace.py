"""QEMU's trace of what its IOMMU blocks, taken apart."""

from __future__ import annotations

from iolane.lab.fault_trace import Blocked, TraceRecord, parse_trace
from iolane.model.pci.pcie_id import PcieId


def test_a_blocked_dma_of_vtd() -> None:
    text = "vtd_dmar_fault sid 0x200 fault 5 addr 0xdead0000 write 1\n"
    assert parse_trace(text) == [
        TraceRecord("vtd_dmar_fault", Blocked.DMA, PcieId(0, 2, 0, 0), 0xDEAD0000, True, 5)
    ]
    assert parse_trace("81@1690.5:" + text) == parse_trace(text)


def test_a_blocked_interrupt_of_vtd() -> None:
    """Fault Recording Register (VT-d 11.4.14): source id in bits 79:64, reason in 103:96, index in 63:48."""
    high, low = 1 << 63 | 0x22 << 32 | 0x108, 0x1234 << 48
    [record] = parse_trace(f"vtd_frr_new index 0 high {high:#x} low {low:#x}")
    assert record.blocked is Blocked.INTERRUPT
    assert (record.source, record.reason, record.index) == (PcieId(0, 1, 1, 0), 0x22, 0x1234)


def test_the_record_of_a_dma_fault_is_not_told_twice() -> None:
    high = 1 << 63 | 5 << 32 | 0x200
    assert parse_trace(f"vtd_frr_new index 0 high {high:#x} low 0xdead0000") == []


def test_amdvi_tells_the_address_alone() -> None:
    [record] = parse_trace("amdvi_page_fault error: page fault accessing guest physical address 0xdead0000\n")
    assert (record.blocked, record.address, record.source) == (Blocked.DMA, 0xDEAD0000, None)
    [interrupt] = parse_trace("amdvi_ir_err MSI is not remapped")
    assert (interrupt.blocked, interrupt.detail) == (Blocked.INTERRUPT, "MSI is not remapped")


def test_other_lines_are_skipped() -> None:
    assert parse_trace("qemu: something\namdvi_mmio_read x\nvtd_inv_qi_tail write tail 3\n") == []
