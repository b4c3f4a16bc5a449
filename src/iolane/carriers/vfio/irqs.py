"""Interrupts of a function as VFIO gives them, and the calls that set them."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from iolane.carriers.vfio.ioctl import Descriptor, VfioError
from iolane.uapi.vfio import Ioctl, IrqInfo, IrqSet
from iolane.uapi.vfio_layouts import IRQ_INFO, IRQ_SET

NO_EVENTFD = -1
"""VFIO_DEVICE_SET_IRQS: takes an eventfd away, or leaves a vector without."""


@dataclass(frozen=True, slots=True)
class VfioIrq:
    """Interrupts of one kind."""

    index: int
    count: int
    flags: IrqInfo

    @property
    def maskable(self) -> bool:
        """`mask` and `unmask` work."""
        return bool(self.flags & IrqInfo.MASKABLE)

    @property
    def automasked(self) -> bool:
        """Each interrupt masks it, until it is unmasked (INTx)."""
        return bool(self.flags & IrqInfo.AUTOMASKED)

    @property
    def resizable(self) -> bool:
        """Vectors may be added while others are enabled; without, all are disabled first."""
        return not self.flags & IrqInfo.NORESIZE


def irq_of(device: Descriptor, index: int) -> VfioIrq:
    """VFIO_DEVICE_GET_IRQ_INFO; a count of 0 where the function has none of the kind."""
    buffer = bytearray(IRQ_INFO.pack(IRQ_INFO.size, 0, index, 0))
    try:
        device.call(Ioctl.DEVICE_GET_IRQ_INFO, buffer, f"interrupts {index}")
    except VfioError:  # EINVAL: a kind that this function can't have, such as ERR without PCI Express
        return VfioIrq(index, 0, IrqInfo(0))
    _, flags, _, count = IRQ_INFO.unpack(buffer)
    return VfioIrq(index, count, IrqInfo(flags))


def set_irqs(
    device: Descriptor,
    index: int,
    action: IrqSet,
    *,
    start: int = 0,
    count: int | None = None,
    eventfds: Sequence[int | None] | None = None,
) -> None:
    """VFIO_DEVICE_SET_IRQS: with eventfds, or by `count` without data.

    Raises:
        VfioError: refused; fewer vectors can be had than were asked for; errno ENOSPC then.
    """
    if eventfds is None:
        data, number, extra = IrqSet.DATA_NONE, count or 0, b""
    else:
        data, number = IrqSet.DATA_EVENTFD, len(eventfds)
        fds = [NO_EVENTFD if fd is None else fd for fd in eventfds]
        extra = Struct(f"={number}i").pack(*fds)
    request = IRQ_SET.pack(IRQ_SET.size + len(extra), data | action, index, start, number) + extra
    what = f"interrupts {index}, {action.name} from {start}, {number}"
    fewer = device.call(Ioctl.DEVICE_SET_IRQS, bytearray(request), what)
    if fewer > 0:
        raise VfioError(
            f"{device.name}: only {fewer} vectors can be had, not {start + number}",
            errno=errno.ENOSPC,
            remedy="the host has run out of interrupt vectors; enable fewer",
        )
