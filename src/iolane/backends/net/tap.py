"""A tap: a network interface of the host whose other end is the guest (Linux, networking/tuntap).

Its packets carry the header of virtio's, so that checksums and segmentation can be left to the host's kernel,
or to the guest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence

from iolane.backends.net.base import LARGEST_FRAME, NO_OFFLOAD, NetBackend, Notify, Offload
from iolane.backends.poller import READABLE, WRITABLE, Poller
from iolane.errors import IolaneError
from iolane.memory.ring import NetPort
from iolane.uapi.tun import (
    IFF_UP,
    IFNAMSIZ,
    IFREQ,
    SIOCGIFFLAGS,
    SIOCSIFFLAGS,
    TUNGETIFF,
    TUNSETIFF,
    TUNSETOFFLOAD,
    TUNSETQUEUE,
    TUNSETVNETHDRSZ,
    TUNSETVNETLE,
    TunFlag,
)
from iolane.uapi.virtio_net import HEADER

CLONE_DEVICE = "/dev/net/tun"
ALL_OFFLOADS = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.TSO_ECN
BASE_FLAGS = TunFlag.TAP | TunFlag.NO_PI | TunFlag.VNET_HDR
MAX_QUEUES = 256
"""MAX_TAP_QUEUES of the kernel."""
_TAP = 0
"""A kind of NetPort."""
_PASSING = (errno.EAGAIN, errno.EINTR)
_REFUSED = (errno.EINVAL, errno.EIO, errno.ENOBUFS, errno.ENOMEM, errno.EFAULT)
"""The kernel does not like this packet, or the interface is down: others may pass."""


class Tap(NetBackend):
    """A tap of the host, by name. One that does not exist is made, set up, and goes with the device; that
    needs privilege.

    Args:
        interface: the tap's name.
        queues: queue pairs; a tap that exists must have been made with `multi_queue` for more than one.
    """

    def __init__(self, interface: str, *, queues: int = 1) -> None:
        if not 1 <= queues <= MAX_QUEUES:
            raise IolaneError(f"a tap has 1 to {MAX_QUEUES} queues, not {queues}")
        super().__init__(f"tap={interface}", queues=queues, offloads=ALL_OFFLOADS)
        self.interface = _checked_name(interface)
        self._buffer = memoryview(bytearray(HEADER.size + LARGEST_FRAME))
        self._wanted: dict[int, int] = {}
        self._poller: Poller | None = None
        self._lost = False
        self._attached = queues
        self._fds: list[int] = []
        existed = _exists(interface)
        try:
            for _ in range(queues):
                self._fds.append(_open_queue(interface, several=queues > 1))
            if not existed:
                _set_up(interface)
        except OSError as error:
            self.close()
            raise _failure(interface, existed, error) from error
        except BaseException:
            self.close()
            raise
        self.ports = [NetPort(_TAP, fd=fd) for fd in self._fds]
        self.connections = 1
        self.set_offloads(NO_OFFLOAD)
        self.use_queues(1)

    @property
    def connected(self) -> bool:
        """Until the interface is deleted."""
        return not self._lost

    def set_offloads(self, offloads: Offload) -> None:
        """As in the base class; the kernel finishes what the device does not want."""
        for fd in self._fds:
            with contextlib.suppress(OSError):  # of an interface that is gone
                fcntl.ioctl(fd, TUNSETOFFLOAD, int(offloads))

    def use_queues(self, count: int) -> None:
        """As in the base class; the kernel steers flows to the queues that they were sent by."""
        while self.queues > 1 and self._attached != count and self._fds:
            attach = self._attached < count
            index = self._attached if attach else self._attached - 1
            flag = TunFlag.ATTACH_QUEUE if attach else TunFlag.DETACH_QUEUE
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fds[index], TUNSETQUEUE, IFREQ.pack(b"", flag))
            self._attached += 1 if attach else -1

    def start(self, notify: Notify) -> None:
        """As in the base class."""
        self.stop()
        super().start(notify)
        self._poller = Poller(f"iolane-{self.name}")

    def stop(self) -> None:
        """As in the base class."""
        super().stop()
        poller, self._poller = self._poller, None
        self._wanted.clear()
        if poller is not None:
            poller.close()

    def service(self) -> None:
        """As in the base class: what was announced is asked for anew when the device pulls."""
        self._wanted.clear()

    def receive(self, queue: int) -> memoryview | None:
        """As in the base class."""
        if self._lost or not self._fds:
            return None
        try:
            count = os.readv(self._fds[queue], [self._buffer])
        except OSError as error:
            if error.errno in _PASSING:
                self._want(queue, READABLE)
            else:
                self._lose()
            return None
        self.packets_read += 1
        return self._buffer[:count]

    def send(self, queue: int, header: bytes, frame: Sequence[memoryview | bytes]) -> bool:
        """As in the base class."""
        if self._lost or not self._fds:
            self.packets_dropped += 1
            return True
        attached = min(queue, self._attached - 1)  # a pair's transmit queue may run longer than its other
        try:
            os.writev(self._fds[attached], _few([header, *frame]))
        except OSError as error:
            if error.errno in _PASSING:
                self._want(attached, WRITABLE)
                return False
            self.packets_dropped += 1
            self.errors += 1
            if error.errno not in _REFUSED:
                self._lose()
            return True
        self.packets_written += 1
        return True

    def _want(self, queue: int, events: int) -> None:
        if self._poller is None:
            return
        wanted = self._wanted.get(queue, 0) | events
        if wanted != self._wanted.get(queue):
            self._wanted[queue] = wanted
            self._poller.arm(self._fds[queue], wanted, lambda: self._notify(queue))

    def _lose(self) -> None:
        """The interface is gone: its descriptors stay ready for ever, so nobody waits for them any more."""
        self.errors += 1
        self._lost = True
        for port in self.ports:
            port.disconnect()
        if self._poller is not None:
            for fd in self._fds:
                self._poller.forget(fd)
            self._poller.call_at(0.0, lambda: self._notify(0))

    def close(self) -> None:
        """As in the base class."""
        self.stop()
        for port in self.ports:
            port.disconnect()
        while self._fds:
            os.close(self._fds.pop())


def _few(pieces: list[memoryview | bytes]) -> list[memoryview | bytes]:
    """As many pieces as the kernel takes in one call."""
    return pieces if len(pieces) <= 1024 else [b"".join(pieces)]


def _checked_name(interface: str) -> str:
    if not interface or len(interface) >= IFNAMSIZ or not interface.isascii():
        raise IolaneError(f"'{interface}' is no name of an interface", remedy="1 to 15 ASCII characters")
    if any(character.isspace() or character in "/:%" for character in interface):
        raise IolaneError(
            f"'{interface}' is no name of an interface", remedy="without spaces, '/', ':' and '%'"
        )
    return interface


def _open_queue(interface: str, *, several: bool) -> int:
    fd = os.open(CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _attach(fd, interface, several)
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER.size))
        fcntl.ioctl(fd, TUNSETVNETLE, struct.pack("i", 1))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _attach(fd: int, interface: str, several: bool) -> None:
    """A tap that was made with `multi_queue` is only ever opened with it, others only without."""
    name = interface.encode()
    flags = BASE_FLAGS | (TunFlag.MULTI_QUEUE if several else 0)
    try:
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(name, flags))
    except OSError as error:
        if several or error.errno != errno.EINVAL:
            raise
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(name, flags | TunFlag.MULTI_QUEUE))
    made = IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))[0].rstrip(b"\0")
    if made != name:
        raise IolaneError(f"the kernel made the tap '{made.decode()}', not '{interface}'")


def _exists(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


def _set_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = interface.encode()
        flags = IFREQ.unpack(fcntl.ioctl(any_socket, SIOCGIFFLAGS, IFREQ.pack(name, 0)))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, IFREQ.pack(name, flags | IFF_UP))


def _failure(interface: str, existed: bool, error: OSError) -> IolaneError:
    make = (
        f"sudo ip tuntap add dev {interface} mode tap user $USER multi_queue; sudo ip link set {interface} up"
    )
    if error.errno in (errno.EPERM, errno.EACCES):
        what = "is another user's" if existed else "does not exist, and may not be made"
        return IolaneError(f"the tap {interface} {what}", remedy=make)
    if error.errno == errno.EBUSY:
        return IolaneError(f"the tap {interface} is in use", remedy="give each guest a tap of its own")
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) and not existed:
        return IolaneError(f"there is no {CLONE_DEVICE}", remedy="modprobe tun")
    if error.errno == errno.EINVAL and existed:
        return IolaneError(
            f"{interface} is no tap that can have these queues",
            remedy=f"ip tuntap del dev {interface} mode tap; {make}",
        )
    return IolaneError(f"tap {interface}: {(error.strerror or str(error)).lower()}")
