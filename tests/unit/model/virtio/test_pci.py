"""Virtio functions against virtio 1.3, 2.1 to 2.6, 3.1 and 4.1; each test names the section."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from iolane.errors import IolaneError
from iolane.model.device import DeviceError
from iolane.model.interrupts import InterruptMode
from iolane.model.pci import Command, Presentation, Type0Header
from iolane.model.reset import ResetKind
from iolane.model.state import StateError
from iolane.model.virtio import Feature, RingRejection, Status
from iolane.model.virtio.pci import VirtioPci
from iolane.model.virtio.pci.registers import CommonRegisters as Common
from iolane.model.workers import Workers
from iolane.testing.drivers.function import MEMORY_START
from iolane.testing.drivers.virtio_pci import VirtioPciDriver
from iolane.uapi.virtio import NO_VECTOR, PciStructure
from tests.unit.model.virtio.sample import Echo

Driver = VirtioPciDriver[VirtioPci]
MODES = [InterruptMode.MSIX, InterruptMode.INTX]


def function(queues: int = 2, presentation: str = "auto") -> VirtioPci:
    return VirtioPci(Echo(queues), presentation=presentation)


def echo(driver: Driver) -> Echo:
    assert isinstance(driver.device.virtio, Echo)
    return driver.device.virtio


@pytest.fixture(params=MODES, ids=lambda mode: mode.value)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with Driver(function(), interrupts=request.param) as driver:
        yield driver


@pytest.fixture
def fresh() -> Iterator[Driver]:
    """Found, but nothing negotiated."""
    with Driver(function(), ready=False) as driver:
        yield driver


def vector_of(driver: Driver, queue: int) -> int:
    return 1 + queue if driver.mode is InterruptMode.MSIX else 0


def round_trip(driver: Driver, data: bytes = b"hello", queue: int = 0) -> bytes:
    ring = driver.rings[queue]
    ring.send(data, len(data))
    ring.kick()
    (used,) = ring.collect()
    return used.data


# Discovery (4.1.2, 4.1.4).


def test_identity(fresh: Driver) -> None:
    config = fresh.device.config
    assert config.read(0, 4) == (0x1040 + 26) << 16 | 0x1AF4
    assert config.read(Type0Header.REVISION_ID.offset, 1) >= 1
    assert config.read(Type0Header.SUBSYSTEM_ID.offset, 2) >= 0x40


def test_every_structure_is_there(fresh: Driver) -> None:
    assert set(fresh.structures) == set(PciStructure)
    assert fresh.multiplier == 4
    assert fresh.config(0, 8) == 1 << 32
    assert fresh.config(0xC, 2) == 0xABCD
    assert fresh.common(Common.NUM_QUEUES.offset, 2) == 2


def test_no_msi() -> None:
    with pytest.raises(IolaneError, match="choose presentation=msix or intx"):
        function(presentation="msi")
    assert function(presentation="intx").interrupts.msix is None
    assert Presentation.AUTO is function().presentation


def test_queues_fit_the_notification_area() -> None:
    with pytest.raises(IolaneError, match="at most 1024 queues"):
        VirtioPci(Echo(1025))


def window(driver: Driver, offset: int, length: int) -> int:
    """Set the window of config space; its capability's offset."""
    config, at = driver.device.config, driver.device.config.read(Type0Header.CAPABILITIES_POINTER.offset, 1)
    while config.read(at, 1) != 0x09 or config.read(at + 3, 1) != PciStructure.PCI_CFG:
        at = config.read(at + 1, 1)
    config.write(at + 4, 1, driver.structures[PciStructure.DEVICE_CFG][0])
    config.write(at + 8, 4, offset)
    config.write(at + 12, 4, length)
    return int(at) + 16


def test_config_space_reaches_the_structures(fresh: Driver) -> None:
    """4.1.4.9: reads and writes of 1, 2 and 4 bytes."""
    config, place = fresh.device.config, fresh.structures[PciStructure.DEVICE_CFG][1]
    data = window(fresh, place + 0xC, 2)
    assert config.read(data, 2) == 0xABCD
    data = window(fresh, place + 8, 4)
    config.write(data, 4, 0x1234_5678)
    assert fresh.config(8, 4) == 0x1234_5678
    data = window(fresh, place + 9, 1)
    config.write(data, 1, 0xFF)
    assert fresh.config(8, 4) == 0x1234_FF78
    for offset, length in ((place + 9, 2), (place, 3), (place, 8), (0x4000, 4), (0xFFFF_FFFC, 4)):
        data = window(fresh, offset, length)
        config.write(data, 4, 0)
        config.read(data, 4)
    assert fresh.config(8, 4) == 0x1234_FF78


