"""The requests about rings ("Ring states")."""

from __future__ import annotations

from collections.abc import Callable

from iolane.carriers.descriptors import prepare_signal
from iolane.carriers.vhost_user.protocol import (
    VRING_ADDRESS,
    VRING_FLAG_LOG,
    VRING_INDEX_MASK,
    VRING_NO_FD,
    VRING_STATE,
)
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection
from iolane.carriers.vhost_user.session import Session
from iolane.carriers.vhost_user.vring import SIGNALS, Addresses, Vring
from iolane.carriers.vhost_user.wire import Message, Reply
from iolane.errors import IolaneError

LARGEST_RING = 32768


class VringCommands:
    """SET_VRING_*, GET_VRING_BASE. Every ring that has become complete is started behind each."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _state(self, message: Message) -> tuple[Vring, int]:
        index, num = message.unpack(VRING_STATE)
        return self._session.vring(index), num

    def set_num(self, message: Message) -> None:
        """The ring's size. The front end chooses it, whatever the device would have."""
        vring, num = self._state(message)
        if not 0 < num <= LARGEST_RING or num & (num - 1):
            raise RefusedError(Rejection.VRING_NUM, f"{num}")
        if vring.running and num != vring.size:
            raise RefusedError(Rejection.VRING_RUNNING, f"the size of ring {vring.index}")
        vring.size = num
        self._session.start_ready(vring)

    def set_base(self, message: Message) -> None:
        """Where to go on. Not sent by every front end: it starts at 0."""
        vring, num = self._state(message)
        if num > 0xFFFF:
            raise RefusedError(Rejection.VRING_BASE, f"{num:#x}")
        if vring.running:
            raise RefusedError(Rejection.VRING_RUNNING, f"the base of ring {vring.index}")
        vring.base = num

    def get_base(self, message: Message) -> Reply:
        """Stop the ring, and say where to go on: "stop ring upon receiving GET_VRING_BASE".

        That is the index of the next available ring entry that is to be processed: a chain that breaks a rule
        of the ring is not behind it, one that the device took and refused is. The ring does not start again
        before another SET_VRING_KICK.
        """
        vring, _ = self._state(message)
        self._session.stop(vring)
        vring.forget_kick()
        return Reply(VRING_STATE.pack(vring.index, vring.base))

    def set_address(self, message: Message) -> None:
        """Where the ring lies. On a running ring only the log flag may change: a migration starts or ends."""
        index, flags, descriptors, used, available, log = message.unpack(VRING_ADDRESS)
        vring = self._session.vring(index)
        addresses = Addresses(descriptors, used, available, log)
        logged = bool(flags & VRING_FLAG_LOG)
        if logged:
            self._check_log(vring, log)
        if not vring.running:
            vring.addresses, vring.logged = addresses, logged
            self._session.start_ready(vring)
        elif vring.addresses is None or not addresses.same_ring(vring.addresses):
            raise RefusedError(Rejection.VRING_RUNNING, f"the addresses of ring {index}")
        elif (addresses, logged) != (vring.addresses, vring.logged):
            vring.addresses, vring.logged = addresses, logged
            self._session.relog()

    def _check_log(self, vring: Vring, address: int) -> None:
        """ "The bit offset of the last byte of the ring must fall within the size supplied by
        VhostUserLog".
        """
        log = self._session.log
        if log is not None and address + 6 + 8 * vring.size > log.pages << 12:
            raise RefusedError(Rejection.LOG_ADDRESS, f"{address:#x} of ring {vring.index}")

    def _descriptor(self, message: Message) -> tuple[Vring, int | None]:
        """The ring that a descriptor is for, and the descriptor, taken and checked."""
        value = message.u64()
        vring = self._session.vring(value & VRING_INDEX_MASK)
        if value & VRING_NO_FD:
            if message.fds:
                raise RefusedError(Rejection.FDS_COUNT, "a descriptor, and the flag that there is none")
            return vring, None
        if len(message.fds) != 1:
            raise RefusedError(Rejection.FDS_COUNT, f"{len(message.fds)} for ring {vring.index}")
        try:
            prepare_signal(message.fds[0], *SIGNALS)
        except IolaneError as error:
            raise RefusedError(Rejection.FD_KIND, str(error)) from None
        return vring, message.take_fd()

    def set_kick(self, message: Message) -> None:
        """The driver's kicks; without a descriptor the ring is polled."""
        vring, fd = self._descriptor(message)
        self._exchange(vring, lambda: vring.set_kick(fd))
        self._session.start_ready(vring)

    def set_call(self, message: Message) -> None:
        """The driver's interrupts. May come before anything else, and while the ring runs (a guest that masks
        its vector); it is signalled then, as an interrupt may have gone to the earlier one.
        """
        vring, fd = self._descriptor(message)
        self._exchange(vring, lambda: vring.set_call(fd))
        if vring.running:
            vring.call()

    def _exchange(self, vring: Vring, change: Callable[[], None]) -> None:
        if vring.running:
            self._session.plane.rewire(vring, change)
        else:
            change()

    def set_error(self, message: Message) -> None:
        """What to signal when the driver breaks the rules."""
        vring, fd = self._descriptor(message)
        with self._session.device.lock:
            vring.set_error(fd)

    def set_enable(self, message: Message) -> None:
        """Enable or disable a ring. A disabled one is not served; User Mode Linux stops its rings so."""
        vring, num = self._state(message)
        if num not in (0, 1):
            raise RefusedError(Rejection.VRING_BASE, f"SET_VRING_ENABLE with {num}")
        vring.enabled = bool(num)
        if num:
            self._session.start_ready(vring)
        else:
            self._session.stop(vring)
