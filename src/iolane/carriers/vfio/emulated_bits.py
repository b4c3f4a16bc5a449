"""Bits of config space that are ours, over those of the hardware."""

from __future__ import annotations


class EmulatedBits:
    """For each byte: which bits are ours, their values, and which of them the guest may change."""

    def __init__(self, size: int) -> None:
        self._ours = bytearray(size)
        self._values = bytearray(size)
        self._writable = bytearray(size)
        self._initial = bytes(size)

    def claim(self, offset: int, size: int, *, mask: int = -1, value: int = 0, writable: int = 0) -> None:
        """From now on the bits of `mask` in the `size` bytes at `offset` are ours."""
        full = (1 << 8 * size) - 1
        mask &= full
        for place, bits in ((self._ours, mask), (self._writable, writable & mask)):
            self._store(place, offset, size, self._load(place, offset, size) & ~mask | bits)
        self._store(
            self._values, offset, size, self._load(self._values, offset, size) & ~mask | (value & mask)
        )

    def seal(self) -> None:
        """What is there now are the values after a reset."""
        self._initial = bytes(self._values)

    def reset(self) -> None:
        """Back to what `seal` saw."""
        self._values[:] = self._initial

    def whole(self, offset: int, size: int) -> bool:
        """Whether every bit there is ours."""
        return self._ours[offset : offset + size].count(0xFF) == size

    def any(self, offset: int, size: int) -> bool:
        """Whether some bit there is ours."""
        return any(self._ours[offset : offset + size])

    def value(self, offset: int, size: int) -> int:
        """Our value; bits that are not ours are 0."""
        return self._load(self._values, offset, size)

    def merge(self, offset: int, size: int, hardware: int) -> int:
        """What the guest reads."""
        ours = self._load(self._ours, offset, size)
        return hardware & ~ours | self._load(self._values, offset, size) & ours

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes."""
        writable = self._load(self._writable, offset, size)
        kept = self._load(self._values, offset, size) & ~writable
        self._store(self._values, offset, size, kept | value & writable)

    @staticmethod
    def _load(place: bytearray, offset: int, size: int) -> int:
        return int.from_bytes(place[offset : offset + size], "little")

    @staticmethod
    def _store(place: bytearray, offset: int, size: int, value: int) -> None:
        place[offset : offset + size] = value.to_bytes(size, "little")
