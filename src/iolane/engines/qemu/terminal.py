"""The user's terminal on a guest's console, as `iolane run` has it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator

from iolane.engines.qemu.console import Console

ESCAPE = b"\x1d"
"""Ctrl-] leaves the console; everything else, Ctrl-C too, goes to the guest."""


def interact(
    console: Console, input_fd: int | None = None, output: Callable[[bytes], None] | None = None
) -> None:
    """Connects the terminal with the console until Ctrl-], the end of the input, or the machine's end.

    The terminal is put into raw mode meanwhile. What the console has shown so far is shown first."""
    keyboard = sys.stdin.fileno() if input_fd is None else input_fd
    show = _write_to_stdout if output is None else output
    over_reader, over_writer = os.pipe()
    console.on_end(lambda: os.write(over_writer, b"."))
    try:
        with _raw(keyboard):
            console.attach(show)
            _forward(console, keyboard, over_reader)
    finally:
        console.attach(None)
        console.on_end(None)
        os.close(over_reader)
        os.close(over_writer)


def _forward(console: Console, keyboard: int, over: int) -> None:
    while True:
        ready, _, _ = select.select([keyboard, over], [], [])
        if over in ready:
            return
        typed = os.read(keyboard, 1024)
        before, escape, _ = typed.partition(ESCAPE)
        with contextlib.suppress(OSError):
            console.write(before)
        if escape or not typed:
            return


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _write_to_stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
