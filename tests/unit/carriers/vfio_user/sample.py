"""A device that has one of everything, and a raw way to talk to its server."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from iolane.carriers.vfio_user.protocol import HEADER, HEADER_SIZE, TYPE_REPLY, HeaderFlag
from iolane.carriers.vfio_user.version import Capabilities, encode
from iolane.model.dma import DmaFault, FaultReason
from iolane.model.pci import Bar, BarKind, MemoryPart, Msi, Msix, PciDevice, ResetKind
from iolane.model.pci import Intx as IntxPin
from iolane.model.registers import Register8, Register32, Register64, RegisterMap, register, register_array

PAGE = 4096
RAM = 1 << 20
BUS_MASTER = 0x4
COMMAND = 0x4


class SampleRegisters(RegisterMap):
    PLAIN = register(0x00, Register32)
    HOOKED = register(0x04, Register32)
    WIDE = register(0x08, Register64)
    DMA_ADDRESS = register(0x10, Register64)
    DMA_VALUE = register(0x18, Register32)
    KICK = register(0x1C, Register32, access="wo")
    """1 reads 4 bytes at DMA_ADDRESS into DMA_VALUE, 2 writes them, 3 and 4 do so in a task, 5 raises."""
    BYTES = register_array(0x20, Register8, 4)


class MemoryRegisters(RegisterMap):
    FIRST = register(0x0, Register32)


class Sample(PciDevice):
    """One of everything."""

    vendor_id, device_id, class_code = 0x1234, 0x5A5A, 0xFF0000
    bar0 = Bar(SampleRegisters)
    bar1 = Bar(MemoryRegisters, size=0x4000, memory=(MemoryPart(0x1000, 0x1000), MemoryPart(0x3000, 0x1000)))
    bar2 = Bar(MemoryRegisters, kind=BarKind.IO)
    bar3 = Bar(RegisterMap, memory=(MemoryPart(0, 0x2000),))
    msix = Msix(vectors=40)
    msi = Msi(vectors=4)
    intx = IntxPin()

    def __init__(self) -> None:
        super().__init__()
        self.resets: list[ResetKind] = []
        self.disconnects = 0
        self.faults: deque[FaultReason] = deque(maxlen=16)
        self.kicked = threading.Semaphore(0)

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind)

    def on_disconnect(self) -> None:
        self.disconnects += 1

    @bar0.on_read(SampleRegisters.HOOKED)
    def read_hooked(self, value: Register32) -> int:
        return value ^ 0xFFFF_FFFF

    @bar0.on_write(SampleRegisters.KICK)
    def kick(self, value: Register32) -> None:
        if value == 5:
            raise ZeroDivisionError("a bug of the device")
        if value in (3, 4):
            self.tasks.run(lambda: None, lambda _: self.transfer(value - 2), lambda _: None)
        else:
            self.transfer(value)

    def transfer(self, what: int) -> None:
        try:
            if what == 1:
                self.bar0.DMA_VALUE = int.from_bytes(self.dma.read(self.bar0.DMA_ADDRESS, 4), "little")
            else:
                self.dma.write(self.bar0.DMA_ADDRESS, self.bar0.DMA_VALUE.to_bytes(4, "little"))
        except DmaFault as fault:
            self.faults.append(fault.reason)
        finally:
            self.kicked.release()


def memory_fd(size: int = RAM, content: bytes = b"") -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    return fd


def open_fds() -> int:
    gc.collect()  # devices of earlier tests keep descriptors of their memory files
    return len(os.listdir("/proc/self/fd"))


class RawClient:
    """Sends bytes, receives messages; knows nothing else."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))

    def send(
        self,
        command: int,
        payload: bytes = b"",
        *,
        flags: int = 0,
        size: int | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        length = HEADER_SIZE + len(payload) if size is None else size
        message = HEADER.pack(7, command, length, flags, 0) + payload
        if fds:
            socket.send_fds(self.socket, [message], fds)
        else:
            self.socket.sendall(message)

    def receive(self) -> tuple[int, int, bytes]:
        """Flags, error, payload of the next message. Raises EOFError."""
        message_id, _, size, flags, error = HEADER.unpack(self._exactly(HEADER_SIZE))
        assert message_id == 7
        assert flags & TYPE_REPLY
        return flags, error, self._exactly(size - HEADER_SIZE)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def ask(self, command: int, payload: bytes = b"", *, flags: int = 0, fds: Sequence[int] = ()) -> bytes:
        self.send(command, payload, flags=flags, fds=fds)
        got, error, data = self.receive()
        assert not got & HeaderFlag.ERROR, os.strerror(error)
        return data

    def refused(self, command: int, payload: bytes = b"", *, flags: int = 0, fds: Sequence[int] = ()) -> int:
        """Send what must be refused; its errno. The reply is a header alone."""
        self.send(command, payload, flags=flags, fds=fds)
        got, error, data = self.receive()
        assert got & HeaderFlag.ERROR
        assert not data
        return error

    def ended(self) -> bool:
        """The server closed the connection; what it said before is skipped."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def negotiate(self) -> None:
        self.ask(1, encode(0, Capabilities(max_msg_fds=8)))

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
