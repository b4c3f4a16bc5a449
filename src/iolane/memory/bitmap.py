"""Which pages of a range were written."""


class DirtyBitmap:
    """One bit a page, least significant bit first, as VFIO's DMA logging and KVM report it.

    Callers take turns (the device lock): marking is a read and a write of a byte.
    """

    def __init__(self, start: int, length: int, page_size: int = 4096) -> None:
        if page_size <= 0 or page_size & (page_size - 1):
            raise ValueError(f"page size {page_size} is no power of two")
        if start < 0 or length <= 0:
            raise ValueError(f"no range: {length} bytes at {start:#x}")
        self.start = start
        self.length = length
        self.page_size = page_size
        self._shift = page_size.bit_length() - 1
        self._first = start >> self._shift
        self._pages = ((start + length - 1) >> self._shift) - self._first + 1
        self._bits = bytearray((self._pages + 7) // 8)

    def mark(self, address: int, length: int) -> None:
        """Remember a write; what lies outside the range is not ours to remember."""
        if length <= 0:
            return
        first = max((address >> self._shift) - self._first, 0)
        last = min(((address + length - 1) >> self._shift) - self._first, self._pages - 1)
        if first > last:
            return
        bits, low, high = self._bits, first >> 3, last >> 3
        head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last & 7))
        if low == high:
            bits[low] |= head & tail
            return
        bits[low] |= head
        bits[high] |= tail
        if high - low > 1:
            bits[low + 1 : high] = b"\xff" * (high - low - 1)

    def collect(self, start: int, length: int) -> bytes:
        """The bits of the pages from `start` on (its page is bit 0 of byte 0), cleared in passing."""
        if length <= 0:
            raise ValueError(f"no range: {length} bytes at {start:#x}")
        first = (start >> self._shift) - self._first
        last = ((start + length - 1) >> self._shift) - self._first
        if first < 0 or last >= self._pages:
            raise ValueError(f"{length:#x} bytes at {start:#x} are not all within the tracked range")
        low, high = first >> 3, (last >> 3) + 1
        value = int.from_bytes(self._bits[low:high], "little")
        mask = ((1 << (last - first + 1)) - 1) << (first & 7)
        self._bits[low:high] = (value & ~mask).to_bytes(high - low, "little")
        return ((value & mask) >> (first & 7)).to_bytes((last - first) // 8 + 1, "little")

    def count(self) -> int:
        """How many pages are marked."""
        return int.from_bytes(self._bits, "little").bit_count()
