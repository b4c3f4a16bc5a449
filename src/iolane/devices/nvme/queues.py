"""Submission and completion queues (Base 3.3.1): rings in guest memory, and the doubt about every index."""

from __future__ import annotations

from typing import Annotated

import msgspec

U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
Number = Annotated[int, msgspec.Meta(ge=0)]


class Completion(msgspec.Struct, array_like=True):
    """A completion that waits for room in its queue."""

    result: U32
    sqid: U16
    sq_head: U16
    cid: U16
    status: Annotated[int, msgspec.Meta(ge=0, le=0x7FFF)]
    """The status field without the phase tag."""


class SubmissionQueue(msgspec.Struct):
    """Commands of the host."""

    qid: U16
    base: Number
    size: U16
    cqid: U16
    head: U16 = 0
    tail: U16 = 0

    @property
    def pending(self) -> int:
        """Commands that the host submitted and nobody fetched."""
        return (self.tail - self.head) % self.size

    def accepts(self, tail: int) -> bool:
        """Whether a host may write this tail: inside the queue, something new, and never past the head.

        Base 5.2.1, Invalid Doorbell Write Value.
        """
        if not 0 <= tail < self.size or tail == self.tail:
            return False
        return self.pending + (tail - self.tail) % self.size < self.size


class CompletionQueue(msgspec.Struct):
    """Completions for the host."""

    qid: U16
    base: Number
    size: U16
    vector: U16
    interrupts: bool
    head: U16 = 0
    tail: U16 = 0
    phase: Annotated[int, msgspec.Meta(ge=0, le=1)] = 1
    waiting: list[Completion] = []
    """Completions that found the queue full, oldest first; meanwhile no command is fetched for it."""

    @property
    def used(self) -> int:
        """Completions that the host has not consumed."""
        return (self.tail - self.head) % self.size

    @property
    def full(self) -> bool:
        """One slot stays empty (Base 3.3.1.5)."""
        return (self.tail + 1) % self.size == self.head

    def accepts(self, head: int) -> bool:
        """Whether a host may write this head: it consumed something, and no more than there is."""
        return 0 <= head < self.size and 0 < (head - self.head) % self.size <= self.used

    def advance(self) -> None:
        """One completion was posted; the phase tag turns with each pass through the queue (Base 3.3.1.2)."""
        self.tail += 1
        if self.tail == self.size:
            self.tail = 0
            self.phase ^= 1
