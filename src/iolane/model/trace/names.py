"""Which registers a trace is for."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

_INDEX = re.compile(r"\[\d+\]")


class NameFilter:
    """Globs over names such as `bar0.CONTROL`, `config.*` or `bar0.DOORBELL[3]`, separated by commas.

    Case does not matter, and brackets are an index, not a set of characters. A name without its index counts,
    too: `bar0.DOORBELL` is every element; `bar0.*` is also what BAR 0 does not model. None lets
    everything through.
    """

    def __init__(self, globs: str | None) -> None:
        parts = [] if globs is None else [part.strip().lower() for part in globs.split(",")]
        self._globs = [part.replace("[", "[[]") for part in parts if part]

    def __call__(self, name: str) -> bool:
        """Whether `name` is let through."""
        if not self._globs:
            return True
        full = name.lower()
        spellings = (full, _INDEX.sub("", full), full.replace("+", ".", 1))
        return any(fnmatchcase(spelling, glob) for glob in self._globs for spelling in spellings)
