"""Rings: started when they have all they need, stopped with an index to go on from, signals exchanged."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable

import pytest

from iolane.carriers.vhost_user import FrontEnd, Rejection, SharedMemory, VhostUserError, VhostUserServer
from iolane.carriers.vhost_user.protocol import ProtocolFeature, Request
from iolane.model.virtio import Status
from iolane.testing.drivers.virtio import DriverMemory
from tests.unit.carriers.vhost_user.sample import ECHO, HELD, WANTED, Driver, RawFront, Sample, open_fds

AddDriver = Callable[..., Driver]
Rejected = Callable[[Rejection], int]


def test_a_ring_echoes(front: FrontEnd, add_driver: AddDriver, device: Sample) -> None:
    driver = add_driver()
    for number in range(200):
        assert driver.ask(b"abc%d" % number) == (b"abc%d" % number)[::-1]
    assert device.status & Status.DRIVER_OK
    assert device.ready == 1


def test_both_rings_run_at_once(front: FrontEnd, add_driver: AddDriver) -> None:
    drivers = [add_driver(ECHO), add_driver(HELD)]
    for number in range(20):
        assert drivers[number % 2].ask(b"12") == b"21"


def test_chains_that_were_there_before_the_start_need_no_kick(
    front: FrontEnd, add_driver: AddDriver, device: Sample
) -> None:
    """Who kicked before the ring was enabled may not kick again."""
    driver = add_driver(start=False)
    for _ in range(3):
        driver.ring.send(b"xy", 2)
    front.start(ECHO, driver.ring)
    assert [used.data for used in driver.answers(3)] == [b"yx"] * 3
    assert device.queues[ECHO].kicks == 0


def test_get_vring_base_says_where_to_go_on(front: FrontEnd, add_driver: AddDriver) -> None:
    driver = add_driver()
    for _ in range(5):
        driver.ask(b"12")
    assert front.stop(ECHO) == 5
    driver.ring.send(b"ab", 2)
    front.rings[ECHO].kick()
    assert not driver.ring.collect()
    front.start(ECHO, driver.ring, 5)
    assert driver.answers(1)[0].data == b"ba"
    assert front.stop(ECHO) == 6


def test_get_vring_base_finishes_what_is_in_flight(
    front: FrontEnd, add_driver: AddDriver, device: Sample
) -> None:
    driver = add_driver(HELD)
    device.gate.clear()
    for _ in range(4):
        driver.ring.send(b"ab", 2)
    driver.ring.kick()
    while len(device.seen) < 4:
        front.client.get_features()
    front.client.send(Request.GET_VRING_BASE, (HELD).to_bytes(4, "little") + bytes(4))
    ready, _, _ = select.select([front.client.socket], [], [], 0.05)
    assert not ready
    device.gate.set()
    assert front.client.reply(Request.GET_VRING_BASE).payload == HELD.to_bytes(4, "little") + b"\4\0\0\0"
    assert len(driver.ring.collect()) == 4


def test_a_stopped_ring_needs_another_kick_descriptor(front: FrontEnd, add_driver: AddDriver) -> None:
    driver = add_driver()
    front.stop(ECHO)
    driver.ring.send(b"ab", 2)
    front.client.set_vring_enable(ECHO, True)
    assert not driver.ring.collect()
    front.client.set_vring_kick(ECHO, front.rings[ECHO].kick_fd)
    assert len(driver.answers(1)) == 1


def test_a_disabled_ring_is_not_served_and_goes_on_when_enabled(
    front: FrontEnd, add_driver: AddDriver
) -> None:
    driver = add_driver()
    driver.ask(b"ab")
    front.client.set_vring_enable(ECHO, False)
    driver.ring.send(b"cd", 2)
    front.rings[ECHO].kick()
    assert not driver.ring.collect()
    front.client.set_vring_enable(ECHO, True)
    assert driver.answers(1)[0].data == b"dc"


def test_without_protocol_features_rings_are_enabled_from_the_start(
    server: VhostUserServer, memory: SharedMemory, heap: DriverMemory
) -> None:
    """SET_FEATURES without PROTOCOL_FEATURES: "the back-end must enable all rings immediately"."""
    with FrontEnd(server.path, [memory], wanted=WANTED, protocol=()) as front:
        front.client.set_features(1 << 32)
        driver = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
        client, ring = front.client, front.rings[ECHO]
        client.set_vring_num(ECHO, 64)
        places = (driver.ring.descriptors, driver.ring.used, driver.ring.available)
        client.set_vring_addr(ECHO, *(front.user_address(place) for place in places))
        client.set_vring_call(ECHO, ring.call_fd)
        client.set_vring_kick(ECHO, ring.kick_fd)
        assert driver.ask(b"abc") == b"cba"


def test_call_may_come_before_anything_else(
    server: VhostUserServer, memory: SharedMemory, heap: DriverMemory
) -> None:
    """As DPDK's virtio-user does."""
    with FrontEnd(server.path, [memory], wanted=WANTED) as front:
        front.client.set_vring_call(ECHO, front.rings[ECHO].call_fd)
        driver = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
        front.start(ECHO, driver.ring)
        assert driver.ask(b"abc") == b"cba"


