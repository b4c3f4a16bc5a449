"""Saved state, with a document of each released version."""

import os
from pathlib import Path

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.devices.nvme import Nvme
from iolane.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode
from iolane.devices.nvme.state import NvmeState
from iolane.model.state import Saved, StateError, decode, encode
from iolane.testing.nvme_driver import NvmeDriver
from tests.unit.devices.nvme.conftest import DISK, Make

GOLDEN = Path(__file__).parent / "golden"


def busy(make: Make) -> NvmeDriver:
    """A controller in the middle of everything that is saved."""
    driver = make(backend=MemoryBackend(DISK), memory_size=1 << 20)
    driver.enable(entries=16)
    driver.create_queues(2, entries=8)
    driver.check(driver.write(7, b"g" * 512))
    driver.device.set_write_protected(1, True)
    for feature, value in (
        (FeatureId.ARBITRATION, 2),
        (FeatureId.VOLATILE_WRITE_CACHE, 0),
        (FeatureId.ASYNC_EVENT_CONFIGURATION, 0x102),
        (FeatureId.INTERRUPT_VECTOR, 1 << 16 | 2),
    ):
        driver.check(driver.admin(AdminOpcode.SET_FEATURES, cdw10=feature, cdw11=value))
    driver.io(IoOpcode.READ, nsid=5)
    driver.submit(0, driver.entry(AdminOpcode.ASYNC_EVENT_REQUEST))
    driver.submit(0, driver.entry(AdminOpcode.ASYNC_EVENT_REQUEST))
    driver.device.clock.advance(90_000_000_000)
    driver.device.health.set(temperature=350)
    for _ in range(2):
        driver.submit(2, *(driver.entry(IoOpcode.FLUSH, nsid=1) for _ in range(5)))
    return driver


def moved(driver: NvmeDriver, document: bytes) -> NvmeDriver:
    """The same driver and its memory with a new controller that was loaded from the document."""
    old = driver.device
    device = Nvme(backend=old.namespaces[1].backend)
    old.disconnect()
    driver.device = device
    for fd in driver.event_fds:
        os.close(fd)
    driver.event_fds.clear()
    device.load(document)
    driver._connect()
    return driver


def test_a_loaded_controller_goes_on(make: Make) -> None:
    driver = busy(make)
    assert driver.device.state.completion[2].waiting
    document = driver.device.save()
    before = driver.device.state
    moved(driver, document)
    state = driver.device.state
    assert state == before
    assert state is not before
    assert driver.ready
    assert driver.device.save() == document
    done = 0
    while done < 10:
        done += driver.reap(2)
    assert driver.read(7, 1) == b"g" * 512
    assert driver.admin(AdminOpcode.GET_FEATURES, cdw10=FeatureId.ARBITRATION).result == 2
    driver.device.set_write_protected(1, False)
    driver.reap(0)
    driver.check(driver.write(7, b"h" * 512))


def test_the_golden_document_of_version_1_loads() -> None:
    """Made by `busy` in the version that was released; never made again."""
    device = Nvme(backend=MemoryBackend(DISK))
    device.load((GOLDEN / "nvme-1.state").read_bytes())
    state = device.state
    assert sorted(state.submission) == sorted(state.completion) == [0, 1, 2]
    assert [queue.size for queue in state.submission.values()] == [16, 8, 8]
    assert len(state.completion[2].waiting) == 1
    assert state.submission[2].pending == 2
    assert state.features.arbitration == 2
    assert state.features.uncoalesced == [2]
    assert len(state.events.requests) == 1
    assert state.write_protected == [1]
    assert state.health.powered_ns == 90_000_000_000
    assert state.errors[0].nsid == 5
    assert device.running
    device.close()


def test_the_present_version_is_the_golden_one(make: Make) -> None:
    """A field that is added or changed needs a new `state_version`, an upgrade and a new golden document."""
    golden = decode((GOLDEN / f"nvme-{Nvme.state_version}.state").read_bytes())
    present = decode(busy(make).device.save())
    assert _shape(golden.state) == _shape(present.state)
    assert {name: len(data) for name, data in golden.regions.items()} == {
        name: len(data) for name, data in present.regions.items()
    }


def _shape(value: object) -> object:
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    return [_shape(item) for item in value] if isinstance(value, list) else type(value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["submission"]["1"].update(size=0),
        lambda state: state["submission"]["1"].update(size=5000),
        lambda state: state["submission"]["1"].update(head=8),
        lambda state: state["submission"]["1"].update(base=0x1001),
        lambda state: state["submission"]["1"].update(cqid=7),
        lambda state: state["submission"]["1"].update(qid=2),
        lambda state: state["submission"].update({"9": {**state["submission"]["1"], "qid": 9}}),
        lambda state: state["completion"]["2"].update(phase=2),
        lambda state: state["completion"]["2"].update(vector=-1),
        lambda state: state["completion"].pop("1"),
        lambda state: state["submission"].pop("2"),
        lambda state: state["events"].update(requests=list(range(9))),
        lambda state: state["features"].update(arbitration=1 << 40),
        lambda state: state["features"].update(host_identifier=b"short"),
        lambda state: state["health"].update(reads=-1),
        lambda state: state.update(unknown=1),
    ],
)
def test_an_impossible_state_is_refused_and_changes_nothing(make: Make, damage: object) -> None:
    driver = busy(make)
    saved: Saved = decode(driver.device.save())
    assert callable(damage)
    damage(saved.state)
    before = driver.device.save()
    with pytest.raises(StateError):
        driver.device.load(encode(saved))
    assert driver.device.save() == before
    assert isinstance(driver.device.state, NvmeState)


def test_a_loaded_address_is_only_ever_an_address(make: Make) -> None:
    """Queues of a hostile document lie where DMA is refused: fatal, nothing else."""
    driver = busy(make)
    saved = decode(driver.device.save())
    saved.state["submission"]["1"]["base"] = 0xFFFFFFFFFFFFF000
    driver.device.load(encode(saved))
    driver.submit(1, driver.entry(IoOpcode.FLUSH, nsid=1))
    assert driver.fatal
