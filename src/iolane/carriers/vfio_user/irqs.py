"""Interrupts: which there are, and the eventfds that the client gives for them."""

from __future__ import annotations

from iolane.carriers.vfio_user.protocol import (
    IRQ_ACTION_MASK,
    IRQ_COUNT,
    IRQ_DATA_MASK,
    IRQ_INFO,
    IRQ_SET,
    IrqAction,
    IrqData,
    IrqFlag,
)
from iolane.carriers.vfio_user.rejection import RefusedError, Rejection
from iolane.carriers.vfio_user.session import Reply, Request, Session
from iolane.carriers.vfio_user.unmasking import Unmasking
from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptGroup, InterruptIndex

ONE_DATA = frozenset({IrqData.NONE, IrqData.BOOL, IrqData.EVENTFD})
ONE_ACTION = frozenset({IrqAction.MASK, IrqAction.UNMASK, IrqAction.TRIGGER})


class IrqCommands:
    """GET_IRQ_INFO and SET_IRQS."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._unmasking = Unmasking(session.device.name, session.device.lock)

    def close(self) -> None:
        """The client is gone; not under the device's lock."""
        self._unmasking.close()

    def _group(self, index: int) -> InterruptGroup:
        if index >= IRQ_COUNT:
            raise RefusedError(Rejection.IRQ_INDEX, f"{index}")
        return self._session.device.interrupts.group(InterruptIndex(index))

    def info(self, request: Request) -> Reply:
        """ "VFIO_USER_DEVICE_GET_IRQ_INFO".

        No NORESIZE: vectors may be connected one by one, which spares QEMU sending the whole set at
        each vector that the guest enables.
        """
        argsz, _, index, _ = request.unpack(IRQ_INFO)
        if argsz < IRQ_INFO.size:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for IRQ info")
        group = self._group(index)
        flags = IrqFlag(0)
        if group.count:
            flags |= IrqFlag.EVENTFD
        if group.count and group.automasked:
            flags |= IrqFlag.MASKABLE | IrqFlag.AUTOMASKED
        return Reply(IRQ_INFO.pack(IRQ_INFO.size, flags, index, group.count))

    def set(self, request: Request) -> Reply:
        """ "VFIO_USER_DEVICE_SET_IRQS"."""
        argsz, flags, index, start, count = request.unpack(IRQ_SET)
        if argsz < IRQ_SET.size:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for SET_IRQS")
        data, action = flags & IRQ_DATA_MASK, flags & IRQ_ACTION_MASK
        if flags & ~(IRQ_DATA_MASK | IRQ_ACTION_MASK) or data not in ONE_DATA or action not in ONE_ACTION:
            raise RefusedError(Rejection.IRQ_FLAGS, f"{flags:#x}")
        group = self._group(index)
        extra = len(request.payload) - IRQ_SET.size
        if data == IrqData.BOOL and extra != count:
            raise RefusedError(Rejection.PAYLOAD_SIZE, f"{extra} booleans for {count} vectors")
        if request.fds and data != IrqData.EVENTFD:
            raise RefusedError(Rejection.FDS_UNWANTED, "SET_IRQS without DATA_EVENTFD")
        with self._session.device.lock:
            if not count:
                self._disable(group, data, action, start)
                return Reply()
            if start + count > group.count:
                raise RefusedError(
                    Rejection.IRQ_RANGE, f"{start} + {count} of {group.count} {group.index.name}"
                )
            vectors = range(start, start + count)
            if data == IrqData.EVENTFD:
                self._connect(group, action, vectors, request)
            else:
                chosen = bytes(request.payload[IRQ_SET.size :]) if data == IrqData.BOOL else b"\1" * count
                self._act(group, action, [vector for vector, on in zip(vectors, chosen, strict=True) if on])
        return Reply()

    def _disable(self, group: InterruptGroup, data: int, action: int, start: int) -> None:
        """ "a count (and start) of 0, with data flags of VFIO_IRQ_SET_DATA_NONE disables all interrupts of
        the index".
        """
        if data != IrqData.NONE or action != IrqAction.TRIGGER or start:
            raise RefusedError(Rejection.IRQ_FLAGS, "a count of 0")
        group.disconnect_all()
        for vector in range(group.count if group.automasked else 0):
            self._unmasking.forget(group, vector)

    def _connect(self, group: InterruptGroup, action: int, vectors: range, request: Request) -> None:
        """Connect eventfds, or without any disconnect; all of a message or none."""
        if action != IrqAction.TRIGGER:
            self._connect_unmask(group, action, vectors, request)
            return
        if request.fds and len(request.fds) != len(vectors):
            raise RefusedError(Rejection.IRQ_FDS, f"{len(request.fds)} for {len(vectors)} vectors")
        fds: list[int | None] = [None] * len(vectors)
        if request.fds:
            fds = [request.take_fd() for _ in vectors]
        try:
            group.connect_range(vectors.start, fds)
        except IolaneError as error:
            raise RefusedError(Rejection.IRQ_NOT_EVENTFD, str(error)) from None

    def _connect_unmask(self, group: InterruptGroup, action: int, vectors: range, request: Request) -> None:
        """An eventfd that unmasks: hardware takes it itself, for a model we listen to it."""
        if action != IrqAction.UNMASK or not group.automasked or len(vectors) != 1 or len(request.fds) != 1:
            raise RefusedError(Rejection.IRQ_ACTION, "an eventfd to mask or unmask")
        fd = request.take_fd()
        try:
            if not group.connect_unmask(vectors.start, fd):
                self._unmasking.listen(group, vectors.start, fd)
        except IolaneError as error:
            raise RefusedError(Rejection.IRQ_NOT_EVENTFD, str(error)) from None

    def _act(self, group: InterruptGroup, action: int, vectors: list[int]) -> None:
        if action != IrqAction.TRIGGER and not group.automasked:
            raise RefusedError(Rejection.IRQ_ACTION, f"{group.index.name} can't be masked")
        act = {IrqAction.MASK: group.mask, IrqAction.UNMASK: group.unmask, IrqAction.TRIGGER: group.trigger}
        for vector in vectors:
            act[IrqAction(action)](vector)
