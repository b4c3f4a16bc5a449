"""The thread that waits for descriptors, at its end."""

from __future__ import annotations

import os
import select
import threading

import pytest

from iolane.backends.poller import Poller


def test_a_thread_that_is_awake_does_not_close_what_its_end_is_told_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sees that it is to end before it has been woken for that."""
    poller = Poller("tested")
    go = threading.Event()
    inside = threading.Event()
    write = os.eventfd_write

    def late(descriptor: int, value: int) -> None:
        go.set()
        poller._thread.join(0.3)  # it would end within, were it free to
        write(descriptor, value)

    def callback() -> None:
        inside.set()
        go.wait()

    ready = os.eventfd(1)
    poller.arm(ready, select.EPOLLIN, callback)
    inside.wait()
    monkeypatch.setattr(os, "eventfd_write", late)
    poller.close()
    poller.join()
    os.close(ready)
