"""Log lines: for people, for programs, for the journal; and never a reason to stop."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path

import pytest

from iolane.errors import IolaneError
from iolane.operations.service.logs import (
    LogFormat,
    LogLevel,
    LogSettings,
    PrintedLines,
    logged,
    settings_of,
)
from iolane.operations.service.torrent import Torrent

LOG = logging.getLogger("iolane.test")


def to(path: Path | None, form: str = "text", level: str = "info") -> LogSettings:
    return LogSettings(path, LogFormat(form), LogLevel(level))


def test_a_json_line_has_all_that_the_record_has(tmp_path: Path) -> None:
    with logged(to(tmp_path / "l", "json"), {}):
        LOG.warning("two\nlines: %s", "ü", extra={"device": "disk0", "event": "connected"})
        try:
            raise ValueError("inside")
        except ValueError:
            LOG.exception("a defect")
        LOG.debug("not this")
    first, second = [json.loads(line) for line in (tmp_path / "l").read_text().splitlines()]
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "warning",
        "priority": 4,
        "logger": "iolane.test",
        "message": "two\nlines: ü",
        "pid": os.getpid(),
        "device": "disk0",
        "event": "connected",
    }
    assert (second["error"], second["priority"]) == ("ValueError: inside", 3)
    assert "test_logs.py" in second["traceback"]


def test_a_text_line_is_one_line(tmp_path: Path) -> None:
    with logged(to(tmp_path / "l"), {}):
        LOG.error("two\nlines", exc_info=ValueError("in\nside"))
    [line] = (tmp_path / "l").read_text().splitlines()
    assert line.endswith("Z error iolane.test: two lines: ValueError: in side")


def test_the_file_is_private_and_appended_to(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for word in ("one", "two"):
            with logged(to(tmp_path / "l"), {}):
                LOG.info(word)
    finally:
        os.umask(before)
    assert (tmp_path / "l").stat().st_mode & 0o777 == 0o600
    assert [line.rsplit(" ", 1)[1] for line in (tmp_path / "l").read_text().splitlines()] == ["one", "two"]


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    with logged(to(tmp_path / "l"), {}):
        LOG.info("one")
        (tmp_path / "l").rename(tmp_path / "l.1")
        LOG.info("two")
    assert "one" in (tmp_path / "l.1").read_text()
    assert "two" in (tmp_path / "l").read_text()


def test_a_full_disk_stops_nobody() -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full here")
    with logged(to(Path("/dev/full")), {}):
        for _ in range(10):
            LOG.info("x" * 10_000)


def test_no_log_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IolaneError, match="no such file or directory"), logged(to(tmp_path / "no/l"), {}):
        pass


def test_what_is_printed_to_stderr_is_a_record(tmp_path: Path) -> None:
    with logged(to(tmp_path / "l", "json", "error"), {}):
        print("disk0 read bar0.CAP", "0x1", file=sys.stderr)
        print("half", end="", file=sys.stderr)
        print(" and half\n\n", file=sys.stderr)
    lines = [json.loads(line) for line in (tmp_path / "l").read_text().splitlines()]
    assert [line["message"] for line in lines] == ["disk0 read bar0.CAP 0x1", "half and half"]


def test_a_line_without_an_end_is_cut_up() -> None:
    taken: list[str] = []
    PrintedLines(taken.append).write("x" * 40_000)
    assert [len(line) for line in taken] == [PrintedLines.LONGEST] * 2


def test_afterwards_all_is_as_before(tmp_path: Path) -> None:
    root, stderr = logging.getLogger(), sys.stderr
    before = (list(root.handlers), root.level)
    with pytest.raises(KeyError), logged(to(tmp_path / "l", "json"), {}):
        raise KeyError
    assert (list(root.handlers), root.level) == before
    assert sys.stderr is stderr


@pytest.mark.parametrize(("form", "start"), [("text", "<4>iolane: careful"), ("json", '<4>{"time"')])
def test_the_journal_gets_priorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, start: str
) -> None:
    """sd-daemon(3); systemd.exec(5), JOURNAL_STREAM: only where descriptor 2 still is what it names."""
    status = os.fstat(2)
    journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    for environment, begins in ((journal, start), ({"JOURNAL_STREAM": "1:2"}, start[3:]), ({}, start[3:])):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        with logged(to(None, form), environment):
            LOG.warning("careful")
        assert stream.getvalue().startswith(begins)


def test_levels_where_nobody_looks_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert settings_of(None, "text", None, daemon=False).level is LogLevel.WARNING
    for settings in (
        settings_of(None, "text", None, daemon=True),
        settings_of(tmp_path / "l", "text", None, daemon=False),
        settings_of(None, "json", None, daemon=False),
    ):
        assert settings.level is LogLevel.INFO
    assert settings_of(None, "json", "debug", daemon=True).level is LogLevel.DEBUG


def test_the_options_are_the_settings() -> None:
    settings = to(Path("/l"), "json", "debug")
    assert settings.options() == ["--log", "/l", "--log-format", "json", "--log-level", "debug"]


def test_a_torrent_is_cut_and_told_of() -> None:
    now, told = [0.0], list[logging.LogRecord]()
    torrent = Torrent(told.append, burst=3, period=10, clock=lambda: now[0])
    record = logging.LogRecord("x", logging.INFO, "", 0, "m", None, None)
    assert [torrent.filter(record) for _ in range(5)] == [True] * 3 + [False] * 2
    now[0] = 9.9
    assert not torrent.filter(record)
    assert told == []
    now[0] = 10
    assert torrent.filter(record)
    assert [line.getMessage() for line in told] == ["3 lines were left out: more than 3 in 10 s"]


def test_a_guest_does_not_fill_the_disk(tmp_path: Path) -> None:
    with logged(to(tmp_path / "l"), {}):
        for number in range(5000):
            LOG.warning("the guest did something wrong: %d", number)
    assert len((tmp_path / "l").read_text().splitlines()) == 1000