def test_call_is_exchanged_while_the_ring_runs(front: FrontEnd, add_driver: AddDriver) -> None:
    """A guest masks and unmasks its vector: what went to the earlier eventfd is signalled on the new one."""
    driver = add_driver()
    driver.ask(b"ab")
    other = os.eventfd(0, os.EFD_NONBLOCK)
    front.client.set_vring_call(ECHO, other)
    assert os.eventfd_read(other) == 1
    driver.ring.send(b"ab", 2)
    driver.ring.kick()
    ready, _, _ = select.select([other], [], [], 5)
    assert ready
    assert driver.ring.collect()
    os.close(other)


def test_kick_is_exchanged_while_the_ring_runs(front: FrontEnd, add_driver: AddDriver) -> None:
    driver = add_driver()
    other = os.eventfd(0)
    driver.ring.send(b"ab", 2)
    front.client.set_vring_kick(ECHO, other)
    assert len(driver.answers(1)) == 1
    driver.ring.send(b"ab", 2)
    os.eventfd_write(other, 1)
    assert len(driver.answers(1)) == 1
    os.close(other)


def test_without_a_kick_the_ring_is_polled(front: FrontEnd, add_driver: AddDriver) -> None:
    driver = add_driver()
    front.client.set_vring_kick(ECHO, None)
    for _ in range(3):
        driver.ring.send(b"ab", 2)
        assert len(driver.answers(1)) == 1
    front.client.set_vring_kick(ECHO, front.rings[ECHO].kick_fd)
    assert driver.ask(b"abc") == b"cba"


def test_without_a_call_the_front_end_polls(front: FrontEnd, add_driver: AddDriver) -> None:
    driver = add_driver()
    front.client.set_vring_call(ECHO, None)
    driver.ring.send(b"ab", 2)
    driver.ring.kick()
    while not driver.ring.collect():
        front.client.get_features()
    assert front.stop(ECHO) == 1


def test_call_and_kick_may_be_pipes(front: FrontEnd, add_driver: AddDriver) -> None:
    """User Mode Linux is called by a pipe; specification: "eventfd or pipe/pipe2"."""
    driver = add_driver()
    call, call_writer = os.pipe()
    kick_reader, kick = os.pipe()
    front.client.set_vring_call(ECHO, call_writer)
    front.client.set_vring_kick(ECHO, kick_reader)
    assert os.read(call, 8) == (1).to_bytes(8, "little")
    driver.ring.send(b"ab", 2)
    os.write(kick, (1).to_bytes(8, "little"))
    assert os.read(call, 8) == (1).to_bytes(8, "little")
    assert len(driver.ring.collect()) == 1
    for fd in (call_writer, kick_reader, kick):
        os.close(fd)
    os.close(call)
    front.client.set_vring_kick(ECHO, front.rings[ECHO].kick_fd)
    driver.ring.send(b"ab", 2)
    driver.ring.kick()
    front.client.set_vring_call(ECHO, front.rings[ECHO].call_fd)
    assert len(driver.answers(1)) == 1


def test_a_full_pipe_or_eventfd_blocks_nobody(front: FrontEnd, add_driver: AddDriver) -> None:
    driver = add_driver()
    full = os.eventfd(0)
    os.eventfd_write(full, (1 << 64) - 2)
    front.client.set_vring_call(ECHO, full)
    for _ in range(3):
        driver.ring.send(b"ab", 2)
        driver.ring.kick()
        while not driver.ring.collect():
            front.client.get_features()
    assert front.stop(ECHO) == 3
    os.close(full)