# Features (2.2, 4.1.4.3.1).


def test_features_are_shown_in_windows(fresh: Driver) -> None:
    wanted = {Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX}
    wanted |= {Feature.ACCESS_PLATFORM, Feature.RING_RESET}
    assert fresh.offered() == 0b11 | sum(1 << feature for feature in wanted)
    for select in (2, 3, 0xFFFF_FFFF):
        fresh.set_common(Common.DEVICE_FEATURE_SELECT.offset, 4, select)
        assert fresh.common(Common.DEVICE_FEATURE.offset, 4) == 0


@pytest.mark.parametrize(
    ("features", "accepted"),
    [
        (1 << 32, True),
        (1 << 32 | 0b11, True),
        (1 << 32 | 0b10, False),
        (0b01, False),
    ],
)
def test_features_ok_is_the_devices_to_keep(fresh: Driver, features: int, accepted: bool) -> None:
    """2.2.2: a subset that makes no sense is refused; 6.2: so is a driver without VERSION_1."""
    fresh.add_status(Status.ACKNOWLEDGE | Status.DRIVER)
    fresh.write_features(features)
    fresh.add_status(Status.FEATURES_OK)
    assert (Status.FEATURES_OK in fresh.status) is accepted
    fresh.add_status(Status.DRIVER_OK)
    assert (Status.DRIVER_OK in fresh.status) is accepted
    fresh.reset()
    assert fresh.common(Common.DRIVER_FEATURE.offset, 4) == 0


def test_features_are_settled_by_features_ok(driver: Driver) -> None:
    before = echo(driver).acknowledged
    driver.write_features(0)
    driver.set_common(Common.DRIVER_FEATURE_SELECT.offset, 4, 1)
    assert driver.common(Common.DRIVER_FEATURE.offset, 4) == before >> 32
    assert echo(driver).acknowledged == before
    fresh_bits = 1 << 31
    driver.set_common(Common.DRIVER_FEATURE.offset, 4, fresh_bits)
    assert echo(driver).driver_features == before, "what is not offered is not taken"


def test_status_bits_are_not_cleared_one_by_one(driver: Driver) -> None:
    driver.set_common(Common.DEVICE_STATUS.offset, 1, Status.ACKNOWLEDGE)
    assert Status.DRIVER_OK in driver.status
    driver.set_common(Common.DEVICE_STATUS.offset, 1, int(Status.NEEDS_RESET | Status.FAILED))
    assert Status.NEEDS_RESET not in driver.status, "2.1: it is the device's"
    assert Status.FAILED in driver.status


# Configuration (2.5, 4.1.4.3.1).


def test_generation_changes_with_the_configuration(driver: Driver) -> None:
    before = driver.common(Common.CONFIG_GENERATION.offset, 1)
    assert driver.common(Common.CONFIG_GENERATION.offset, 1) == before
    driver.interrupts()
    for number in range(300):
        echo(driver).length = number
        with driver.device.lock:
            echo(driver).config_changed()
        assert driver.interrupts(0) == 1
        assert driver.isr() == 2
        after = driver.common(Common.CONFIG_GENERATION.offset, 1)
        assert after != before
        assert driver.config(0, 8) == number
        before = after


def test_a_transports_bytes_of_configuration() -> None:
    device = Echo()
    assert device.read_config(6, 8) == bytes(2) + bytes(4) + bytes.fromhex("cdab")
    assert device.read_config(0, 100)[14:] == bytes(86)
    device.write_config(4, b"\xff" * 6)
    assert device.read_config(0, 14).hex() == "0000000001000000ffff0000cdab"
    device.close()


# Queues (2.6, 4.1.4.3).


