"""Messages on the socket: where one ends, and which file descriptors are its own.

"Header": a message's size includes its header. One large `recvmsg` takes whatever has arrived, so a
burst of posted writes costs one system call. On a Unix stream socket the kernel ends a read behind the
data that file descriptors came with: descriptors belong to the last message of which the read brought a
byte.
"""

from __future__ import annotations

import socket
import struct

from iolane.carriers.descriptors import DESCRIPTOR_SIZE, close_all, descriptors_in
from iolane.carriers.vfio_user.protocol import (
    HEADER,
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    MAX_RECEIVED_FDS,
    TYPE_REPLY,
    HeaderFlag,
)

ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_RECEIVED_FDS * DESCRIPTOR_SIZE)
BUFFER_SLACK = 64 << 10
"""Room behind the longest message, so that a burst of short ones still comes in large reads."""
UNPACK_SLACK = 64
"""Never filled: the trap loop unpacks its whole layout before it looks at the size."""


class Receiver:
    """Collects bytes and file descriptors. Messages lie in `buffer[position:end]`; who handles one moves
    `position`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = bytearray(MAX_MESSAGE_SIZE + BUFFER_SLACK + UNPACK_SLACK)
        self.view = memoryview(self.buffer)[: MAX_MESSAGE_SIZE + BUFFER_SLACK]
        self.position = 0
        self.end = 0
        self.plain = True
        """No descriptors have come with what is in the buffer."""
        self._whole = [self.view]
        self._first_fds: list[int] = []
        self._last_fds: list[int] = []
        self._first_lost = False
        self._last_lost = False

    def receive(self) -> bool:
        """Wait for more bytes; False where the peer has closed. What is left of a message moves to the
        front.
        """
        left = self.end - self.position
        if left:
            if self.position:
                self.view[:left] = bytes(self.view[self.position : self.end])
            self._first_fds += self._last_fds
            self._last_fds = []
            self._first_lost |= self._last_lost
            self._last_lost = False
            target = [self.view[left:]]
        else:
            target = self._whole
        self.position, self.end = 0, left
        count, ancillary, flags, _ = self.socket.recvmsg_into(target, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        self.end = left + count
        if ancillary:
            self._last_fds = descriptors_in(ancillary)
        self._last_lost = bool(flags & socket.MSG_CTRUNC)
        self.plain = not (self._first_fds or self._last_fds or self._first_lost or self._last_lost)
        return count > 0

    def take_fds(self, *, last: bool) -> tuple[list[int], bool]:
        """The descriptors of the first message in the buffer, and whether some were lost; `last`: it is the
        last one too.
        """
        fds, lost = self._first_fds, self._first_lost
        self._first_fds, self._first_lost = [], False
        if last:
            fds, lost = fds + self._last_fds, lost or self._last_lost
            self._last_fds, self._last_lost = [], False
        return fds, lost

    def close(self) -> None:
        """Close the descriptors that no message has taken; let go of the buffer, whoever still holds this."""
        close_all(self._first_fds + self._last_fds)
        self._first_fds, self._last_fds = [], []
        self.buffer, self.view, self._whole = bytearray(), memoryview(b""), []
        self.position = self.end = 0


def limit_receive(connection: socket.socket, seconds: float) -> None:
    """Let a blocking receive raise BlockingIOError after a while; 0 is never. Sends are not limited."""
    limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def reply_header(message_id: int, command: int, payload_size: int) -> bytes:
    """The header of a reply to a command that succeeded."""
    return HEADER.pack(message_id, command, HEADER_SIZE + payload_size, TYPE_REPLY, 0)


def error_reply(message_id: int, command: int, error: int) -> bytes:
    """ "If an error occurs, the reply message must only include the reply header"."""
    return HEADER.pack(message_id, command, HEADER_SIZE, HeaderFlag.REPLY | HeaderFlag.ERROR, error)
