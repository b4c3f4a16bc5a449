"""A function behind VFIO, played by a device class of iolane."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Mapping as Table
from struct import Struct

from iolane.model.interrupts import InterruptIndex, TableOwner
from iolane.model.pci import Command, PciDevice, PcieId, Type0Header
from iolane.model.region import Area, Region, RegionIndex
from iolane.uapi.vfio import (
    PCI_NUM_IRQS,
    PCI_NUM_REGIONS,
    DeviceFlags,
    Ioctl,
    IrqInfo,
    IrqSet,
    PciIrq,
    RegionCap,
    RegionFlags,
)
from iolane.uapi.vfio_layouts import (
    DEVICE_INFO,
    INFO_CAP_HEADER,
    IRQ_INFO,
    IRQ_SET,
    PCI_DEPENDENT_DEVICE,
    PCI_HOT_RESET_INFO,
    REGION_INFO,
    REGION_INFO_CAP_SPARSE_MMAP,
    REGION_SPARSE_MMAP_AREA,
)

OFFSET_SHIFT = 40
"""Region `index` begins at index << 40 in the device's descriptor, as with Linux."""
VECTORS = {PciIrq.MSI: InterruptIndex.MSI, PciIrq.MSIX: InterruptIndex.MSIX}


class FakeFunction:
    """What the kernel knows of one function.

    Args:
        address: of the function.
        device: plays the hardware.
        group: its IOMMU group.
        mappable: areas of regions that may be mapped; they are memory that only stores bytes, and `memory`
            shows it.
        dynamic: MSI-X vectors may be added while others are enabled (Linux 6.4); without, NORESIZE.
        can_reset: VFIO_DEVICE_FLAGS_RESET.

    Attributes:
        vectors_available: of the host; None for as many as there are.
        siblings: functions that a reset of the bus would reset, too.
        resets: how often it was reset.
    """

    def __init__(
        self,
        address: PcieId,
        device: PciDevice,
        group: int,
        *,
        mappable: Table[int, list[Area]] | None = None,
        dynamic: bool = False,
        can_reset: bool = True,
    ) -> None:
        self.address = address
        self.device = device
        self.group = group
        self.mappable = dict(mappable or {})
        self.dynamic = dynamic
        self.can_reset = can_reset
        self.vectors_available: int | None = None
        self.siblings: list[tuple[int, PcieId]] = []
        self.resets = 0
        self.enabled: dict[int, int] = {}
        """Kind of interrupts -> vectors that are enabled."""
        self.notifications: dict[int, int] = {}
        self._unmask_fd = -1
        self.memory_fd = os.memfd_create(f"fake-{address}", os.MFD_CLOEXEC)
        os.ftruncate(self.memory_fd, PCI_NUM_REGIONS << OFFSET_SHIFT)

    def memory(self, index: int, area: Area) -> mmap.mmap:
        """The hardware's side of an area that may be mapped."""
        return mmap.mmap(self.memory_fd, area.size, offset=(index << OFFSET_SHIFT) + area.offset)

    def open(self) -> None:
        """What vfio_pci_core_enable does."""
        with self.device.lock:
            self.device.interrupts.table_owner = TableOwner.CARRIER

    def close(self) -> None:
        """What vfio_pci_core_disable does: no interrupts, no bus master, reset."""
        self._release_interrupts()
        with self.device.lock:
            self.device.reset()

    # Reads and writes of the descriptor.

    def pread(self, length: int, position: int) -> bytes:
        index, offset = position >> OFFSET_SHIFT, position & ((1 << OFFSET_SHIFT) - 1)
        if self._mapped(index, offset, length):
            return os.pread(self.memory_fd, length, position)
        region = self._region(index, offset, length)
        with self.device.lock:
            return region.read_bytes(offset, length)

    def pwrite(self, data: bytes, position: int) -> int:
        index, offset = position >> OFFSET_SHIFT, position & ((1 << OFFSET_SHIFT) - 1)
        if self._mapped(index, offset, len(data)):
            return os.pwrite(self.memory_fd, data, position)
        region = self._region(index, offset, len(data))
        with self.device.lock:
            region.write_bytes(offset, data)
        return len(data)

    def _mapped(self, index: int, offset: int, length: int) -> bool:
        return any(
            area.offset <= offset and offset + length <= area.offset + area.size
            for area in self.mappable.get(index, ())
        )

    def _region(self, index: int, offset: int, length: int) -> Region:
        region = self.device.regions[index] if index < PCI_NUM_REGIONS else None
        if region is None or offset + length > region.size:
            raise _fault(errno.EINVAL)
        if index < RegionIndex.ROM and not self._decodes(io=region.io):
            raise _fault(errno.EIO)
        return region

    def _decodes(self, *, io: bool) -> bool:
        command: Command = self.device.config.header.COMMAND
        return bool(command.IO if io else command.MEMORY)

    # Calls.

    def ioctl(self, request: int, argument: bytearray | int) -> int:
        if request == Ioctl.DEVICE_RESET:
            return self._reset()
        if not isinstance(argument, bytearray):
            raise _fault(errno.EFAULT)
        calls = {
            Ioctl.DEVICE_GET_INFO: self._info,
            Ioctl.DEVICE_GET_REGION_INFO: self._region_info,
            Ioctl.DEVICE_GET_IRQ_INFO: self._irq_info,
            Ioctl.DEVICE_SET_IRQS: self._set_irqs,
            Ioctl.DEVICE_GET_PCI_HOT_RESET_INFO: self._hot_reset_info,
            Ioctl.DEVICE_PCI_HOT_RESET: self._hot_reset,
        }
        call = next((call for number, call in calls.items() if number == request), None)
        if call is None:
            raise _fault(errno.ENOTTY)
        return call(argument)

    def _info(self, argument: bytearray) -> int:
        _check_argsz(argument, 16)
        flags = DeviceFlags.PCI | (DeviceFlags.RESET if self.can_reset else 0)
        answer = DEVICE_INFO.pack(len(argument), flags, PCI_NUM_REGIONS, PCI_NUM_IRQS, 0, 0)
        argument[:] = answer[: len(argument)]
        return 0

    def _region_info(self, argument: bytearray) -> int:
        _check_argsz(argument, REGION_INFO.size)
        argsz, _, index, _, _, _ = REGION_INFO.unpack_from(argument)
        if index >= PCI_NUM_REGIONS or index == RegionIndex.VGA:
            raise _fault(errno.EINVAL)
        region = self.device.regions[index]
        size = 0 if region is None else region.size
        flags = RegionFlags.READ | RegionFlags.WRITE if size else RegionFlags(0)
        areas = self.mappable.get(index, [])
        caps = b""
        if areas:
            flags |= RegionFlags.MMAP
            if areas == [Area(0, size)]:
                caps = INFO_CAP_HEADER.pack(RegionCap.MSIX_MAPPABLE, 1, 0)
            else:
                caps = REGION_INFO_CAP_SPARSE_MMAP.pack(RegionCap.SPARSE_MMAP, 1, 0, len(areas), 0)
                caps += b"".join(REGION_SPARSE_MMAP_AREA.pack(area.offset, area.size) for area in areas)
            flags |= RegionFlags.CAPS
        needed = REGION_INFO.size + len(caps)
        place = REGION_INFO.size if caps and argsz >= needed else 0
        answer = REGION_INFO.pack(needed if caps else argsz, flags, index, place, size, index << OFFSET_SHIFT)
        argument[: REGION_INFO.size] = answer
        if place:
            argument[place : place + len(caps)] = caps
        return 0

    def _count(self, index: int) -> int:
        if index in (PciIrq.ERR, PciIrq.REQ):
            return 1
        return self.device.interrupts.group(InterruptIndex(index)).count

    def _irq_info(self, argument: bytearray) -> int:
        _check_argsz(argument, IRQ_INFO.size)
        argsz, _, index, _ = IRQ_INFO.unpack(argument)
        if index >= PCI_NUM_IRQS:
            raise _fault(errno.EINVAL)
        flags = IrqInfo.EVENTFD
        if index == PciIrq.INTX:
            flags |= IrqInfo.MASKABLE | IrqInfo.AUTOMASKED
        elif not (index == PciIrq.MSIX and self.dynamic):
            flags |= IrqInfo.NORESIZE
        argument[:] = IRQ_INFO.pack(argsz, flags, index, self._count(index))
        return 0

    # VFIO_DEVICE_SET_IRQS, as drivers/vfio/pci/vfio_pci_intrs.c has it.

    def _set_irqs(self, argument: bytearray) -> int:
        _check_argsz(argument, IRQ_SET.size)
        argsz, flags, index, start, count = IRQ_SET.unpack_from(argument)
        if index >= PCI_NUM_IRQS or start + count > self._count(index) or (not count and start):
            raise _fault(errno.EINVAL)
        data = flags & IrqSet.DATA_TYPE_MASK
        fds: list[int] | None = None
        if data == IrqSet.DATA_EVENTFD:
            if argsz - IRQ_SET.size < 4 * count or not count:
                raise _fault(errno.EINVAL)
            fds = list(Struct(f"={count}i").unpack_from(argument, IRQ_SET.size))
        elif data != IrqSet.DATA_NONE:
            raise _fault(errno.ENOTTY)
        action = flags & IrqSet.ACTION_TYPE_MASK
        with self.device.lock:
            if index == PciIrq.INTX:
                return self._set_intx(action, count, fds)
            if action != IrqSet.ACTION_TRIGGER:
                raise _fault(errno.ENOTTY)
            if index in VECTORS:
                return self._set_vectors(PciIrq(index), start, count, fds)
            return self._set_notification(index, count, fds)

    def _set_intx(self, action: int, count: int, fds: list[int] | None) -> int:
        group = self.device.interrupts.group(InterruptIndex.INTX)
        on = PciIrq.INTX in self.enabled
        if self.enabled and not on:
            raise _fault(errno.EINVAL)
        if action == IrqSet.ACTION_TRIGGER and not count:
            self._release_interrupts()
        elif count != 1 or (not on and (fds is None or action != IrqSet.ACTION_TRIGGER)):
            raise _fault(errno.EINVAL)
        elif action == IrqSet.ACTION_TRIGGER and fds is None:
            group.trigger(0)
        elif action == IrqSet.ACTION_TRIGGER and fds is not None:
            self.enabled[PciIrq.INTX] = 1
            self._connect(InterruptIndex.INTX, 0, fds[0])
        elif action == IrqSet.ACTION_MASK:
            group.mask(0)
        elif fds is None:
            group.unmask(0)
        else:
            self._unmask_fd = fds[0]
        return 0

    def _set_vectors(self, index: PciIrq, start: int, count: int, fds: list[int] | None) -> int:
        kind = VECTORS[index]
        if self.enabled and index not in self.enabled:
            raise _fault(errno.EINVAL)
        if fds is None:
            if not count:
                self._release_interrupts()
                return 0
            if index not in self.enabled or start + count > self.enabled[index]:
                raise _fault(errno.EINVAL)
            for vector in range(start, start + count):
                self.device.interrupts.group(kind).trigger(vector)
            return 0
        if index not in self.enabled:
            available = self.vectors_available
            if available is not None and start + count > available:
                return available
            self.enabled[index] = start + count
        elif start + count > self.enabled[index]:
            if index == PciIrq.MSI or not self.dynamic:
                raise _fault(errno.EINVAL)
            self.enabled[index] = start + count
        for number, fd in enumerate(fds):
            self._connect(kind, start + number, fd)
        return 0

    def _connect(self, kind: InterruptIndex, vector: int, fd: int) -> None:
        group = self.device.interrupts.group(kind)
        try:
            group.connect(vector, None if fd < 0 else os.dup(fd))
        except OSError:
            raise _fault(errno.EBADF) from None

    def _set_notification(self, index: int, count: int, fds: list[int] | None) -> int:
        if fds is None:
            if count and index in self.notifications:
                os.eventfd_write(self.notifications[index], 1)
            return 0
        earlier = self.notifications.pop(index, None)
        if earlier is not None:
            os.close(earlier)
        if fds[0] >= 0:
            self.notifications[index] = os.dup(fds[0])
        return 0

    def _release_interrupts(self) -> None:
        for kind in self.enabled:
            self.device.interrupts.group(InterruptIndex(kind)).disconnect_all()
        self.enabled.clear()
        self._unmask_fd = -1

    def resample(self) -> None:
        """What the kernel does when the unmask eventfd is signalled."""
        if self._unmask_fd >= 0:
            os.eventfd_read(self._unmask_fd)
            with self.device.lock:
                self.device.interrupts.group(InterruptIndex.INTX).unmask(0)

    def notify(self, index: PciIrq) -> None:
        """The error or request notification."""
        os.eventfd_write(self.notifications[index], 1)

    # Reset.

    def _reset(self) -> int:
        if not self.can_reset:
            raise _fault(errno.EINVAL)
        self.do_reset()
        return 0

    def do_reset(self) -> None:
        """Reset the hardware; the kernel then restores the header."""
        with self.device.lock:
            header = self.device.config.header
            command, bars = header.COMMAND, [int(bar) for bar in header.BAR]
            self.device.reset()
            self.device.config.write(Type0Header.COMMAND.offset, 2, command)
            for number, bar in enumerate(bars):
                self.device.config.write(Type0Header.BAR.element_offset(number), 4, bar)
        self.resets += 1

    def _hot_reset_info(self, argument: bytearray) -> int:
        affected = [(self.group, self.address), *self.siblings]
        room = (len(argument) - PCI_HOT_RESET_INFO.size) // PCI_DEPENDENT_DEVICE.size
        argument[: PCI_HOT_RESET_INFO.size] = PCI_HOT_RESET_INFO.pack(len(argument), 0, len(affected))
        if room < len(affected):
            raise _fault(errno.ENOSPC)
        for number, (group, address) in enumerate(affected):
            place = PCI_HOT_RESET_INFO.size + number * PCI_DEPENDENT_DEVICE.size
            routing = address.routing_id
            PCI_DEPENDENT_DEVICE.pack_into(
                argument, place, group, address.segment, routing >> 8, routing & 0xFF
            )
        return 0

    def _hot_reset(self, argument: bytearray) -> int:
        raise _fault(errno.EINVAL)  # the kernel that knows groups does it


def _check_argsz(argument: bytearray, least: int) -> None:
    if int.from_bytes(argument[:4], "little") < least:
        raise _fault(errno.EINVAL)


def _fault(number: int) -> OSError:
    return OSError(number, os.strerror(number))
