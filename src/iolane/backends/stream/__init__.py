"""Byte-stream back ends: what is at the other end of a serial line."""

from iolane.backends.stream.base import StreamBackend
from iolane.backends.stream.descriptor import DescriptorPair, FileStream
from iolane.backends.stream.memory import MemoryStream, NullStream
from iolane.backends.stream.parse import open_stream
from iolane.backends.stream.pty import PtyStream
from iolane.backends.stream.socket import SocketStream

__all__ = [
    "DescriptorPair",
    "FileStream",
    "MemoryStream",
    "NullStream",
    "PtyStream",
    "SocketStream",
    "StreamBackend",
    "open_stream",
]
