"""A virtio device that has one of everything, and a raw way to talk to its server."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from iolane.carriers.vhost_user.protocol import HEADER, U64, VRING_STATE, HeaderFlag, Request
from iolane.errors import IolaneError
from iolane.memory.ring import BlockPath
from iolane.model.registers import Register8, Register32, RegisterMap, register
from iolane.model.virtio import Chain, VirtioDevice, Virtqueue
from iolane.testing.drivers.virtio import DriverMemory, DriverRing, Used
from iolane.uapi.virtio import DeviceType

MEMORY = 1 << 20
ECHO, HELD = 0, 1
WANTED = 1 << 32 | 1 << 30 | 0b11
"""Features that front ends of these tests accept: their drivers know no EVENT_IDX."""


class SampleConfig(RegisterMap):
    LENGTH = register(0x0, Register32, access="ro", reset=77)
    MODE = register(0x4, Register8)
    EXTRA = register(0x5, Register8)


class Sample(VirtioDevice):
    """Queue 0 gives back what it reads, turned round. Queue 1 does so in tasks that wait for `gate`.

    On the compiled data plane its rings are compiled ones, which leave every chain to Python.
    """

    device_type = DeviceType.CONSOLE
    Config = SampleConfig
    config: SampleConfig

    def __init__(self) -> None:
        super().__init__([64, 64], queue_names=["echo", "held"])
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[bytes] = []
        self.modes: list[int] = []
        self.config.hook_write(SampleConfig.MODE, lambda value: self.modes.append(int(value)))
        self.refuse = False
        self.ready = 0

    def offered_features(self) -> int:
        return 0b11

    def check_features(self, features: int) -> bool:
        """Feature 1 needs feature 0."""
        return features & 0b11 != 0b10

    def compiled_path(self, queue: Virtqueue) -> BlockPath:
        return BlockPath(-1, 0, 1, True)

    def on_driver_ok(self) -> None:
        self.ready += 1

    def on_queue_start(self, queue: Virtqueue) -> None:
        if self.refuse:
            raise IolaneError("what is behind the device is in use elsewhere")

    def handle(self, queue: Virtqueue, chain: Chain) -> None:
        data = chain.read(self.dma)
        self.seen.append(data)
        if queue.index == ECHO:
            self._answer(queue, chain, data)
        else:
            self.tasks.run(self.gate.wait, lambda _: self._answer(queue, chain, data), lambda _: None)

    def _answer(self, queue: Virtqueue, chain: Chain, data: bytes) -> None:
        queue.push(chain, chain.write(self.dma, data[::-1]))


class Network(Sample):
    """A device that is told of MTUs and announcements."""

    device_type = DeviceType.NET

    def __init__(self) -> None:
        super().__init__()
        self.announced: list[bytes] = []
        self.mtu = 1500

    def announce(self, mac: bytes) -> None:
        self.announced.append(mac)

    def set_mtu(self, mtu: int) -> None:
        if not 68 <= mtu <= 65535:
            raise IolaneError(f"no MTU can be {mtu}")
        self.mtu = mtu


class Driver:
    """The driver's side of one ring in shared memory."""

    def __init__(
        self,
        memory: DriverMemory,
        kick: Callable[[], None],
        wait: Callable[[float], bool],
        *,
        size: int = 64,
        event_idx: bool = False,
    ) -> None:
        self.ring = DriverRing(memory, size, kick, event_idx=event_idx)
        self._wait = wait

    def ask(self, data: bytes) -> bytes:
        """One request and its answer."""
        self.ring.send(data, len(data))
        self.ring.kick()
        (used,) = self.answers(1)
        return used.data

    def answers(self, count: int, timeout: float = 30) -> list[Used]:
        """Wait for `count` chains."""
        found = self.ring.collect()
        while len(found) < count:
            assert self._wait(timeout), f"{len(found)} of {count} answers"
            found += self.ring.collect()
        assert len(found) == count
        return found

    def wait_used(self, index: int, timeout: float = 30) -> None:
        """Wait for a used index; the chains are not looked at: their memory lies elsewhere."""
        while int.from_bytes(self.ring.memory.read(self.ring.used + 2, 2), "little") != index:
            assert self._wait(timeout), f"used index {index} was not reached"


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class RawFront:
    """Sends bytes, receives messages; knows nothing else."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))

    def send(
        self,
        request: int,
        payload: bytes = b"",
        *,
        flags: int = 1 | HeaderFlag.NEED_REPLY,
        size: int | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        message = HEADER.pack(request, flags, len(payload) if size is None else size) + payload
        if fds:
            socket.send_fds(self.socket, [message], list(fds))
        else:
            self.socket.sendall(message)

    def receive(self) -> tuple[int, bytes]:
        """Request and payload of the next reply. Raises EOFError."""
        request, flags, size = HEADER.unpack(self._exactly(HEADER.size))
        assert flags == 1 | HeaderFlag.REPLY
        return request, self._exactly(size)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                part = self.socket.recv(count - len(data))
            except ConnectionError:
                part = b""
            if not part:
                raise EOFError
            data += part
        return data

    def ask(self, request: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> bytes:
        """A request with a reply, or one that is to be acknowledged."""
        self.send(request, payload, fds=fds)
        answered, data = self.receive()
        assert answered == request
        return data

    def number(self, request: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> int:
        """The number that it is answered by: 0 for what succeeded, an errno."""
        value: int = U64.unpack(self.ask(request, payload, fds=fds))[0]
        return value

    def u64(self, request: int, value: int, *, fds: Sequence[int] = ()) -> int:
        """The same for a request with a number."""
        return self.number(request, U64.pack(value), fds=fds)

    def state(self, request: int, index: int, num: int) -> int:
        """The same for a request with a ring and a number."""
        return self.number(request, VRING_STATE.pack(index, num))

    def negotiate(self, protocol_features: int | None = None) -> None:
        """Take every protocol feature, or those."""
        offered = self.number(Request.GET_PROTOCOL_FEATURES)
        taken = offered if protocol_features is None else protocol_features
        assert self.u64(Request.SET_PROTOCOL_FEATURES, taken) == 0
        assert self.number(Request.SET_OWNER) == 0

    def ended(self) -> bool:
        """Whether the back end closes the connection without another word."""
        try:
            self.receive()
        except EOFError:
            return True
        return False

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawFront:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