@pytest.mark.parametrize("request_", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR])
def test_signals_must_be_eventfds_or_pipes(raw: RawFront, rejected: Rejected, request_: Request) -> None:
    before = open_fds()
    with open("/dev/zero", "rb") as zero:
        assert raw.u64(request_, 0, fds=[zero.fileno()]) == errno.EBADFD
    assert rejected(Rejection.FD_KIND) == 1
    assert raw.u64(request_, 0) == errno.EBADF
    assert rejected(Rejection.FDS_COUNT) == 1
    fd = os.eventfd(0)
    assert raw.u64(request_, 0x100, fds=[fd]) == errno.EBADF
    assert raw.u64(request_, 7, fds=[fd]) == errno.ENOENT
    os.close(fd)
    assert open_fds() == before


def test_what_rings_can_t_be(raw: RawFront, rejected: Rejected) -> None:
    assert raw.state(Request.SET_VRING_NUM, 2, 64) == errno.ENOENT
    for num in (0, 3, 65536, 1 << 31):
        assert raw.state(Request.SET_VRING_NUM, 0, num) == errno.EINVAL
    assert rejected(Rejection.VRING_NUM) == 4
    assert raw.state(Request.SET_VRING_BASE, 0, 1 << 16) == errno.ERANGE
    assert raw.state(Request.SET_VRING_ENABLE, 0, 2) == errno.ERANGE
    assert raw.number(Request.SET_VRING_NUM, bytes(7)) == errno.ENODATA
    assert rejected(Rejection.PAYLOAD_SIZE) == 1


def test_a_running_ring_is_not_changed(
    front: FrontEnd, add_driver: AddDriver, heap: DriverMemory, rejected: Rejected
) -> None:
    driver = add_driver()
    other = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
    client = front.client
    with pytest.raises(VhostUserError, match="SET_VRING_NUM"):
        client.set_vring_num(ECHO, 32)
    with pytest.raises(VhostUserError, match="SET_VRING_BASE"):
        client.set_vring_base(ECHO, 0)
    with pytest.raises(VhostUserError, match="SET_VRING_ADDR"):
        client.set_vring_addr(ECHO, other.ring.descriptors, other.ring.used, other.ring.available)
    assert rejected(Rejection.VRING_RUNNING) == 3
    front.set_address(ECHO)
    client.set_vring_num(ECHO, 64)
    assert driver.ask(b"ab") == b"ba"


def test_a_ring_outside_of_the_memory_is_refused(
    front: FrontEnd, add_driver: AddDriver, rejected: Rejected
) -> None:
    driver = add_driver(start=False)
    driver.ring.used += 1 << 30
    front.memory[0].region = front.memory[0].region._replace(size=1 << 40)
    with pytest.raises(VhostUserError) as refused:
        front.start(ECHO, driver.ring)
    assert refused.value.errno == errno.EFAULT
    assert rejected(Rejection.VRING_ADDRESS) == 1


@pytest.mark.parametrize("area", ["descriptors", "available", "used"])
def test_an_unaligned_ring_is_refused(
    front: FrontEnd, add_driver: AddDriver, area: str, rejected: Rejected
) -> None:
    driver = add_driver(start=False)
    setattr(driver.ring, area, getattr(driver.ring, area) + 1)
    with pytest.raises(VhostUserError) as refused:
        front.start(ECHO, driver.ring)
    assert refused.value.errno == errno.EFAULT


def test_a_ring_that_the_device_can_t_serve_is_refused(
    front: FrontEnd, add_driver: AddDriver, device: Sample, rejected: Rejected
) -> None:
    driver = add_driver(start=False)
    device.refuse = True
    with pytest.raises(VhostUserError) as refused:
        front.start(ECHO, driver.ring)
    assert refused.value.errno == errno.EAGAIN
    assert rejected(Rejection.VRING_REFUSED) == 1
    assert front.rings[ECHO].broken()
    device.refuse = False
    front.stop(ECHO)
    front.start(ECHO, driver.ring)
    assert driver.ask(b"ab") == b"ba"


