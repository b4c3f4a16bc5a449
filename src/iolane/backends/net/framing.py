"""Frames on a byte stream, each behind its length (4 bytes, big-endian), as QEMU's `-netdev stream` and passt
have them: read and written by Python, or by compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

from iolane.backends.net.base import LARGEST_FRAME, PLAIN_HEADER
from iolane.backends.poller import READABLE, WRITABLE
from iolane.backends.stream.descriptor import DescriptorStream
from iolane.memory.ring import NetPort

LENGTH = 4
CHUNK = 1 << 18
_STREAM = 4
"""A kind of NetPort."""


class Trouble(IntEnum):
    """Why a peer must go; the numbers are those of `FrameStream.trouble`."""

    NONE = 0
    GONE = 1
    NONSENSE = 2


class Sent(IntEnum):
    """What became of a frame; the numbers are those of `NetPort.send`."""

    FAILED = -1
    FULL = 0
    DONE = 1


class Framing(Protocol):
    """One peer's frames. What can't be done at once the stream tells of, later."""

    @property
    def trouble(self) -> Trouble: ...

    def receive(self) -> bytes | None:
        """The next packet, header and frame; None: there is none yet, or there is trouble."""

    def send(self, header: bytes, frame: Sequence[memoryview | bytes]) -> Sent:
        """Send a frame. FULL: not now."""

    def flush(self) -> bool:
        """Go on with a frame that was not written whole. Whether it is now."""

    def begin(self) -> None:
        """The stream has another peer: what was left of an earlier one's frames means nothing to it."""

    def cut(self) -> None:
        """The peer is gone, or is to go."""


class PlainFraming:
    """By Python, readably.

    Attributes:
        input: what was read and is no whole frame yet.
        rest: what the socket did not take of the frame before.
    """

    def __init__(self, stream: DescriptorStream) -> None:
        stream.chunk = CHUNK
        self._stream = stream
        self.input = bytearray()
        self.rest = b""
        self.trouble = Trouble.NONE

    def receive(self) -> bytes | None:
        """As in the protocol."""
        while True:
            if len(self.input) >= LENGTH:
                length = int.from_bytes(self.input[:LENGTH], "big")
                if length > LARGEST_FRAME:
                    self.trouble = Trouble.NONSENSE
                    return None
                if len(self.input) >= LENGTH + length:
                    frame = bytes(self.input[LENGTH : LENGTH + length])
                    del self.input[: LENGTH + length]
                    return PLAIN_HEADER + frame
            data = self._stream.read(CHUNK)
            if not data:
                return None
            self.input += data

    def send(self, header: bytes, frame: Sequence[memoryview | bytes]) -> Sent:
        """As in the protocol."""
        if not self.flush():
            return Sent.FULL
        length = sum(len(piece) for piece in frame)
        data = b"".join((length.to_bytes(LENGTH, "big"), *frame))
        self.rest = data[self._stream.write(data) :]
        return Sent.DONE

    def flush(self) -> bool:
        """As in the protocol."""
        if self.rest:
            self.rest = self.rest[self._stream.write(self.rest) :]
        return not self.rest

    def begin(self) -> None:
        """As in the protocol."""
        self._stream.forget_input()
        self.cut()

    def cut(self) -> None:
        """As in the protocol."""
        self.input.clear()
        self.rest = b""
        self.trouble = Trouble.NONE


class PortFraming:
    """By compiled code, which has the socket beside us.

    Args:
        before: what the frames were read and written by so far.
    """

    def __init__(self, stream: DescriptorStream, before: PlainFraming) -> None:
        self.port = NetPort(_STREAM)
        self._stream = stream
        unread = bytes(before.input) + stream.lend()
        if stream.connected:
            self.port.stream.connect(stream.descriptor, unread, before.rest)

    @property
    def trouble(self) -> Trouble:
        """As in the protocol."""
        return Trouble(self.port.stream.trouble)

    def receive(self) -> bytes | None:
        """As in the protocol."""
        packet = self.port.receive()
        if packet is None:
            self._stream.tell_when_ready(READABLE)
        return packet

    def send(self, header: bytes, frame: Sequence[memoryview | bytes]) -> Sent:
        """As in the protocol."""
        sent = Sent(self.port.send(b"".join((header, *frame))))
        if sent is Sent.FULL or self.port.stream.pending:
            self._stream.tell_when_ready(WRITABLE)
        return sent

    def flush(self) -> bool:
        """As in the protocol."""
        done = self.port.stream.push()
        if not done:
            self._stream.tell_when_ready(WRITABLE)
        return done

    def begin(self) -> None:
        """As in the protocol."""
        self._stream.forget_input()
        if self._stream.connected:
            self.port.stream.connect(self._stream.descriptor)

    def cut(self) -> None:
        """As in the protocol."""
        self.port.stream.cut()
