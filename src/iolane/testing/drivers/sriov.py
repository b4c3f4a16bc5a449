"""A driver of a physical function and of its virtual functions, over the device itself.

It knows of the VFs what the SR-IOV capability tells it, and reaches their BARs by address, as a machine
would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from iolane.model.interrupts import InterruptMode
from iolane.model.pci import ExtendedCapabilityId, PhysicalFunction, VirtualFunction
from iolane.model.pci.caps.sriov import SriovControl, SriovRegisters
from iolane.model.registers import RegisterArraySpec, RegisterSpec
from iolane.testing.drivers.function import FunctionDriver

P = TypeVar("P", bound=PhysicalFunction)
V = TypeVar("V", bound=VirtualFunction)

APERTURES_START = 0xE000_0000
EXTENDED_START = 0x100
Spec = RegisterSpec[Any] | RegisterArraySpec[Any]
ENABLE = SriovControl.make(VF_ENABLE=1, VF_MSE=1)


class VirtualDriver(FunctionDriver[V]):
    """Drives one VF. Its BARs are where the PF's VF BARs say."""

    def __init__(self, device: V, physical: PhysicalFunction, *, memory: int = 1 << 20) -> None:
        self.physical = physical
        super().__init__(device, memory=memory)

    def _address(self, offset: int, bar: int) -> int:
        base = self.physical.vfs.address_of(self.device.number, bar)
        assert base is not None, f"BAR {bar} of {self.device.name} decodes nothing"
        return base + offset

    def read(self, offset: int, size: int, *, bar: int = 0) -> int:
        """Read a BAR, as a trap at its address does."""
        return read(self.physical, self._address(offset, bar), size)

    def write(self, offset: int, size: int, value: int, *, bar: int = 0) -> None:
        """Write a BAR, as a trap at its address does."""
        write(self.physical, self._address(offset, bar), size, value)

    def close(self) -> None:
        """Let go of the VF; its PF closes it."""
        self.device.disconnect()
        self._close_eventfds()


def read(physical: PhysicalFunction, address: int, size: int) -> int:
    """A load from the VFs' apertures; all ones where no VF answers."""
    found = physical.vfs.find(address)
    if found is None:
        return (1 << 8 * size) - 1
    with found.function.lock:
        return found.region.read(found.offset, size)


def write(physical: PhysicalFunction, address: int, size: int, value: int) -> None:
    """A store to the VFs' apertures; it goes nowhere where no VF answers."""
    found = physical.vfs.find(address)
    if found is not None:
        with found.function.lock:
            found.region.write(found.offset, size, value)


class SriovDriver(FunctionDriver[P]):
    """Drives a PF: finds the capability and does what Linux's `drivers/pci/iov.c` does with it."""

    def __init__(self, device: P, *, memory: int = 0) -> None:
        super().__init__(device, memory=memory, interrupts=InterruptMode.NONE)
        self.offset = self._find()

    def _find(self) -> int:
        offset = EXTENDED_START
        while offset:
            header = self.device.config.read(offset, 4)
            if header & 0xFFFF == ExtendedCapabilityId.SRIOV:
                return offset
            offset = header >> 20
        raise AssertionError("no SR-IOV capability")

    def get(self, register: Spec, index: int = 0) -> int:
        """Read a register of the capability."""
        with self.device.lock:
            return self.device.config.read(self.offset + register.element_offset(index), register.width)

    def put(self, register: Spec, value: int, index: int = 0) -> None:
        """Write a register of the capability."""
        with self.device.lock:
            self.device.config.write(self.offset + register.element_offset(index), register.width, value)

    def place(self, page_size: int = 4096) -> dict[int, int]:
        """Choose the page size, size the VF BARs and give them addresses. Sizes of one VF's BARs by index."""
        self.put(SriovRegisters.SYSTEM_PAGE_SIZE, page_size >> 12)
        total = self.get(SriovRegisters.TOTAL_VFS)
        address, sizes, index = APERTURES_START, {}, 0
        while index < 6:
            self.put(SriovRegisters.VF_BAR, 0xFFFF_FFFF, index)
            probed = self.get(SriovRegisters.VF_BAR, index)
            if probed:
                sizes[index] = size = (~(probed & ~0xF) & 0xFFFF_FFFF) + 1
                address = -(-address // size) * size
                self.put(SriovRegisters.VF_BAR, address, index)
                address += size * total
                if probed & 4:
                    index += 1
                    self.put(SriovRegisters.VF_BAR, 0, index)
            index += 1
        return sizes

    def enable_vfs(self, count: int) -> None:
        """Make `count` VFs exist, with their memory."""
        self.put(SriovRegisters.NUM_VFS, count)
        self.put(SriovRegisters.CONTROL, ENABLE)

    def disable_vfs(self) -> None:
        """Make them vanish."""
        self.put(SriovRegisters.CONTROL, 0)
        self.put(SriovRegisters.NUM_VFS, 0)

    @contextmanager
    def virtual(self, number: int, *, memory: int = 1 << 20) -> Iterator[VirtualDriver[VirtualFunction]]:
        """A driver of VF `number`, found at its routing id."""
        first, stride = self.get(SriovRegisters.FIRST_VF_OFFSET), self.get(SriovRegisters.VF_STRIDE)
        function = self.device.vfs.function_at(first + number * stride)
        assert function is not None, f"there is no VF {number}"
        driver: VirtualDriver[VirtualFunction] = VirtualDriver(function, self.device, memory=memory)
        try:
            yield driver
        finally:
            driver.close()
