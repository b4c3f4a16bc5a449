"""The eventfds of a vector are the peer's, too: nothing waits for what it does with them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from iolane.model.interrupts.group import InterruptGroup, InterruptIndex

FULL = (1 << 64) - 2
"""An eventfd whose counter is here makes a write wait (eventfd(2))."""


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def group(fd: int) -> Iterator[InterruptGroup]:
    group = InterruptGroup(InterruptIndex.MSIX, 1, changed=lambda _: None)
    group.connect(0, os.dup(fd))
    yield group
    group.disconnect_all()


def test_a_signal_is_counted(group: InterruptGroup, fd: int) -> None:
    assert group.signal(0)
    assert group.trigger(0)
    assert os.eventfd_read(fd) == 2


def test_a_peer_that_fills_its_eventfd_and_has_writes_wait_keeps_nobody(
    group: InterruptGroup, fd: int
) -> None:
    """Descriptors share their flags: the peer can take back what `connect` has set."""
    os.set_blocking(fd, True)
    os.eventfd_write(fd, FULL)
    thread = threading.Thread(target=group.signal, args=(0,), daemon=True)
    thread.start()
    thread.join(10)
    waits = thread.is_alive()
    os.eventfd_read(fd)
    assert not waits
