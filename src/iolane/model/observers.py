"""A list of callables told about an event: how trace listens without the model knowing it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

E = TypeVar("E")

_log = logging.getLogger("iolane.observers")


class Observers(Generic[E]):
    """Callables that want to know. One that fails is logged once and dropped: it must not stop a device."""

    def __init__(self) -> None:
        self._observers: tuple[Callable[[E], object], ...] = ()

    def add(self, observer: Callable[[E], object]) -> Callable[[], None]:
        """Tell `observer` from now on. Returns the call that ends it, which may be made twice."""
        self._observers = (*self._observers, observer)
        return lambda: self._remove(observer)

    def _remove(self, observer: Callable[[E], object]) -> None:
        self._observers = tuple(item for item in self._observers if item is not observer)

    def notify(self, event: E) -> None:
        """Tell everybody."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                self._remove(observer)
                _log.exception("an observer failed and is no longer told")

    def __len__(self) -> int:
        return len(self._observers)
