"""Calls in order of their deadlines."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

COMPACT_FROM = 64


class Entry:
    """A call on an agenda. `call` is None once it was made or cancelled."""

    __slots__ = ("call", "deadline_ns", "number")

    def __init__(self, deadline_ns: int, number: int, call: Callable[[], object]) -> None:
        self.deadline_ns = deadline_ns
        self.number = number
        self.call: Callable[[], object] | None = call

    def __lt__(self, other: Entry) -> bool:
        return (self.deadline_ns, self.number) < (other.deadline_ns, other.number)


class Agenda:
    """A heap of entries. Whoever owns it sees to it that callers take turns.

    Cancelled entries stay in it until they are as many as the rest: a guest that arms and cancels without end
    costs no memory.
    """

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._cancelled = 0
        self.numbered = 0
        """Entries ever made; an entry's number is less than this."""

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def push(self, deadline_ns: int, call: Callable[[], object]) -> Entry:
        """Put a call on the agenda."""
        entry = Entry(deadline_ns, self.numbered, call)
        self.numbered += 1
        heappush(self._heap, entry)
        return entry

    def cancel(self, entry: Entry) -> None:
        """Take an entry off the agenda, if it is still on it."""
        if entry.call is None:
            return
        entry.call = None
        self._cancelled += 1
        if self._cancelled >= COMPACT_FROM and self._cancelled * 2 > len(self._heap):
            self._heap = [item for item in self._heap if item.call is not None]
            heapify(self._heap)
            self._cancelled = 0

    def next_deadline(self) -> int | None:
        """When the first call is due."""
        self._drop_cancelled()
        return self._heap[0].deadline_ns if self._heap else None

    def pop_due(self, now_ns: int, before: int | None = None) -> Entry | None:
        """Take off the first entry that is due and, with `before`, has a smaller number."""
        self._drop_cancelled()
        if not self._heap or self._heap[0].deadline_ns > now_ns:
            return None
        if before is None or self._heap[0].number < before:
            return heappop(self._heap)
        due = [item for item in self._heap if item.deadline_ns <= now_ns and item.number < before]
        due = [item for item in due if item.call is not None]
        if not due:
            return None
        first = min(due)
        self._heap.remove(first)
        heapify(self._heap)
        return first

    def clear(self) -> None:
        """Cancel everything."""
        for entry in self._heap:
            entry.call = None
        self._heap.clear()
        self._cancelled = 0

    def _drop_cancelled(self) -> None:
        while self._heap and self._heap[0].call is None:
            heappop(self._heap)
            self._cancelled -= 1