def test_bytes_go_round(driver: Driver) -> None:
    for number in range(40):
        assert round_trip(driver, b"%d" % number, number % 2) == b"%d" % number
        assert driver.interrupts(vector_of(driver, number % 2)) == 1
        if driver.mode is InterruptMode.INTX:
            assert driver.isr() == 1
            assert not driver.line
    assert driver.isr() == 0


def test_queue_registers(fresh: Driver) -> None:
    fresh.negotiate()
    fresh.set_common(Common.QUEUE_SELECT.offset, 2, 2)
    assert fresh.common(Common.QUEUE_SIZE.offset, 2) == 0, "there is no such queue"
    fresh.set_common(Common.QUEUE_ENABLE.offset, 2, 1)
    assert fresh.common(Common.QUEUE_ENABLE.offset, 2) == 0
    fresh.set_common(Common.QUEUE_SELECT.offset, 2, 1)
    for wrong in (0, 3, 32, 0xFFFF):
        fresh.set_common(Common.QUEUE_SIZE.offset, 2, wrong)
        assert fresh.common(Common.QUEUE_SIZE.offset, 2) == 16
    fresh.set_up_queue(1, 8)
    assert fresh.common(Common.QUEUE_SIZE.offset, 2) == 8
    assert fresh.common(Common.QUEUE_ENABLE.offset, 2) == 1
    for register in (Common.QUEUE_DESC, Common.QUEUE_DRIVER, Common.QUEUE_DEVICE):
        before = fresh.common(register.offset, 4)
        fresh.set_common(register.offset, 4, 0)
        assert fresh.common(register.offset, 4) == before, "4.1.4.3.2: not once it is enabled"
    fresh.set_common(Common.QUEUE_ENABLE.offset, 2, 0)
    assert fresh.common(Common.QUEUE_ENABLE.offset, 2) == 1
    fresh.set_common(Common.QUEUE_SELECT.offset, 2, 0)
    assert fresh.common(Common.QUEUE_ENABLE.offset, 2) == 0


def test_nothing_happens_before_driver_ok(fresh: Driver) -> None:
    """2.1.2: MUST NOT consume buffers or send used buffer notifications."""
    fresh.negotiate()
    fresh.set_up_queues()
    fresh.rings[0].send(b"early", 5)
    fresh.rings[0].kick()
    assert fresh.rings[0].collect() == []
    fresh.add_status(Status.DRIVER_OK)
    assert [used.data for used in fresh.rings[0].collect()] == [b"early"], "the kick was not lost"
    assert fresh.interrupts(1) == 1


def test_vectors_that_do_not_exist(fresh: Driver) -> None:
    """4.1.5.1.2.1: NO_VECTOR reads back."""
    fresh.set_common(Common.QUEUE_SELECT.offset, 2, 0)
    for register in (Common.CONFIG_MSIX_VECTOR, Common.QUEUE_MSIX_VECTOR):
        assert fresh.common(register.offset, 2) == NO_VECTOR
        for vector, wanted in ((2, 2), (3, NO_VECTOR), (0, 0), (NO_VECTOR, NO_VECTOR)):
            fresh.set_common(register.offset, 2, vector)
            assert fresh.common(register.offset, 2) == wanted


def test_an_event_without_vector_is_silent(fresh: Driver) -> None:
    fresh.negotiate()
    fresh.set_up_queues()
    fresh.set_common(Common.QUEUE_SELECT.offset, 2, 0)
    fresh.set_common(Common.QUEUE_MSIX_VECTOR.offset, 2, NO_VECTOR)
    fresh.add_status(Status.DRIVER_OK)
    assert round_trip(fresh) == b"hello"
    assert [fresh.interrupts(vector) for vector in range(3)] == [0, 0, 0]


def test_a_queue_is_reset_alone(driver: Driver) -> None:
    """2.6.1: the other goes on; it may be set up again, elsewhere and otherwise."""
    round_trip(driver)
    driver.set_common(Common.QUEUE_SELECT.offset, 2, 0)
    driver.set_common(Common.QUEUE_RESET.offset, 2, 1)
    assert driver.common(Common.QUEUE_RESET.offset, 2) == 0
    assert driver.common(Common.QUEUE_ENABLE.offset, 2) == 0
    assert driver.common(Common.QUEUE_SIZE.offset, 2) == 16
    assert driver.common(Common.QUEUE_MSIX_VECTOR.offset, 2) == NO_VECTOR
    driver.rings[0].send(b"lost", 4)
    driver.notify(0)
    assert driver.rings[0].collect() == []
    assert round_trip(driver, queue=1) == b"hello"
    driver.rings[0] = driver.set_up_queue(0, 4)
    assert round_trip(driver) == b"hello"
    assert echo(driver).events == ["start 0", "start 1", "stop 0", "start 0"]


