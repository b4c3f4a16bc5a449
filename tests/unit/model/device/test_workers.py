"""The carrier's threads."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from iolane.errors import IolaneError
from iolane.model.workers import Workers


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_threads_are_joined_after_everything_submitted_ran() -> None:
    done: list[int] = []
    with Workers(2, name="joined") as workers:
        for number in range(100):
            workers.submit(partial(done.append, number))
        assert {"joined-worker-0", "joined-worker-1", "joined-timer"} <= names()
    assert sorted(done) == list(range(100))
    assert not any(name.startswith("joined") for name in names())
    workers.close()
    with pytest.raises(IolaneError):
        workers.submit(lambda: None)


def test_they_are_no_daemons() -> None:
    with Workers(1, name="plain"):
        assert [thread.daemon for thread in threading.enumerate() if thread.name.startswith("plain")] == [
            False
        ] * 2


def test_an_exception_is_counted_and_told_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[BaseException] = []
    later = threading.Event()
    with Workers(1) as workers:
        workers.on_exception.add(seen.append)
        workers.submit(lambda: 1 / 0)
        workers.wake_at(0, lambda: [][1])
        workers.wake_at(time.monotonic_ns() + 1_000_000, later.set)
        assert later.wait(10)
    assert workers.exceptions == 2
    assert sorted(type(error).__name__ for error in seen) == ["IndexError", "ZeroDivisionError"]
    assert "failed" in caplog.text


def test_an_observer_that_fails_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with Workers(1) as workers:
        workers.on_exception.add(lambda error: 1 / 0)
        workers.submit(lambda: 1 / 0)
        workers.submit(lambda: 1 / 0)
    assert len(workers.on_exception) == 0
    assert workers.exceptions == 2


def test_wakes_in_order_and_cancelled_ones_not_at_all() -> None:
    woken: list[int] = []
    last = threading.Event()
    now = time.monotonic_ns()
    with Workers(1) as workers:
        entries = [
            workers.wake_at(now + 20_000_000 + number * 1000, partial(woken.append, number))
            for number in reversed(range(8))
        ]
        workers.cancel_wake(entries[3])
        workers.cancel_wake(entries[3])
        workers.wake_at(now + 30_000_000, last.set)
        assert last.wait(10)
    assert woken == [0, 1, 2, 3, 5, 6, 7]


def test_a_far_timer_does_not_hold_up_close() -> None:
    with Workers(1) as workers:
        workers.wake_at(time.monotonic_ns() + (1 << 80), lambda: None)


def test_no_threads_at_all_is_refused() -> None:
    with pytest.raises(IolaneError):
        Workers(0)


def test_close_from_a_worker_does_not_wait_for_itself() -> None:
    closed = threading.Event()
    workers = Workers(2)

    def close() -> None:
        workers.close()
        closed.set()

    workers.submit(close)
    assert closed.wait(10)
