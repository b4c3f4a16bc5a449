"""A namespace: logical blocks on a back end (Base 3.2.1)."""

from __future__ import annotations

import uuid

from iolane.backends.block import BlockBackend
from iolane.errors import IolaneError

LBA_SIZES = (512, 4096)


class Namespace:
    """One back end, seen as logical blocks.

    Args:
        nsid: its identifier, from 1.
        backend: where the blocks are.
        lba_size: bytes of a logical block, 512 or 4096.
        uuid: what identifies it for ever (Base 4.5.1.6).

    Raises:
        IolaneError: the back end is not a whole number of such blocks.
    """

    def __init__(self, nsid: int, backend: BlockBackend, lba_size: int, uuid: uuid.UUID) -> None:
        if lba_size not in LBA_SIZES:
            raise IolaneError(f"logical blocks have 512 or 4096 bytes, not {lba_size}")
        if backend.block_size > lba_size:
            raise IolaneError(
                f"the disk behind namespace {nsid} has blocks of {backend.block_size} bytes",
                remedy=f"add lba_size={backend.block_size}",
            )
        if backend.size == 0 or backend.size % lba_size:
            whole = -(-backend.size // lba_size) * lba_size or lba_size
            raise IolaneError(
                f"namespace {nsid} has {backend.size} bytes: not a whole number of {lba_size}-byte blocks",
                remedy=f"make it longer: truncate -s {whole} IMAGE",
            )
        self.nsid = nsid
        self.backend = backend
        self.lba_size = lba_size
        self.blocks = backend.size // lba_size
        self.uuid = uuid

    def contains(self, lba: int, count: int) -> bool:
        """Whether `count` blocks from `lba` on are inside."""
        return lba + count <= self.blocks

    def __repr__(self) -> str:
        return f"<Namespace {self.nsid}: {self.blocks} x {self.lba_size} on {self.backend!r}>"