def test_queue_reset_needs_its_feature() -> None:
    with Driver(function(), features=~(1 << Feature.RING_RESET) & ((1 << 64) - 1)) as driver:
        driver.set_common(Common.QUEUE_SELECT.offset, 2, 0)
        driver.set_common(Common.QUEUE_RESET.offset, 2, 1)
        assert driver.common(Common.QUEUE_ENABLE.offset, 2) == 1


def test_a_kick_for_a_queue_that_does_not_exist(driver: Driver) -> None:
    bar, base = driver.structures[PciStructure.NOTIFY_CFG]
    driver.write(base + 4 * 2, 2, 2, bar=bar)
    driver.write(base + 1, 1, 2, bar=bar)
    assert round_trip(driver) == b"hello"


# Reset (2.4) and errors (2.1.2).


@pytest.mark.parametrize("how", ["status", "flr", "conventional"])
def test_reset_forgets_everything(driver: Driver, how: str) -> None:
    round_trip(driver)
    echo(driver).hold = True
    driver.rings[0].send(b"held", 4)
    driver.rings[0].kick()
    if how == "status":
        driver.reset()
    else:
        driver.device.reset(ResetKind.FLR if how == "flr" else ResetKind.CONVENTIONAL)
        driver.enable()
    assert driver.status == 0
    assert echo(driver).acknowledged == 0
    for queue, chain in echo(driver).held:
        before = bytes(driver.memory)
        queue.push(chain, 4)
        assert bytes(driver.memory) == before, "what comes too late touches nothing"
    echo(driver).hold = False
    driver.rings.clear()
    driver.negotiate()
    driver.set_up_queues()
    driver.add_status(Status.DRIVER_OK)
    assert round_trip(driver) == b"hello"


def test_a_broken_ring_needs_a_reset(driver: Driver) -> None:
    """2.1.2: DEVICE_NEEDS_RESET, and a configuration change notification."""
    driver.rings[0].offer(99)
    driver.rings[0].kick()
    assert Status.NEEDS_RESET in driver.status
    assert echo(driver).queues[0].rejection is RingRejection.HEAD_OUT_OF_RANGE
    assert driver.interrupts(0) == 1
    assert driver.isr() == 2
    assert driver.device.describe()["rejected_head_out_of_range"] == 1
    assert round_trip(driver, queue=1) == b"hello", "the other queue is as good as before"
    driver.reset()
    assert echo(driver).queues[0].rejection is None


def test_a_bug_in_the_device_is_told_to_the_driver(driver: Driver) -> None:
    found: list[DeviceError] = []
    driver.device.on_error.add(found.append)
    echo(driver).crash = True
    driver.rings[0].send(b"x", 1)
    driver.rings[0].kick()
    assert Status.NEEDS_RESET in driver.status
    assert [str(item.error) for item in found] == ["a bug"]


def test_a_queue_that_can_not_start(fresh: Driver) -> None:
    echo(fresh).refuse = True
    fresh.negotiate()
    fresh.set_up_queues()
    fresh.add_status(Status.DRIVER_OK)
    assert Status.NEEDS_RESET in fresh.status
    assert fresh.device.error_count == 2, "one for each queue"


# Bus mastering, pausing, threads.


def test_kicks_wait_for_bus_mastering(driver: Driver) -> None:
    place = Type0Header.COMMAND.offset
    command = Command(driver.device.config.read(place, 2))
    with driver.device.lock:
        driver.device.config.write(place, 2, command.replace(BUS_MASTER=0))
    driver.rings[0].send(b"x", 1)
    driver.rings[0].kick()
    assert driver.rings[0].collect() == []
    with driver.device.lock:
        driver.device.config.write(place, 2, command)
    assert [used.data for used in driver.rings[0].collect()] == [b"x"]
    assert driver.device.dma.fault_count == 0


