"""What passes, as a file for tcpdump and Wireshark (pcap, draft-ietf-opsawg-pcap)."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from iolane.errors import IolaneError

FILE_HEADER = struct.Struct("<IHHiIII")
"""magic, version (major, minor), time zone, accuracy, largest packet, link type"""
RECORD = struct.Struct("<IIII")
"""seconds, nanoseconds, bytes captured, bytes of the packet"""
MAGIC_NANOSECONDS = 0xA1B23C4D
LINKTYPE_ETHERNET = 1
SNAP_LENGTH = 262144


class Capture:
    """Writes Ethernet frames to a file, each at once. A file that can't be written to ends the capture, not
    the traffic.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packets = 0
        self.error = ""
        """Why the capture ended."""
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise IolaneError(f"{path}: {(error.strerror or str(error)).lower()}") from error
        header = FILE_HEADER.pack(MAGIC_NANOSECONDS, 2, 4, 0, 0, SNAP_LENGTH, LINKTYPE_ETHERNET)
        self._write(header)

    def record(self, frame: Sequence[memoryview | bytes]) -> None:
        """One frame, in pieces."""
        length = sum(len(piece) for piece in frame)
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        record = RECORD.pack(seconds & 0xFFFF_FFFF, nanoseconds, length, length)
        self.packets += self._write(b"".join((record, *frame)))

    def _write(self, data: bytes) -> bool:
        if self._fd < 0:
            return False
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.error = (error.strerror or str(error)).lower()
            self.close()
            return False
        return True

    def close(self) -> None:
        """End the capture. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def statistics(self) -> dict[str, int | float | str]:
        """Counters, by the names `iolane devices` shows."""
        shown: dict[str, int | float | str] = {
            "pcap": str(self.path),
            "pcap_packets": self.packets,
        }
        return {**shown, "pcap_error": self.error} if self.error else shown
