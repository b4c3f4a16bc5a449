"""Signals that end a verb: the first unwinds through every context manager, so nothing is left behind."""

from __future__ import annotations

import os
import signal
from types import FrameType

from iolane.operations.interruption import INTERRUPTION

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """SIGTERM or SIGHUP came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def install() -> None:
    """The first signal raises KeyboardInterrupt or Terminated; later ones wait until the clean-up is done."""
    for number in ENDING:
        signal.signal(number, _unwind)


def _unwind(number: int, frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, _wait)
    INTERRUPTION.arrive(KeyboardInterrupt() if number == signal.SIGINT else Terminated(number))


def _wait(number: int, frame: FrameType | None) -> None:
    os.write(2, b"iolane: cleaning up, one moment\n")
