"""What a device server says: lines for people or JSON, to stderr, to the journal or to a file."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TextIO

import msgspec

from iolane.errors import IolaneError
from iolane.operations.service.torrent import Torrent

PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Level -> syslog's priority (syslog(3)), as sd-daemon(3) takes it at the start of a line."""
LOWEST = 7
STRUCTURED = ("device", "event", "socket")
"""What a record may bear beside its message (`extra=` of a logging call)."""


class LogFormat(StrEnum):
    """How a line looks."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """What is worth a line."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogSettings(msgspec.Struct, frozen=True):
    """Where to and how. A file is made with mode 0600, appended to, opened anew when it was moved away."""

    path: Path | None = None
    """None: stderr."""
    format: LogFormat = LogFormat.TEXT
    level: LogLevel = LogLevel.WARNING

    def options(self) -> list[str]:
        """The same for an `iolane serve` that we start."""
        where = [] if self.path is None else ["--log", str(self.path)]
        return [*where, "--log-format", self.format.value, "--log-level", self.level.value]


@contextmanager
def logged(settings: LogSettings, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """What the process logs goes where the settings say, while this is entered.

    What is printed to `sys.stderr` meanwhile (traces) becomes records too, where the lines have a form.
    """
    handler = _handler(settings, environment)
    handler.addFilter(Torrent(handler.handle))
    root, stderr = logging.getLogger(), sys.stderr
    before, level = list(root.handlers), root.level
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    if settings.path is not None or settings.format is LogFormat.JSON:
        sys.stderr = PrintedLines(handler.emit_printed)
    try:
        yield
    finally:
        sys.stderr = stderr
        root.handlers[:] = before
        root.setLevel(level)
        handler.close()


def priority(level: int) -> int:
    """Syslog's priority of a level.

    >>> priority(logging.WARNING)
    4
    """
    return next((number for least, number in PRIORITIES if level >= least), LOWEST)


def is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether the descriptor leads to the journal: `JOURNAL_STREAM` is its device:inode (systemd.exec(5))."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Lines(logging.Handler):
    """A handler whose own failure (a full disk) neither stops the device nor asks for a line itself."""

    failures: int = 0

    def handleError(self, record: logging.LogRecord) -> None:
        self.failures += 1

    def emit_printed(self, line: str) -> None:
        """A line that was printed is a record, whatever the level is."""
        record = logging.LogRecord("iolane.printed", logging.INFO, "", 0, line, None, None)
        with self.lock or threading.RLock():
            self.emit(record)


class _StreamLines(_Lines, logging.StreamHandler[TextIO]):
    pass


class _FileLines(_Lines, WatchedFileHandler):
    """Opened anew when another program moved it away (logrotate)."""


def _handler(settings: LogSettings, environment: Mapping[str, str]) -> _StreamLines | _FileLines:
    handler: _StreamLines | _FileLines
    to_journal = False
    if settings.path is not None:
        try:
            os.close(os.open(settings.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
            handler = _FileLines(settings.path.absolute(), encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise IolaneError(f"log {settings.path}: {reason}") from None
    else:
        handler = _StreamLines(sys.stderr)
        to_journal = is_journal(2, environment)
    formatter: logging.Formatter
    if settings.format is LogFormat.JSON:
        formatter = JsonLine()
    else:
        formatter = TextLine(dated=settings.path is not None)
    handler.setFormatter(WithPriority(formatter) if to_journal else formatter)
    return handler


class TextLine(logging.Formatter):
    """One line for people, without a traceback but with what it ended in."""

    def __init__(self, *, dated: bool) -> None:
        super().__init__()
        self._dated = dated

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        said = record.getMessage() + (f": {type(error).__name__}: {error}" if error else "")
        line = " ".join(said.split())
        if not self._dated:
            return f"iolane: {line}"
        return f"{_time(record)} {record.levelname.lower()} {record.name}: {line}"


class JsonLine(logging.Formatter):
    """One JSON object a record, on one line: `time`, `level`, `priority`, `logger`, `message`, `pid`, and
    `device`, `event`, `socket`, `error`, `traceback` where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "priority": priority(record.levelno),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        line |= {
            name: str(value) for name in STRUCTURED if (value := getattr(record, name, None)) is not None
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = f"{type(error).__name__}: {error}"
            line["traceback"] = "".join(traceback.format_exception(error))
        return json.dumps(line)


class WithPriority(logging.Formatter):
    """`<4>` before the line (sd-daemon(3)): the journal takes it off and keeps it as PRIORITY."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return f"<{priority(record.levelno)}>{self._inner.format(record)}"


class PrintedLines(io.TextIOBase):
    """A text stream that gives each whole line to `take`."""

    LONGEST = 16 << 10
    """Characters; a line that is longer is cut up."""

    def __init__(self, take: Callable[[str], object]) -> None:
        super().__init__()
        self._take = take
        self._begun = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, begun = (self._begun + text).split("\n")
            while len(begun) > self.LONGEST:
                lines.append(begun[: self.LONGEST])
                begun = begun[self.LONGEST :]
            self._begun = begun
        for line in lines:
            if line.strip():
                self._take(line)
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


def is_structured(settings: LogSettings) -> bool:
    """Whether programs read the log, or nobody sees it at once: a JSON stream, the journal, a file."""
    return settings.path is not None or settings.format is LogFormat.JSON or is_journal(2, os.environ)


def take_stderr(path: Path) -> None:
    """What is written to descriptor 2 without Python (a crash's last words) goes to the log as it is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def settings_of(path: Path | None, form: str, level: str | None, *, daemon: bool) -> LogSettings:
    """The settings that a user's words mean. Without a level it is `info` where nobody looks on, else
    `warning`.
    """
    settings = LogSettings(path, LogFormat(form))
    chosen = LogLevel.INFO if daemon or is_structured(settings) else LogLevel.WARNING
    return msgspec.structs.replace(settings, level=LogLevel(level) if level else chosen)