def test_a_paused_device_looks_later(driver: Driver) -> None:
    driver.device.pause()
    driver.rings[0].send(b"x", 1)
    driver.rings[0].kick()
    assert driver.rings[0].collect() == []
    driver.device.resume()
    assert [used.data for used in driver.rings[0].collect()] == [b"x"]


def test_chains_in_tasks() -> None:
    with Driver(function()) as driver, Workers(2) as workers:
        driver.device.attach(workers)
        device, ring = echo(driver), driver.rings[0]
        device.slow = True
        done = threading.Event()
        device.queues[0].interrupt = done.set
        for number in range(5):
            ring.send(b"%d" % number, 1)
        ring.kick()
        driver.device.pause()
        assert done.wait(10)
        driver.device.resume()
        assert sorted(used.data for used in ring.collect()) == [b"0", b"1", b"2", b"3", b"4"]
        driver.reset()
        driver.device.detach()


def test_more_chains_than_a_batch() -> None:
    with Driver(VirtioPci(Echo(1, 1024))) as driver:
        for number in range(600):
            driver.rings[0].send(number.to_bytes(2, "little"), 2, indirect=True)
        driver.rings[0].kick()
        found = [int.from_bytes(used.data, "little") for used in driver.rings[0].collect()]
        assert found == list(range(600))
        assert echo(driver).queues[0].interrupts < 600


def test_a_driver_that_is_gone(driver: Driver) -> None:
    driver.device.disconnect()
    assert driver.status == 0
    assert not echo(driver).queues[0].running


# State.


def loaded(document: bytes, driver: Driver) -> VirtioPci:
    """Another function with the same memory, as after a migration."""
    other = function()
    other.dma.map(MEMORY_START, len(driver.memory), buffer=driver.memory)
    other.load(document)
    return other


def test_a_function_goes_on_elsewhere(driver: Driver) -> None:
    for number in range(5):
        round_trip(driver, b"%d" % number)
    echo(driver).hold = True
    driver.rings[1].send(b"held", 4)
    driver.rings[1].kick()
    echo(driver).hold = False
    document = driver.device.save()
    driver.device.pause()  # the source does nothing more
    driver.rings[0].send(b"after", 5)
    other = loaded(document, driver)
    assert other.save() == loaded(other.save(), driver).save()
    assert [used.data for used in driver.rings[0].collect()] == [b"after"]
    assert [used.data for used in driver.rings[1].collect()] == [b"held"], "what was in flight is done again"
    assert other.virtio.status == echo(driver).status
    assert other.state.queue_vectors == driver.device.state.queue_vectors
    other.close()


def test_a_loaded_queue_waits_for_its_memory(driver: Driver) -> None:
    driver.device.pause()
    driver.rings[0].send(b"x", 1)
    other = function()
    other.load(driver.device.save())
    queue = other.virtio.queues[0]
    with other.lock:
        queue.service()
        assert queue.rejection is None
        other.dma.map(MEMORY_START, len(driver.memory), buffer=driver.memory)
        queue.service()
    assert [used.data for used in driver.rings[0].collect()] == [b"x"]
    other.close()


def test_a_state_of_another_kind_is_refused(driver: Driver) -> None:
    document = driver.device.save()
    other = function(queues=1)
    before = other.save()
    with pytest.raises(StateError):
        other.load(document)
    assert other.save() == before
    assert other.virtio.status == 0
    small = VirtioPci(Echo(2, 8))
    small.load(document)
    assert small.virtio.queues[0].size == 16, "the size that the driver set is the ring's"
    for device in (other, small):
        device.close()


def test_a_broken_queue_is_saved_as_broken(driver: Driver) -> None:
    driver.rings[0].offer(99)
    driver.rings[0].kick()
    other = loaded(driver.device.save(), driver)
    assert other.virtio.queues[0].rejection is RingRejection.HEAD_OUT_OF_RANGE
    assert Status.NEEDS_RESET in other.virtio.status
    other.close()


def test_a_device_without_a_function_saves_itself() -> None:
    device, other = Echo(), Echo()
    device.accept_features(1 << Feature.VERSION_1 | 1)
    device.queues[1].size = 4
    other.load(device.save())
    assert (other.acknowledged, other.queues[1].size) == (device.acknowledged, 4)
    for each in (device, other):
        each.close()
