"""The user's terminal as a guest's console: raw while it is, as it was before when it ends."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from typing import Protocol

from iolane.errors import IolaneError

ESCAPE = b"\x1d"
"""Ctrl-], as telnet and virsh have it."""
ESCAPE_NAME = "Ctrl-]"


class ConsoleLike(Protocol):
    """A guest's console."""

    def write(self, data: bytes) -> None:
        """Types `data`."""

    def attach(self, listener: Callable[[bytes], None] | None, *, replay: bool = True) -> None:
        """Gives `listener` what was shown so far (unless not to `replay`), and what comes."""

    def on_end(self, call: Callable[[], object] | None) -> None:
        """Calls `call` when the machine has ended, at once if it has."""


def require_terminal(otherwise: str = "iolane run ... -- COMMAND") -> None:
    """Refuse an interactive console without a terminal; `otherwise` is what does without."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise IolaneError(
            "an interactive console needs a terminal",
            remedy=f"give a command for the guest: {otherwise}",
        )


@contextlib.contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too; the terminal is as before afterwards, whatever happens."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def interact(console: ConsoleLike, *, replay: bool = True) -> bool:
    """Connect the terminal until the escape key (True) or until the machine ends (False)."""
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    ended = os.eventfd(0, os.EFD_CLOEXEC)
    with raw_terminal(keyboard):
        console.attach(lambda data: _write_all(screen, data), replay=replay)
        console.on_end(lambda: os.eventfd_write(ended, 1))
        try:
            return _pump(keyboard, console, ended)
        finally:
            console.on_end(None)
            console.attach(None)
            os.close(ended)


def _pump(keyboard: int, console: ConsoleLike, ended: int) -> bool:
    poll = select.poll()
    poll.register(keyboard, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ended in ready:
            return False
        keys = os.read(keyboard, 1024)
        before, escape, _ = keys.partition(ESCAPE)
        if before:
            console.write(before)
        if escape or not keys:
            return True


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
