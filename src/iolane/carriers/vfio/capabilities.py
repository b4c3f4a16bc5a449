"""Chains of capabilities behind the kernel's info structures (struct vfio_info_cap_header)."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from iolane.carriers.vfio.ioctl import Descriptor, VfioError
from iolane.uapi.vfio_layouts import INFO_CAP_HEADER

CHAIN_LIMIT = 64
LARGEST_INFO = 1 << 20
"""Bytes: a kernel that asks for more is not believed."""


def ask(device: Descriptor, request: int, info: bytes, what: str) -> bytearray:
    """Call until the kernel has room for everything it wants to tell (argsz is the first word)."""
    argsz = len(info)
    while True:
        buffer = bytearray(info.ljust(argsz, b"\0"))
        buffer[0:4] = argsz.to_bytes(4, "little")
        device.call(request, buffer, what)
        needed = int.from_bytes(buffer[0:4], "little")
        if needed <= argsz:
            return buffer
        if needed > LARGEST_INFO:
            raise VfioError(f"{device.name}: {what}: {needed} bytes of information", errno=errno.E2BIG)
        argsz = needed


def chain(info: bytes | bytearray, offset: int) -> Iterator[tuple[int, int]]:
    """(id, offset) of each capability; the chain starts at `offset`, 0 for none."""
    for _ in range(CHAIN_LIMIT):
        if not 0 < offset <= len(info) - INFO_CAP_HEADER.size:
            return
        kind, _, following = INFO_CAP_HEADER.unpack_from(info, offset)
        yield kind, offset
        offset = following
