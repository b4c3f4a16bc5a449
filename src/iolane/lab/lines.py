"""What a program in the lab says, taken apart: objects of JSON on lines of their own, and words for us."""

from __future__ import annotations

from collections.abc import Callable


class Lines:
    """Puts lines together that come in pieces, of several streams.

    Args:
        on_object: is given each line that is an object of JSON.
        on_words: is given every other line that is not empty.
    """

    def __init__(self, on_object: Callable[[bytes], None], on_words: Callable[[str], None]) -> None:
        self._on_object = on_object
        self._on_words = on_words
        self._held: dict[object, bytes] = {}

    def take(self, stream: object, data: bytes) -> None:
        """A piece of output."""
        *lines, self._held[stream] = (self._held.get(stream, b"") + data).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                self._on_object(line)
            elif words := line.decode(errors="replace").strip():
                self._on_words(words)
