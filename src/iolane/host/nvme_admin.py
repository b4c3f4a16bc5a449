"""Admin commands to an NVMe controller of the host, through its driver."""

from __future__ import annotations

import ctypes
import fcntl
import os
from types import TracebackType
from typing import Protocol, Self

from iolane.host.function import HostFunction
from iolane.host.sysfs import Host, HostError
from iolane.uapi.nvme_ioctl import IOCTL_ADMIN_CMD, PASSTHRU_CMD

CLASS_CODE = 0x01_08_02
"""Mass storage, non-volatile memory, NVM Express I/O controller (PCI Code and ID Assignment, 1.2)."""
DRIVER = "nvme"
IDENTIFY = 0x06
"""Identify (NVMe Base 2.0, 5.17)."""
IDENTIFY_SIZE = 4096
TIMEOUT_MS = 10_000


class NvmeAdmin(Protocol):
    """What is asked of a controller."""

    def identify(self, what: int) -> bytes:
        """The data structure of a CNS value, 4096 bytes (NVMe Base 2.0, 5.17.1). Raises `HostError`."""

    def command(self, opcode: int, what: str, *, cdw10: int = 0, cdw11: int = 0) -> None:
        """A command without data. Raises `HostError`: `what` was refused."""


class DriverAdmin:
    """The admin queue of a controller that the driver nvme has. A context manager.

    Raises:
        HostError: it has no character device, or it can't be opened.
    """

    def __init__(self, host: Host, function: HostFunction) -> None:
        names = [name for name in host.names(f"{function.directory}/nvme") if host.exists(f"/dev/{name}")]
        if not names:
            raise HostError(f"{function.address} has no NVMe controller of the driver {DRIVER}")
        self.name = names[0]
        try:
            self._fd = os.open(host.path(f"/dev/{self.name}"), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"/dev/{self.name}: {error.strerror}", number=error.errno or 0) from None

    def identify(self, what: int) -> bytes:
        """Identify with CNS `what`."""
        data = (ctypes.c_char * IDENTIFY_SIZE)()
        self._submit(IDENTIFY, f"Identify {what:#x}", data, what, 0)
        return bytes(data)

    def command(self, opcode: int, what: str, *, cdw10: int = 0, cdw11: int = 0) -> None:
        """Any command without data."""
        self._submit(opcode, what, None, cdw10, cdw11)

    def _submit(
        self, opcode: int, what: str, data: ctypes.Array[ctypes.c_char] | None, cdw10: int, cdw11: int
    ) -> None:
        where, length = (0, 0) if data is None else (ctypes.addressof(data), len(data))
        words = (cdw10, cdw11, 0, 0, 0, 0)
        request = bytearray(
            PASSTHRU_CMD.pack(opcode, 0, 0, 0, 0, 0, 0, where, 0, length, *words, TIMEOUT_MS, 0)
        )
        try:
            status = fcntl.ioctl(self._fd, IOCTL_ADMIN_CMD, request)
        except OSError as error:
            raise HostError(f"{self.name}: {what}: {error.strerror}", number=error.errno or 0) from None
        if status:
            raise HostError(f"{self.name}: {what}: the controller answered with status {status:#x}")

    def close(self) -> None:
        """Close the device."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
