"""The front end's side of vhost-user, message by message: for tests, measurements and our own hypervisor."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from iolane.carriers.descriptors import close_all
from iolane.carriers.vhost_user.channel import Channel, VhostUserError, unpack
from iolane.carriers.vhost_user.inflight import Shape
from iolane.carriers.vhost_user.memory import Region
from iolane.carriers.vhost_user.protocol import (
    CONFIG,
    DEVICE_STATE,
    HEADER,
    INFLIGHT,
    LOG,
    MEMORY_HEADER,
    MEMORY_REGION,
    PHASE_STOPPED,
    SINGLE_REGION,
    U64,
    VRING_ADDRESS,
    VRING_FLAG_LOG,
    VRING_NO_FD,
    VRING_STATE,
    BackendRequest,
    ConfigFlag,
    Request,
    TransferDirection,
)
from iolane.carriers.vhost_user.shared_memory import SharedMemory


@dataclass(frozen=True, slots=True)
class Inflight:
    """The in-flight area as the back end made it; the descriptor is the caller's."""

    fd: int
    shape: Shape


class VhostUserClient(Channel):
    """Asks a back end things, one at a time, from one thread. Refusals raise VhostUserError.

    Descriptors that are given stay the caller's; those that are returned are the caller's, too.
    """

    # Features.

    def set_owner(self) -> None:
        """SET_OWNER."""
        self.tell(Request.SET_OWNER)

    def get_features(self) -> int:
        """GET_FEATURES."""
        return self.ask_u64(Request.GET_FEATURES)

    def set_features(self, features: int) -> None:
        """SET_FEATURES."""
        self.tell(Request.SET_FEATURES, U64.pack(features))

    def get_protocol_features(self) -> int:
        """GET_PROTOCOL_FEATURES."""
        return self.ask_u64(Request.GET_PROTOCOL_FEATURES)

    def set_protocol_features(self, features: int) -> None:
        """SET_PROTOCOL_FEATURES; from here on requests are acknowledged if REPLY_ACK is among them."""
        self.send(Request.SET_PROTOCOL_FEATURES, U64.pack(features))
        self.protocol_features = features

    def get_queue_num(self) -> int:
        """GET_QUEUE_NUM."""
        return self.ask_u64(Request.GET_QUEUE_NUM)

    # Memory.

    def set_mem_table(self, memory: Iterable[SharedMemory]) -> None:
        """SET_MEM_TABLE."""
        listed = list(memory)
        payload = MEMORY_HEADER.pack(len(listed), 0)
        payload += b"".join(MEMORY_REGION.pack(*each.region) for each in listed)
        self.tell(Request.SET_MEM_TABLE, payload, [each.fd for each in listed])

    def get_max_mem_slots(self) -> int:
        """GET_MAX_MEM_SLOTS."""
        return self.ask_u64(Request.GET_MAX_MEM_SLOTS)

    def add_mem_reg(self, region: Region, fd: int) -> None:
        """ADD_MEM_REG."""
        self.tell(Request.ADD_MEM_REG, SINGLE_REGION.pack(0, *region), [fd])

    def rem_mem_reg(self, region: Region) -> None:
        """REM_MEM_REG."""
        self.tell(Request.REM_MEM_REG, SINGLE_REGION.pack(0, *region))

    def set_log_base(self, fd: int, size: int, offset: int = 0) -> None:
        """SET_LOG_BASE, with LOG_SHMFD."""
        self.ask(Request.SET_LOG_BASE, LOG.pack(size, offset), [fd])

    def set_log_fd(self, fd: int) -> None:
        """SET_LOG_FD."""
        self.tell(Request.SET_LOG_FD, b"", [fd])

    # Rings.

    def set_vring_num(self, index: int, num: int) -> None:
        """SET_VRING_NUM."""
        self.tell(Request.SET_VRING_NUM, VRING_STATE.pack(index, num))

    def set_vring_addr(
        self, index: int, descriptors: int, used: int, available: int, *, log: int | None = None
    ) -> None:
        """SET_VRING_ADDR, by user addresses; `log`: the used ring is logged at this guest address."""
        flags = 0 if log is None else VRING_FLAG_LOG
        payload = VRING_ADDRESS.pack(index, flags, descriptors, used, available, log or 0)
        self.tell(Request.SET_VRING_ADDR, payload)

    def set_vring_base(self, index: int, num: int) -> None:
        """SET_VRING_BASE."""
        self.tell(Request.SET_VRING_BASE, VRING_STATE.pack(index, num))

    def get_vring_base(self, index: int) -> int:
        """GET_VRING_BASE: the ring stops."""
        payload = self.ask(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0))
        answered, num = unpack(VRING_STATE, payload, Request.GET_VRING_BASE)
        if answered != index:
            raise VhostUserError(f"GET_VRING_BASE of ring {index}: an answer for ring {answered}")
        return int(num)

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """SET_VRING_KICK; None: the back end polls."""
        self._signal(Request.SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """SET_VRING_CALL; None: we poll."""
        self._signal(Request.SET_VRING_CALL, index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """SET_VRING_ERR."""
        self._signal(Request.SET_VRING_ERR, index, fd)

    def _signal(self, request: Request, index: int, fd: int | None) -> None:
        if fd is None:
            self.tell(request, U64.pack(index | VRING_NO_FD))
        else:
            self.tell(request, U64.pack(index), [fd])

    def set_vring_enable(self, index: int, enable: bool) -> None:
        """SET_VRING_ENABLE."""
        self.tell(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, int(enable)))

    # Configuration.

    def get_config(self, offset: int, size: int) -> bytes:
        """GET_CONFIG."""
        request = Request.GET_CONFIG
        payload = self.ask(request, CONFIG.pack(offset, size, 0) + bytes(size))
        if not payload:
            raise VhostUserError(f"GET_CONFIG of {size} bytes at {offset} was refused")
        if len(payload) != CONFIG.size + size:
            raise VhostUserError(f"GET_CONFIG of {size} bytes: a reply of {len(payload)}")
        return payload[CONFIG.size :]

    def set_config(self, offset: int, data: bytes, flag: ConfigFlag = ConfigFlag.WRITABLE) -> None:
        """SET_CONFIG."""
        self.tell(Request.SET_CONFIG, CONFIG.pack(offset, len(data), flag) + data)

    # In-flight.

    def get_inflight_fd(self, queues: int, queue_size: int) -> Inflight:
        """GET_INFLIGHT_FD."""
        self.send(Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, queues, queue_size))
        message = self.reply(Request.GET_INFLIGHT_FD)
        shape = Shape(*unpack(INFLIGHT, message.payload, Request.GET_INFLIGHT_FD))
        if not shape.mmap_size or len(message.fds) != 1:
            close_all(message.fds)
            raise VhostUserError("GET_INFLIGHT_FD was refused")
        return Inflight(message.fds[0], shape)

    def set_inflight_fd(self, inflight: Inflight) -> None:
        """SET_INFLIGHT_FD."""
        self.tell(Request.SET_INFLIGHT_FD, INFLIGHT.pack(*inflight.shape), [inflight.fd])

    # Device.

    def reset_device(self) -> None:
        """RESET_DEVICE."""
        self.tell(Request.RESET_DEVICE)

    def get_status(self) -> int:
        """GET_STATUS."""
        return self.ask_u64(Request.GET_STATUS)

    def set_status(self, status: int) -> None:
        """SET_STATUS."""
        self.tell(Request.SET_STATUS, U64.pack(status))

    def send_rarp(self, mac: bytes) -> None:
        """SEND_RARP."""
        self.tell(Request.SEND_RARP, mac.ljust(8, b"\0"))

    def set_mtu(self, mtu: int) -> None:
        """NET_SET_MTU."""
        self.tell(Request.NET_SET_MTU, U64.pack(mtu))

    def open_backend_channel(self) -> BackendChannel:
        """SET_BACKEND_REQ_FD with one end of a new pair; the other end is returned."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.tell(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
        ours.settimeout(self.socket.gettimeout())
        return BackendChannel(ours)

    # State.

    def save_state(self) -> bytes:
        """The device's state; no ring may run."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with open(reader, "rb") as pipe:
            try:
                self._transfer(TransferDirection.SAVE, writer)
            finally:
                os.close(writer)
            state = pipe.read()
        self.check_device_state()
        return state

    def load_state(self, state: bytes) -> None:
        """Give the device a state; no ring may run."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with open(writer, "wb") as pipe:
            try:
                self._transfer(TransferDirection.LOAD, reader)
            finally:
                os.close(reader)
            pipe.write(state)
        self.check_device_state()

    def _transfer(self, direction: TransferDirection, fd: int) -> None:
        payload = DEVICE_STATE.pack(direction, PHASE_STOPPED)
        answer = self.ask_u64(Request.SET_DEVICE_STATE_FD, payload, [fd])
        if answer & 0xFF:
            error = answer & 0xFF
            raise VhostUserError(f"SET_DEVICE_STATE_FD: {os.strerror(error)}", errno=error)
        if not answer & VRING_NO_FD:
            raise VhostUserError("SET_DEVICE_STATE_FD: the back end wants to use a pipe of its own")

    def check_device_state(self) -> None:
        """CHECK_DEVICE_STATE."""
        error = self.ask_u64(Request.CHECK_DEVICE_STATE)
        if error:
            raise VhostUserError(f"CHECK_DEVICE_STATE: {os.strerror(error)}", errno=error)


class BackendChannel:
    """The back end's own requests, as they come."""

    def __init__(self, channel: socket.socket) -> None:
        self.socket = channel
        self._lock = threading.Lock()

    def receive(self) -> int:
        """The next request. Raises TimeoutError, EOFError."""
        with self._lock:
            data = self.socket.recv(HEADER.size, socket.MSG_WAITALL)
        if len(data) < HEADER.size:
            raise EOFError
        request, _, size = HEADER.unpack(data)
        if size:
            self.socket.recv(size, socket.MSG_WAITALL)
        return BackendRequest(request)

    def close(self) -> None:
        """Close it."""
        self.socket.close()
