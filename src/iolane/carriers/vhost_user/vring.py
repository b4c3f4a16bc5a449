"""One ring: what the front end said of it, and its way to the data plane ("Ring states")."""

from __future__ import annotations

import os
from dataclasses import dataclass

from iolane.carriers.descriptors import SignalKind
from iolane.carriers.vhost_user.inflight import InflightQueue
from iolane.carriers.vhost_user.log import SharedLog
from iolane.memory.signals import Signaller
from iolane.model.virtio import Virtqueue


@dataclass(frozen=True, slots=True)
class Addresses:
    """SET_VRING_ADDR: user addresses, and the guest address that stands for the used ring in the log."""

    descriptors: int
    used: int
    available: int
    log: int

    def same_ring(self, other: Addresses) -> bool:
        """Whether both name one place, wherever it is logged."""
        return (self.descriptors, self.used, self.available) == (
            other.descriptors,
            other.used,
            other.available,
        )


@dataclass(frozen=True, slots=True)
class Start:
    """How a ring is started.

    Attributes:
        descriptors, available, used: guest addresses.
        last_available: index of the next chain to take.
        used_index: what the used ring says.
        in_flight: heads to be done first, in order.
        inflight: where chains in flight are noted, or None.
        log: where writes to the used ring, and by compiled code to buffers, are marked, or None; the used
            ring is at `log_address` there.
    """

    descriptors: int
    available: int
    used: int
    last_available: int
    used_index: int
    in_flight: tuple[int, ...] = ()
    inflight: InflightQueue | None = None
    log: SharedLog | None = None
    log_address: int = 0


class Vring:
    """One ring of a connection.

    The connection's thread changes it; `call` and `broke` are called by whichever thread serves the ring.

    Attributes:
        queue: the device's side.
        signaller: what signals the front end.
        size, base: set by the front end; 0 and 0 before.
        kick, call_fd, error_fd: descriptors of the front end's, or None. They are eventfds, pipes or
            sockets.
        polled: the front end gives no kick and wants the ring to be looked at.
        enabled: SET_VRING_ENABLE said so, or protocol features were not negotiated.
        running: the data plane serves it.
        start: how it was started last, and as it is logged since.
        broken: the driver broke the rules; it does not run again before it was stopped.
    """

    def __init__(self, queue: Virtqueue, signaller: Signaller) -> None:
        self.queue = queue
        self.signaller = signaller
        self.index = queue.index
        self.size = 0
        self.base = 0
        self.addresses: Addresses | None = None
        self.logged = False
        """VHOST_VRING_F_LOG: writes to the used ring are logged."""
        self.kick: int | None = None
        self.polled = False
        self.call_fd: int | None = None
        self.error_fd: int | None = None
        self.enabled = False
        self.running = False
        self.start: Start | None = None
        self.broken = False

    @property
    def complete(self) -> bool:
        """The front end said all that is needed to start it."""
        return bool(self.size and self.addresses and (self.kick is not None or self.polled))

    # Signals.

    def set_kick(self, fd: int | None) -> None:
        """Take a descriptor; None: poll."""
        _close(self.kick)
        self.kick = fd
        self.polled = fd is None

    def set_call(self, fd: int | None) -> None:
        """Take a descriptor; None: the front end polls."""
        _close(self.call_fd)
        self.call_fd = fd

    def set_error(self, fd: int | None) -> None:
        """Take a descriptor; None: the front end does not want to know."""
        _close(self.error_fd)
        self.error_fd = fd

    def call(self) -> None:
        """Interrupt the driver."""
        self._signal(self.call_fd)

    def broke(self) -> None:
        """The driver broke the rules (SET_VRING_ERR)."""
        self.broken = True
        self._signal(self.error_fd)

    def _signal(self, fd: int | None) -> None:
        if fd is not None:
            self.signaller.signal(fd)

    def forget_kick(self) -> None:
        """Stopped: it does not start again before it has another kick descriptor."""
        _close(self.kick)
        self.kick = None
        self.polled = False

    def close(self) -> None:
        """Close every descriptor."""
        self.forget_kick()
        self.set_call(None)
        self.set_error(None)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


SIGNALS = (SignalKind.EVENTFD, SignalKind.PIPE, SignalKind.SOCKET)
"""What kick, call and error may be. User Mode Linux is called by a socket, as eventfds raise no SIGIO."""
