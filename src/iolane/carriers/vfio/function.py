"""A physical PCI function, held through VFIO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from types import TracebackType
from typing import Self, TypeVar

from iolane.carriers.vfio.address_space import DmaAddressSpace
from iolane.carriers.vfio.hot_reset import Dependent, dependents, hot_reset
from iolane.carriers.vfio.ioctl import Descriptor, VfioError, failure
from iolane.carriers.vfio.irqs import VfioIrq, irq_of, set_irqs
from iolane.carriers.vfio.live_registers import LiveRegion, live_registers
from iolane.carriers.vfio.region import VfioRegion, region_of
from iolane.memory.mapping import Mapping
from iolane.model.pci.pcie_id import PcieId
from iolane.model.registers import RegisterMap
from iolane.uapi.pci import Command, Header
from iolane.uapi.vfio import DeviceFlags, Ioctl, IrqSet, PciIrq, PciRegion
from iolane.uapi.vfio_layouts import DEVICE_INFO

M = TypeVar("M", bound=RegisterMap)
REGIONS_LIMIT = 64
"""Regions that are looked at: beyond the nine of PCI there may be a few of the device's driver."""


class VfioFunction:
    """One function: its regions, interrupts, reset, and the address space of its DMA.

    Args:
        address: of the function.
        device: its descriptor, which this object then owns.
        space: where its DMA goes.
        owns_space: close `space` with the function.
        groups: descriptors of the groups that are held with it by number, for a hot reset; none with an
            iommufd.

    Raises:
        VfioError: the kernel does not describe the function.
    """

    def __init__(
        self,
        address: PcieId,
        device: Descriptor,
        space: DmaAddressSpace,
        *,
        owns_space: bool = True,
        groups: Callable[[], Table[int, int]] = dict,
    ) -> None:
        self.address = address
        self.space = space
        self._device = device
        self._owns_space = owns_space
        self._groups = groups
        self._live: dict[int, LiveRegion] = {}
        info = bytearray(DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0, 0, 0))
        device.call(Ioctl.DEVICE_GET_INFO, info, "what the device is")
        _, flags, regions, irqs, _, _ = DEVICE_INFO.unpack(info)
        self.flags = DeviceFlags(flags)
        """What VFIO says of the device: RESET, PCI."""
        if not self.flags & DeviceFlags.PCI:
            raise VfioError(f"{address} is no PCI function for VFIO: {self.flags!r}")
        self.regions: tuple[VfioRegion | None, ...] = tuple(
            self._region(index) for index in range(min(regions, REGIONS_LIMIT))
        )
        """By VFIO's index: six BARs, ROM, config space, VGA; None where there is none."""
        self.irqs: tuple[VfioIrq, ...] = tuple(irq_of(device, index) for index in range(irqs))
        """By VFIO's index: INTx, MSI, MSI-X, error, request."""

    def _region(self, index: int) -> VfioRegion | None:
        try:
            return region_of(self._device, index)
        except VfioError:  # EINVAL: VGA, of a function that is none
            return None

    @property
    def fd(self) -> int:
        """The device's descriptor, whose bytes from `region.offset` on are the regions."""
        return self._device.fd

    # Regions.

    def region(self, index: int) -> VfioRegion:
        """The region of `index`. Raises `VfioError` where there is none."""
        found = self.regions[index] if 0 <= index < len(self.regions) else None
        if found is None:
            raise VfioError(f"{self.address} has no region {index}")
        return found

    def _checked(self, index: int, offset: int, size: int) -> VfioRegion:
        region = self.region(index)
        if offset < 0 or size < 0 or offset + size > region.size:
            raise VfioError(
                f"{self.address}: {offset:#x} + {size:#x} leaves region {index} of {region.size:#x} bytes"
            )
        return region

    def read(self, index: int, offset: int, length: int) -> bytes:
        """Bytes of a region through the kernel, which makes naturally aligned accesses of at most 4 (or 8)
        bytes of them.

        Raises:
            VfioError: they leave the region, or the function does not answer (memory decoding off, D3).
        """
        region = self._checked(index, offset, length)
        try:
            data = self._device.kernel.pread(self._device.fd, length, region.offset + offset)
        except OSError as error:
            raise failure(f"{self.address}: read of region {index} at {offset:#x}", error) from None
        if len(data) != length:
            raise VfioError(f"{self.address}: read of region {index}: {len(data)} bytes, not {length}")
        return data

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Write bytes of a region through the kernel. Raises `VfioError` as `read` does."""
        region = self._checked(index, offset, len(data))
        try:
            written = self._device.kernel.pwrite(self._device.fd, data, region.offset + offset)
        except OSError as error:
            raise failure(f"{self.address}: write of region {index} at {offset:#x}", error) from None
        if written != len(data):
            raise VfioError(f"{self.address}: write of region {index}: {written} bytes, not {len(data)}")

    def map(self, index: int, offset: int, size: int) -> Mapping:
        """Map a part of a region into this process. Loads and stores of 1, 2, 4 and 8 bytes through a view
        of that format are single accesses.

        While memory decoding is off, or the function is in D3, an access gives up the mapping (`broken`).

        Raises:
            VfioError: the region can't be mapped there.
            MappingError: the kernel does not map it.
        """
        region = self._checked(index, offset, size)
        if region.holding(offset, size) is None:
            areas = ", ".join(f"{area.offset:#x} + {area.size:#x}" for area in region.mmap_areas) or "none"
            raise VfioError(
                f"{self.address}: {offset:#x} + {size:#x} of region {index} can't be mapped",
                remedy=f"areas that can be: {areas}",
            )
        return self._device.kernel.map(
            self._device.fd, size, region.offset + offset, writable=region.writable
        )

    def registers(self, index: int, registers: type[M], offset: int = 0) -> M:
        """A register map on the hardware: `regs = function.registers(0, NvmeRegisters)`, then
        `regs.CC = regs.CC.replace(EN=1)`. Each access is one of the register's own width.
        """
        self._checked(index, offset, registers.layout.size)
        live = self._live.get(index)
        if live is None:
            live = self._live[index] = LiveRegion(self, index)
        return live_registers(registers, live, offset)

    def set_command(self, *, memory: bool = True, io: bool = True, bus_master: bool = True) -> None:
        """Write COMMAND: what the function decodes, and whether it may do DMA and send messages."""
        command = int.from_bytes(self.read(PciRegion.CONFIG, Header.COMMAND, 2), "little")
        for bit, on in ((Command.MEMORY, memory), (Command.IO, io), (Command.MASTER, bus_master)):
            command = command | bit if on else command & ~bit
        self.write(PciRegion.CONFIG, Header.COMMAND, command.to_bytes(2, "little"))

    # Interrupts.

    def irq(self, index: int) -> VfioIrq:
        """The interrupts of a kind; a count of 0 where there are none."""
        return self.irqs[index]

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int | None]) -> None:
        """Signal these eventfds, which stay the caller's, from vector `start` on; None for no eventfd.

        The first call for MSI or MSI-X enables as many vectors as it names. Without `resizable` more can only
        be had by disabling all. Only one of INTx, MSI and MSI-X is enabled at a time.

        Raises:
            VfioError: refused, or fewer vectors can be had.
        """
        set_irqs(self._device, index, IrqSet.ACTION_TRIGGER, start=start, eventfds=eventfds)

    def disable_irqs(self, index: int) -> None:
        """Disable the interrupts of a kind. Raises `VfioError`."""
        set_irqs(self._device, index, IrqSet.ACTION_TRIGGER)

    def mask_irqs(self, index: int, start: int = 0, count: int = 1) -> None:
        """Mask vectors that VFIO can mask (INTx). Raises `VfioError`."""
        set_irqs(self._device, index, IrqSet.ACTION_MASK, start=start, count=count)

    def unmask_irqs(self, index: int, start: int = 0, count: int = 1) -> None:
        """Unmask vectors; INTx is signalled again if it is still asserted. Raises `VfioError`."""
        set_irqs(self._device, index, IrqSet.ACTION_UNMASK, start=start, count=count)

    def set_unmask_eventfd(self, index: int, eventfd: int | None) -> None:
        """Unmask when this eventfd is signalled, for instance by KVM when the guest ends its interrupt (the
        resample descriptor of an irqfd). None ends that. Raises `VfioError`.
        """
        set_irqs(self._device, index, IrqSet.ACTION_UNMASK, eventfds=[eventfd])

    def trigger_irqs(self, index: int, start: int = 0, count: int = 1) -> None:
        """Signal eventfds as if the function had interrupted, to test the wiring. Raises `VfioError`."""
        set_irqs(self._device, index, IrqSet.ACTION_TRIGGER, start=start, count=count)

    def on_error(self, eventfd: int | None) -> None:
        """Signal this eventfd at a fatal error of the function (AER): it should be taken from its guest."""
        self.set_irqs(PciIrq.ERR, 0, [eventfd])

    def on_request(self, eventfd: int | None) -> None:
        """Signal this eventfd when the host wants the function back (its driver is being unbound)."""
        self.set_irqs(PciIrq.REQ, 0, [eventfd])

    # Reset.

    @property
    def can_reset(self) -> bool:
        """Whether VFIO can reset the function by itself (FLR, power management or a bus of its own)."""
        return bool(self.flags & DeviceFlags.RESET)

    def reset(self) -> None:
        """Reset the function: alone where it can be, else its whole bus, if all there is ours.

        Config space is restored by the kernel; interrupts stay set.

        Raises:
            VfioError: there is no way to reset it.
        """
        self.forget_mappings()
        if self.can_reset:
            self._device.call(Ioctl.DEVICE_RESET, 0, "reset")
            return
        hot_reset(self._device, self._groups())

    def hot_reset(self) -> None:
        """Reset the function's bus, with every function on it. Raises `VfioError`."""
        self.forget_mappings()
        hot_reset(self._device, self._groups())

    def hot_reset_dependents(self) -> list[Dependent]:
        """The functions that a hot reset would reset, this one among them. Raises `VfioError`."""
        return dependents(self._device)

    # The end.

    def forget_mappings(self) -> None:
        """Map registers anew at their next access: a mapping that an access found switched off stays so."""
        for live in self._live.values():
            live.close()

    def close(self) -> None:
        """Give the function back; interrupts and mappings end. Idempotent."""
        for live in self._live.values():
            live.close()
        self._device.close()
        if self._owns_space:
            self.space.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
