"""Guest memory held for work that runs without the device's lock."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from iolane.model.dma.fault import DmaFault
from iolane.model.dma.table import DmaMap


class Pinned:
    """Views of guest memory that stay valid until `release`; unmap waits for it.

    Made by `DmaSpace.pin` under the device's lock. One thread at a time may use the views without the lock.

    Attributes:
        views: the memory in the order asked for; neighbours in one file are one view.
        length: bytes in all views together.
    """

    __slots__ = ("_release", "length", "maps", "pieces", "views", "write")

    def __init__(
        self,
        pieces: tuple[tuple[int, int], ...],
        views: list[memoryview],
        maps: list[DmaMap],
        write: bool,
        release: Callable[[Pinned], DmaFault | None],
    ) -> None:
        self.pieces = pieces
        self.views = views
        self.maps = maps
        self.write = write
        self.length = sum(length for _, length in pieces)
        self._release: Callable[[Pinned], DmaFault | None] | None = release

    @property
    def broken(self) -> bool:
        """A memory file behind the views was truncated: what was read from them is not the guest's."""
        return any(item.memory.broken for item in self.maps)

    @property
    def released(self) -> bool:
        return self._release is None

    def release(self) -> None:
        """Give the memory back. The second call does nothing.

        Raises:
            DmaFault: the memory broke while it was pinned, or its owner refused what was written.
        """
        release, self._release = self._release, None
        if release is None:
            return
        fault = release(self)
        for view in self.views:
            try:  # noqa: SIM105  cheaper than a context manager
                view.release()
            except BufferError:
                pass
        self.views = []
        if fault is not None:
            raise fault

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.release()
        else:
            with suppress(DmaFault):
                self.release()
