"""A whole front end: what a hypervisor keeps of a device, so that its back end may die and come back."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from iolane.carriers.vhost_user.channel import VhostUserError
from iolane.carriers.vhost_user.client import BackendChannel, Inflight, VhostUserClient
from iolane.carriers.vhost_user.protocol import ProtocolFeature, VhostFeature, bit
from iolane.carriers.vhost_user.shared_memory import SharedMemory

USED = (
    ProtocolFeature.MQ,
    ProtocolFeature.LOG_SHMFD,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.DEVICE_STATE,
)
"""Protocol features that are used where they are offered. STATUS is left out: only few front ends have it."""


class RingLayout(Protocol):
    """Where a driver's ring lies, by guest addresses."""

    size: int
    descriptors: int
    available: int
    used: int


class FrontRing:
    """A ring of the front end's: its place, its signals, and whether it is started."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.layout: RingLayout | None = None
        self.started = False
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def kick(self) -> None:
        """Tell the back end of available chains."""
        with suppress(BlockingIOError):
            os.eventfd_write(self.kick_fd, 1)

    def wait_call(self, timeout: float | None = None) -> bool:
        """Wait for an interrupt; False when the time is over."""
        return _take(self.call_fd, timeout)

    def broken(self, timeout: float = 0) -> bool:
        """Whether the back end says that the ring is broken."""
        return _take(self.error_fd, timeout)

    def close(self) -> None:
        """Close its signals."""
        for fd in (self.kick_fd, self.call_fd, self.error_fd):
            os.close(fd)


class FrontEnd:
    """Connects to a back end, shares memory and starts rings; after `reconnect` everything is as before.

    Args:
        path: the back end's socket.
        memory: what is shared.
        rings: how many rings.
        wanted: mask of the device's features that are accepted where they are offered; by default all.
        inflight_size: size of the rings that are tracked in flight; 0: none are.
        protocol: protocol features that are used where they are offered.
        slots: share memory by ADD_MEM_REG rather than by SET_MEM_TABLE.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        memory: Sequence[SharedMemory],
        *,
        rings: int = 1,
        wanted: int = (1 << 64) - 1,
        inflight_size: int = 256,
        protocol: Sequence[ProtocolFeature] = USED,
        slots: bool = False,
    ) -> None:
        self.path = path
        self.memory = list(memory)
        self.rings = [FrontRing(index) for index in range(rings)]
        self.features = 0
        """Agreed on, the carrier's own included."""
        self.inflight: Inflight | None = None
        self.backend_channel: BackendChannel | None = None
        self._wanted = wanted & ~bit(VhostFeature.LOG_ALL)
        self._inflight_size = inflight_size
        self._protocol = sum(bit(feature) for feature in protocol)
        self._slots = slots
        self._client: VhostUserClient | None = None

    @property
    def client(self) -> VhostUserClient:
        """The connection."""
        if self._client is None:
            raise VhostUserError("the front end is not connected")
        return self._client

    def connect(self) -> None:
        """Connect, negotiate, share the memory; rings that were started are started again."""
        self.disconnect()
        client = VhostUserClient(self.path)
        self._client = client
        try:
            self._negotiate(client)
            self._share(client)
            for ring in self.rings:
                if ring.started:
                    self._start(ring, self._used_index(ring))
        except BaseException:
            self.disconnect()
            raise

    reconnect = connect

    def _negotiate(self, client: VhostUserClient) -> None:
        offered = client.get_features()
        if not offered & bit(VhostFeature.PROTOCOL_FEATURES):
            raise VhostUserError("the back end has no protocol features")
        client.set_protocol_features(client.get_protocol_features() & self._protocol)
        client.set_owner()
        features = offered & self._wanted | bit(VhostFeature.PROTOCOL_FEATURES)
        if self.features and features != self.features:
            changed = features ^ self.features
            raise VhostUserError(f"the back end came back with other features: {changed:#x} changed")
        self.features = features
        if client.negotiated(ProtocolFeature.BACKEND_REQ):
            self.backend_channel = client.open_backend_channel()

    def _share(self, client: VhostUserClient) -> None:
        if self._inflight_size and client.negotiated(ProtocolFeature.INFLIGHT_SHMFD):
            if self.inflight is None:
                self.inflight = client.get_inflight_fd(len(self.rings), self._inflight_size)
            client.set_inflight_fd(self.inflight)
        client.set_features(self.features)
        if self._slots:
            for memory in self.memory:
                client.add_mem_reg(memory.region, memory.fd)
        else:
            client.set_mem_table(self.memory)

    # Rings.

    def start(self, index: int, layout: RingLayout, base: int = 0) -> FrontRing:
        """Start a ring that lies in the shared memory."""
        ring = self.rings[index]
        ring.layout = layout
        self._start(ring, base)
        ring.started = True
        return ring

    def _start(self, ring: FrontRing, base: int) -> None:
        client, index, layout = self.client, ring.index, ring.layout
        assert layout is not None
        client.set_vring_num(index, layout.size)
        client.set_vring_base(index, base)
        self.set_address(index)
        client.set_vring_err(index, ring.error_fd)
        client.set_vring_call(index, ring.call_fd)
        client.set_vring_kick(index, ring.kick_fd)
        client.set_vring_enable(index, True)

    def set_address(self, index: int, *, log: int | None = None) -> None:
        """Name a ring's place; `log`: from now on its used ring is logged at this guest address."""
        layout = self.rings[index].layout
        assert layout is not None
        places = (layout.descriptors, layout.used, layout.available)
        self.client.set_vring_addr(index, *(self.user_address(place) for place in places), log=log)

    def stop(self, index: int) -> int:
        """Stop a ring; where it would go on."""
        ring = self.rings[index]
        ring.started = False
        return self.client.get_vring_base(index)

    def kicker(self, index: int) -> Callable[[], None]:
        """The call that kicks a ring: it outlives back ends."""
        return self.rings[index].kick

    def _used_index(self, ring: FrontRing) -> int:
        """Where a back end that died got to, as far as the driver knows."""
        assert ring.layout is not None
        at = ring.layout.used + 2
        memory = self._memory_of(at)
        offset = at - memory.guest_address
        return int.from_bytes(memory.view[offset : offset + 2], "little")

    def user_address(self, guest_address: int) -> int:
        """By which name the messages about rings call what lies at a guest address."""
        return self._memory_of(guest_address).user_address(guest_address)

    def _memory_of(self, guest_address: int) -> SharedMemory:
        for memory in self.memory:
            if memory.holds(guest_address):
                return memory
        raise VhostUserError(f"{guest_address:#x} is not in the shared memory")

    # The end.

    def disconnect(self) -> None:
        """Drop the connection, and nothing else."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
        channel, self.backend_channel = self.backend_channel, None
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Disconnect, close signals and the in-flight area. The memory stays the caller's."""
        self.disconnect()
        for ring in self.rings:
            ring.close()
        self.rings.clear()
        if self.inflight is not None:
            os.close(self.inflight.fd)
            self.inflight = None

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _take(fd: int, timeout: float | None) -> bool:
    """Wait for an eventfd and reset it."""
    ready, _, _ = select.select([fd], [], [], timeout)
    if not ready:
        return False
    with suppress(BlockingIOError):
        os.eventfd_read(fd)
    return True
