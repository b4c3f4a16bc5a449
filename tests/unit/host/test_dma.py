"""What a function can reach by DMA, and where that is not to be known, who alone knows."""

from __future__ import annotations

import pytest

from iolane.host.dma import AddressRange, ReservedRange, reach
from iolane.host.holding import DmaMapReport, HeldFunction
from iolane.model.pci.pcie_id import PcieId
from tests.unit.host.machine import Machine

NIC = PcieId(0, 1, 0, 0)


def made(machine: Machine, *, driver: str | None = "igb", type: str = "DMA-FQ") -> Machine:
    machine.healthy().group(1, type=type)
    folder = machine.function("0000:01:00.0", group=1, driver=driver, dma_mask_bits="64")
    machine.link(f"{folder}/iommu", "sys/devices/virtual/iommu/dmar0")
    return machine


def test_windows_are_what_is_not_reserved(machine: Machine) -> None:
    made(machine).group(
        1,
        regions="0x0 0xffffff direct-relaxable\n0xfee00000 0xfeefffff msi\n"
        "0xfd00000000 0xffffffffff reserved\n",
    )
    found = reach(machine.host, NIC)
    assert (found.iommu, found.width, found.mask_bits, found.group) == ("dmar0", 48, 64, 1)
    assert found.reserved[1:] == [
        ReservedRange(0xFEE0_0000, 0xFEEF_FFFF, "msi"),
        ReservedRange(0xFD_0000_0000, 0xFF_FFFF_FFFF, "reserved"),
    ]
    assert found.windows == [
        AddressRange(0, 0xFEDF_FFFF),
        AddressRange(0xFEF0_0000, 0xFC_FFFF_FFFF),
        AddressRange(0x100_0000_0000, (1 << 48) - 1),
    ]


@pytest.mark.parametrize(
    ("driver", "type", "now"),
    [
        ("igb", "DMA-FQ", "the buffers that its driver igb has mapped"),
        ("igb", "identity", "all of the host's memory"),
        (None, "DMA", "nothing, unless another member"),
        ("vfio-pci", "DMA-FQ", "nothing: nobody has it open"),
    ],
)
def test_in_words(machine: Machine, driver: str | None, type: str, now: str) -> None:
    found = reach(made(machine, driver=driver, type=type).host, NIC)
    assert now in found.now
    assert found.domain.startswith(type)
    assert (found.holder, found.maps) == (None, None)


def test_without_iommu(machine: Machine) -> None:
    machine.function("0000:01:00.0")
    found = reach(machine.host, NIC)
    assert found.now.startswith("all of the host's memory, unchecked: no IOMMU")
    assert (found.iommu, found.width, found.windows) == (None, None, None)


def test_held_by_an_iolane_process(machine: Machine) -> None:
    maps = [DmaMapReport(0, 0x8000_0000, "rw", "guest memory")]
    held = HeldFunction(function=str(NIC), machine="vm0", pid=812, maps=maps)
    found = reach(made(machine, driver="vfio-pci").host, NIC, {NIC: held}.get)
    assert (found.holder, found.maps) == ("vm0 (process 812)", maps)
    assert found.now == "0x80000000 bytes in 1 maps of vm0 (process 812), and interrupts given to it"


def test_held_by_others(machine: Machine) -> None:
    made(machine, driver="vfio-pci").file("proc/99/comm", "qemu-system-x86\n")
    (machine.root / "proc/99/fd").mkdir()
    (machine.root / "proc/99/fd/7").symlink_to("/dev/vfio/1")
    found = reach(machine.host, NIC)
    assert found.holder == "process 99 (qemu-system-x86)"
    assert "only that process knows it" in found.now
