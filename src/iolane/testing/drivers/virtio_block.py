"""A driver of virtio block functions (virtio 1.3, 5.2), over the device itself."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from iolane.devices.virtio.block import BlockFunction
from iolane.testing.drivers.virtio import Used
from iolane.testing.drivers.virtio_pci import VirtioPciDriver
from iolane.uapi.virtio import BLK_ID_BYTES, BlockRequest, BlockStatus

HEADER = struct.Struct("<IIQ")


class BlockError(Exception):
    """The device answered with another status than OK."""

    def __init__(self, status: int) -> None:
        super().__init__(BlockStatus(status).name)
        self.status = BlockStatus(status)


class VirtioBlockDriver(VirtioPciDriver[BlockFunction]):
    """Requests, one at a time (`read`, `write` ...) or many (`submit`, then `finish`)."""

    def submit(
        self,
        kind: int,
        sector: int = 0,
        data: bytes | Sequence[bytes] = b"",
        room: int | Sequence[int] = 0,
        *,
        queue: int = 0,
        indirect: bool = False,
    ) -> int:
        """Make a request available, without a kick; returns its head."""
        parts = [data] if isinstance(data, bytes) else list(data)
        rooms = [room] if isinstance(room, int) else list(room)
        return self.rings[queue].send(
            [HEADER.pack(kind, 0, sector), *parts], [*(n for n in rooms if n), 1], indirect=indirect
        )

    def request(
        self,
        kind: int,
        sector: int = 0,
        data: bytes | Sequence[bytes] = b"",
        room: int | Sequence[int] = 0,
        *,
        queue: int = 0,
        indirect: bool = False,
    ) -> bytes:
        """One request from kick to end; what it read. Raises BlockError."""
        size = room if isinstance(room, int) else sum(room)
        head = self.submit(kind, sector, data, room, queue=queue, indirect=indirect)
        place = self._status_place(queue, head)
        self.rings[queue].kick()
        (used,) = self.rings[queue].collect()
        status = self.heap.read(place, 1)[0]
        if status:
            raise BlockError(status)
        assert (used.head, used.written) == (head, size + 1)
        return used.data[:-1]

    def _status_place(self, queue: int, head: int) -> int:
        return self.rings[queue]._added[head].writable[-1][0]

    def finish(self, queue: int = 0) -> list[Used]:
        """Kick for what was submitted and take what has ended."""
        self.rings[queue].kick()
        return self.rings[queue].collect()

    def read_sectors(self, sector: int, count: int = 1) -> bytes:
        """Read sectors."""
        return self.request(BlockRequest.IN, sector, room=512 * count)

    def write_sectors(self, sector: int, data: bytes) -> None:
        """Write sectors."""
        self.request(BlockRequest.OUT, sector, data)

    def flush(self) -> None:
        """What was written before is safe."""
        self.request(BlockRequest.FLUSH)

    def identify(self) -> str:
        """The serial number."""
        return self.request(BlockRequest.GET_ID, room=BLK_ID_BYTES).rstrip(b"\0").decode()

    def discard(self, *segments: tuple[int, int, int]) -> None:
        """Discard (sector, count, flags)."""
        self.request(BlockRequest.DISCARD, 0, _segments(segments))

    def write_zeroes(self, *segments: tuple[int, int, int]) -> None:
        """Write zeroes to (sector, count, flags)."""
        self.request(BlockRequest.WRITE_ZEROES, 0, _segments(segments))


def _segments(segments: Sequence[tuple[int, int, int]]) -> bytes:
    return b"".join(struct.pack("<QII", *segment) for segment in segments)
