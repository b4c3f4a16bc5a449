"""Leaving the terminal, the session and the folder behind: a service that its starter does not wait for."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import NoReturn

import msgspec

from iolane.errors import IolaneError

Announce = Callable[[bytes], None]
LARGEST_READ = 64 << 10


class _Said(msgspec.Struct, frozen=True):
    """What the service tells its starter, once: that it serves, or why it can't."""

    ready: bool
    """Whether it serves."""
    text: str
    remedy: str | None = None


def detach(service: Callable[[Announce], object], *, keep: Collection[int] = (), log: str = "") -> bytes:
    """Run `service` in a process of its own, and return what it announced once it is ready.

    It has no terminal, is in a session of its own that it does not lead, in the folder `/`, and no descriptor
    of this process is open in it but those of `keep`. If this process ends before it is ready, it ends too.

    Args:
        service: called there with what announces; when it returns or raises, that process ends.
        keep: descriptors that it needs.
        log: where it logs, for messages.

    Raises:
        IolaneError: it could not start; with its own message and remedy.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()  # no thread has been started in this process
    if not child:
        with contextlib.suppress(BaseException):
            os.setsid()
            if not os.fork():
                _serve(service, writer, keep)
        os._exit(0)
    os.close(writer)
    try:
        os.waitpid(child, 0)
        return _answer(reader, log)
    finally:
        os.close(reader)


def _answer(reader: int, log: str) -> bytes:
    parts = []
    while part := os.read(reader, LARGEST_READ):
        parts.append(part)
    if not parts:
        where = f"see {log}" if log else None
        raise IolaneError("the service died while it started, without a word", remedy=where)
    said = msgspec.json.decode(b"".join(parts), type=_Said)
    if not said.ready:
        raise IolaneError(said.text, remedy=said.remedy)
    return said.text.encode()


def _serve(service: Callable[[Announce], object], writer: int, keep: Collection[int]) -> NoReturn:
    """The service's process: it ends here."""
    code = 1
    telling = [writer]

    def tell(said: _Said) -> None:
        if telling:
            descriptor = telling.pop()
            try:
                _write_all(descriptor, msgspec.json.encode(said))
            finally:
                os.close(descriptor)

    try:
        os.chdir("/")
        _close_all_but({*keep, writer})
        for number in range(3):
            _null(number)
        signal.signal(signal.SIGHUP, _stay)
        service(lambda text: tell(_Said(True, text.decode())))
        code = 0
    except IolaneError as error:
        _last_words(tell, _Said(False, error.message, error.remedy))
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        _last_words(tell, _Said(False, f"{named}{error.strerror or error}"))
    except BaseException as error:
        _last_words(tell, _Said(False, f"{type(error).__name__}: {error}"))
    os._exit(code)


def _last_words(tell: Callable[[_Said], None], said: _Said) -> None:
    with contextlib.suppress(OSError):  # the starter has gone
        tell(said)


def _stay(number: int, frame: FrameType | None) -> None:
    """SIGHUP says that a terminal is gone, and a daemon has none; logs are opened anew without being told."""


def _null(number: int) -> None:
    """Put /dev/null at a descriptor."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    else:
        os.set_inheritable(number, True)


def _close_all_but(kept: Collection[int]) -> None:
    """All above the standard ones: a lock or a pipe of the starter's must not live as long as the service."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):  # the one that listed the folder
                os.close(int(name))


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
