"""Memory that a front end shares with its back end."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from iolane.carriers.vhost_user.memory import Region
from iolane.memory.mapping import Mapping

GUEST_ADDRESS = 0x1_0000_0000
USER_ADDRESS = 0x7F00_0000_0000


class SharedMemory:
    """A memfd as one region of guest memory.

    Args:
        size: bytes.
        guest_address: where the device finds it.
        user_address: by which name rings in it go; any number, as nobody but the back end looks.
        offset: where in its file the region begins.
    """

    def __init__(
        self,
        size: int,
        *,
        guest_address: int = GUEST_ADDRESS,
        user_address: int = USER_ADDRESS,
        offset: int = 0,
    ) -> None:
        self.region = Region(guest_address, size, user_address, offset)
        self.fd = os.memfd_create("iolane-guest", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, offset + size)
            self.mapping = Mapping(self.fd, offset + size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self.mapping)[offset:]

    @property
    def guest_address(self) -> int:
        """Where the device finds the first byte."""
        return self.region.guest_address

    def user_address(self, guest_address: int) -> int:
        """The name, in the messages about rings, of what lies at a guest address."""
        return guest_address - self.region.guest_address + self.region.user_address

    def holds(self, guest_address: int) -> bool:
        """Whether an address lies in it."""
        return 0 <= guest_address - self.region.guest_address < self.region.size

    def close(self) -> None:
        """Give it back; views that are left keep it mapped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.view.release()
            self.mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
