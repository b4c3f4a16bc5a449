"""Records of the kernel's log from /dev/kmsg (Documentation/ABI/testing/dev-kmsg)."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from types import TracebackType

from iolane.errors import IolaneError
from iolane.host.sysfs import Host

_LONGEST = 8192
"""A record is shorter than this (PRINTKRB_RECORD_MAX is less)."""
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


@dataclass(frozen=True)
class KernelRecord:
    """One record."""

    sequence: int
    time: float
    """Seconds since boot."""
    text: str
    """May have several lines."""
    properties: dict[str, str] = field(default_factory=dict)
    """SUBSYSTEM and DEVICE of what the message is about."""


class KernelLog:
    """The kernel's log, read record by record without waiting; a context manager that owns the descriptor.

    Args:
        descriptor: something that yields one record a read(2), as /dev/kmsg does.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lost = 0
        """How often records were overwritten before they could be read."""

    @classmethod
    def open(cls, host: Host, *, from_now: bool = False) -> KernelLog:
        """Open the host's, from its oldest record, or for those to come.

        Raises:
            IolaneError: it can't be read.
        """
        path = host.path("/dev/kmsg")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise IolaneError(
                f"{path}: {(error.strerror or str(error)).lower()}",
                remedy="root may read the kernel's log, others only with kernel.dmesg_restrict=0",
            ) from error
        if from_now:
            os.lseek(descriptor, 0, os.SEEK_END)
        return cls(descriptor)

    def read(self) -> KernelRecord | None:
        """The next record; None if there is none yet."""
        while True:
            try:
                data = os.read(self.descriptor, _LONGEST)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten meanwhile; the next read goes on with the oldest
                    self.lost += 1
                    continue
                raise
            if not data:
                return None
            if (record := parse_record(data.decode(errors="replace"))) is not None:
                return record

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> KernelLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_record(data: str) -> KernelRecord | None:
    """`priority,sequence,microseconds,flags[,...];text`, then lines of properties; None for anything else."""
    prefix, found, rest = data.partition(";")
    words = prefix.split(",")
    if not found or len(words) < 3 or not words[1].isdecimal() or not words[2].isdecimal():
        return None
    text, *lines = rest.rstrip("\n").split("\n")
    properties = dict(line.strip().split("=", 1) for line in lines if line.startswith(" ") and "=" in line)
    return KernelRecord(int(words[1]), int(words[2]) / 1e6, _unescape(text), properties)


def _unescape(text: str) -> str:
    """Control characters, line ends among them, are escaped as \\x0a."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
