"""A queue is had without its thread's help while that sleeps (`CompiledQueue.hold`)."""

from __future__ import annotations

import os
import threading

from iolane.memory.ring import BlockPath, NetPath, NetPort
from tests.unit.memory.ring_rig import BYTES, DIRECT, FLUSH, IN, WAIT, RingRig

LOOKS = 1000
ECHO = 3
NO_NOTIFY = 1


def hold(rig: RingRig) -> None:
    """Once its thread sleeps: it looks for a while before."""
    while not rig.queue.hold():
        pass


def test_what_comes_meanwhile_waits_for_the_release() -> None:
    with RingRig(None) as rig:
        hold(rig)
        rig.send(FLUSH, 0, 0)
        rig.driver.kick()
        for _ in range(LOOKS):
            assert rig.driver.collect() == []
        assert rig.queue.last_available == 0
        rig.queue.release()
        assert len(rig.wait(1)) == 1


def test_a_held_queue_asks_for_kicks() -> None:
    """Who waits for the network wants none; whoever serves the ring next does (virtio 1.3, 2.7.10)."""
    path = NetPath(NetPort(ECHO, length=1514), receives=True)
    path.agree(offloads=0)
    with RingRig(path) as rig:
        rig.driver.add([], [(rig.heap.allocate(1 << 17), 1 << 17)])
        rig.driver.kick()
        os.eventfd_write(rig.kick, 1)
        while not rig.heap.load16(rig.driver.used) & NO_NOTIFY:
            pass
        hold(rig)
        assert not rig.heap.load16(rig.driver.used) & NO_NOTIFY
        rig.queue.release()


def test_it_goes_on_with_other_descriptors() -> None:
    with RingRig(None) as rig:
        earlier = rig.kick, rig.call
        hold(rig)
        rig.kick, rig.call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
        rig.queue.set_wires(rig.kick, rig.call)
        for fd in earlier:
            os.close(fd)
        rig.queue.release()
        rig.send(FLUSH, 0, 0)
        assert len(rig.wait(1)) == 1


def test_a_chain_that_python_ends_meanwhile_is_shown_by_settle() -> None:
    with RingRig(None, answer=False) as rig:
        head = rig.send(FLUSH, 0, 0)
        rig.driver.kick()
        rig.wait_event()
        hold(rig)
        rig.queue.complete(head, 1)
        assert rig.driver.collect() == []
        assert rig.queue.settle() == (True, False)
        assert [used.head for used in rig.driver.collect()] == [head]
        rig.queue.release()


def test_it_is_not_had_while_the_kernel_has_a_transfer() -> None:
    read_end, write_end = os.pipe()
    with RingRig(BlockPath(read_end, 1 << 20, DIRECT, own_fd=True)) as rig:
        rig.send(IN, 0, 512)
        rig.driver.kick()
        while rig.queue.last_available != 1:
            pass
        for _ in range(LOOKS):
            assert not rig.queue.hold()
        os.write(write_end, b"d" * 512)
        assert len(rig.wait(1)) == 1
        hold(rig)
        rig.queue.release()
    os.close(write_end)


def test_a_thread_that_leaves_touches_no_guest_memory() -> None:
    with RingRig(None) as rig:
        hold(rig)
        rig.send(FLUSH, 0, 0)
        rig.driver.kick()
        rig.heap.view[:] = b"\xaa" * BYTES
        rig.queue.leave()
        assert rig.thread is not None
        rig.thread.join(WAIT)
        assert not rig.thread.is_alive()
        assert bytes(rig.heap.view) == b"\xaa" * BYTES
        assert rig.queue.last_available == 0


def test_nothing_is_lost_or_done_twice_by_taking_and_releasing() -> None:
    count, done = 3000, []
    with RingRig(None, size=64) as rig:
        over = threading.Event()

        def take_and_release() -> None:
            while not over.is_set():
                if rig.queue.hold():
                    rig.queue.release()

        taker = threading.Thread(target=take_and_release)
        taker.start()
        try:
            for _ in range(count // 30):
                for _ in range(30):
                    rig.send(FLUSH, 0, 0)
                done += rig.wait(30)
        finally:
            over.set()
            taker.join()
    assert len(done) == count
    assert rig.queue.used_index == count
    assert len(rig.events) == count
