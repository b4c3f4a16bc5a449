"""What a measured ratio should be."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A range; the default is content with anything."""

    at_least: float = 0.0
    at_most: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether `value` is as it should be."""
        return self.at_least <= value <= self.at_most

    def __str__(self) -> str:
        bounds = []
        if self.at_least > 0:
            bounds.append(f"at least {self.at_least:g}")
        if self.at_most < math.inf:
            bounds.append(f"at most {self.at_most:g}")
        return " and ".join(bounds) or "anything"


ANYTHING = Target()
