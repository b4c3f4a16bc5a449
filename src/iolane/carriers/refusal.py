"""What servers do with a message that is wrong: each reason has a name, an errno and a counter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Generic, Self, TypeVar

from iolane.errors import IolaneError


class Reason(Enum):
    """The base of a protocol's reasons. A member's value is (text, errno of the answer)."""

    def __init__(self, text: str, error: int) -> None:
        self.text = text
        self.error = error


R = TypeVar("R", bound=Reason)


class RefusalError(IolaneError, Generic[R]):
    """Raised by whoever checks a message; turned into a count and an answer by the connection."""

    def __init__(self, rejection: R, detail: str = "") -> None:
        super().__init__(f"{rejection.text}: {detail}" if detail else rejection.text)
        self.rejection = rejection


@dataclass(eq=False)
class Counts(Generic[R]):
    """What a server or a connection has seen. Plain attributes: the connection's thread counts, others read.

    A protocol adds counters of its own as fields.
    """

    connections: int = 0
    messages: int = 0
    device_errors: int = 0
    """Exceptions that came out of the device's own code."""

    def __post_init__(self) -> None:
        self.rejections: Counter[R] = Counter(dict.fromkeys(self.reasons(), 0))
        """Has every key from the start, so that another thread may read it while this one counts."""

    def reasons(self) -> Iterable[R]:
        """Every reason of the protocol."""
        raise NotImplementedError

    def add(self, other: Self) -> None:
        """Take over the counts of a connection that ended."""
        for name, count in other._numbers().items():
            setattr(self, name, getattr(self, name) + count)
        self.rejections.update(other.rejections)

    def as_dict(self) -> dict[str, int]:
        """Every counter by name, rejections where there were any: for `iolane devices`."""
        rejected = {
            f"rejected_{kind.name.lower()}": count for kind, count in self.rejections.items() if count
        }
        return self._numbers() | rejected

    def _numbers(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}