def test_a_broken_ring_is_told_of_and_works_again_after_a_stop(
    front: FrontEnd, add_driver: AddDriver, device: Sample, heap: DriverMemory
) -> None:
    driver = add_driver()
    driver.ask(b"ab")
    driver.ring.offer(4711)
    front.rings[ECHO].kick()
    assert front.rings[ECHO].broken(30)
    assert device.counters["rejected_head_out_of_range"] == 1
    with device.lock:
        assert device.status & Status.NEEDS_RESET
    front.client.set_vring_enable(ECHO, True)
    driver.ring.send(b"ab", 2)
    driver.ring.kick()
    assert not driver.ring.collect()
    assert front.stop(ECHO) == 1
    assert not device.status
    fresh = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
    front.start(ECHO, fresh.ring)
    assert fresh.ask(b"xyz") == b"zyx"


def test_one_broken_ring_does_not_stop_the_other(
    front: FrontEnd, add_driver: AddDriver, device: Sample
) -> None:
    broken, healthy = add_driver(ECHO), add_driver(HELD)
    broken.ring.offer(64)
    front.rings[ECHO].kick()
    assert front.rings[ECHO].broken(30)
    assert healthy.ask(b"ab") == b"ba"


def test_rings_may_be_larger_or_smaller_than_the_device_would_have_them(
    front: FrontEnd, add_driver: AddDriver
) -> None:
    for size in (2, 32, 256):
        driver = add_driver(ECHO, size=size)
        assert driver.ask(b"ab") == b"ba"
        front.stop(ECHO)


def test_indexes_wrap_round(front: FrontEnd, add_driver: AddDriver, heap: DriverMemory) -> None:
    driver = add_driver(start=False)
    ring = driver.ring
    ring.available_index = ring.used_seen = ring._announced = 65530
    heap.write(ring.used + 2, (65530).to_bytes(2, "little"))
    heap.write(ring.available + 2, (65530).to_bytes(2, "little"))
    front.start(ECHO, ring, 65530)
    for _ in range(12):
        assert driver.ask(b"ab") == b"ba"
    assert front.stop(ECHO) == 6


def test_status_gates_rings_where_it_was_agreed_on(
    server: VhostUserServer, memory: SharedMemory, heap: DriverMemory, device: Sample
) -> None:
    protocol = [ProtocolFeature.REPLY_ACK, ProtocolFeature.STATUS]
    with FrontEnd(server.path, [memory], wanted=WANTED, protocol=protocol) as front:
        client = front.client
        driver = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
        client.set_status(Status.ACKNOWLEDGE | Status.DRIVER)
        client.set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        assert client.get_status() == 11
        driver.ring.send(b"ab", 2)
        front.start(ECHO, driver.ring)
        assert not driver.ring.collect()
        client.set_status(15)
        assert driver.answers(1)[0].data == b"ba"
        assert client.get_status() == 15
        assert front.stop(ECHO) == 1
        client.set_status(0)
        assert client.get_status() == 0


def test_status_zero_stops_rings(
    server: VhostUserServer, memory: SharedMemory, heap: DriverMemory, device: Sample, rejected: Rejected
) -> None:
    protocol = [ProtocolFeature.REPLY_ACK, ProtocolFeature.STATUS]
    with FrontEnd(server.path, [memory], wanted=WANTED, protocol=protocol) as front:
        driver = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
        front.start(ECHO, driver.ring)
        front.client.set_status(15)
        assert driver.ask(b"ab") == b"ba"
        front.client.set_status(0)
        assert device.queues[ECHO].ring is None
        with pytest.raises(VhostUserError):
            front.client.set_status(256)
        assert rejected(Rejection.STATUS) == 1
        front.client.set_status(15)
        driver.ring.send(b"ab", 2)
        driver.ring.kick()
        assert len(driver.answers(1)) == 1


def test_reset_device_disables_rings(front: FrontEnd, add_driver: AddDriver, device: Sample) -> None:
    driver = add_driver()
    driver.ask(b"ab")
    front.client.reset_device()
    assert device.queues[ECHO].ring is None
    assert front.stop(ECHO) == 1
    front.start(ECHO, driver.ring, 1)
    assert driver.ask(b"ab") == b"ba"


def test_reset_owner_disables_rings(front: FrontEnd, add_driver: AddDriver, device: Sample) -> None:
    driver = add_driver()
    front.client.tell(Request.RESET_OWNER)
    assert device.queues[ECHO].ring is None
    front.client.set_vring_enable(ECHO, True)
    assert driver.ask(b"ab") == b"ba"
