"""An eventfd that unmasks a vector is the peer's, too (linux/vfio.h, VFIO_IRQ_SET_ACTION_UNMASK)."""

from __future__ import annotations

import os
import threading

from iolane.backends.poller import Poller
from iolane.carriers.vfio_user.unmasking import Unmasking
from iolane.model.interrupts.group import InterruptGroup, InterruptIndex

WAIT = 10.0


def test_each_signal_unmasks() -> None:
    unmasked = threading.Semaphore(0)
    group = InterruptGroup(InterruptIndex.INTX, 1, changed=lambda _: unmasked.release())
    listening = Unmasking("test", threading.RLock())
    fd = os.eventfd(0)
    listening.listen(group, 0, os.dup(fd))
    for _ in range(3):
        os.eventfd_write(fd, 1)
        assert unmasked.acquire(timeout=WAIT)
    listening.close()
    os.close(fd)


def test_a_peer_that_takes_its_signal_back_keeps_nobody() -> None:
    """It has reads wait, too: descriptors share their flags."""
    changed: list[int] = []
    group = InterruptGroup(InterruptIndex.INTX, 1, changed=changed.append)
    listening = Unmasking("test", threading.RLock())
    fd = os.eventfd(0)
    ours = os.dup(fd)
    listening.listen(group, 0, ours)
    os.set_blocking(fd, True)
    poller = Poller("nobody's")
    thread = threading.Thread(target=listening._came, args=(poller, group, 0, ours), daemon=True)
    thread.start()
    thread.join(WAIT)
    waits = thread.is_alive()
    os.eventfd_write(fd, 1)
    thread.join(WAIT)
    for each in (poller, listening):
        each.close()
    poller.join()
    os.close(fd)
    assert not waits
