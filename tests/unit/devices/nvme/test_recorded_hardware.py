"""Sessions of stock drivers with real controllers, replayed: our model does the same, and broken ones don't.

`recorded/README.md` says where each comes from.
"""

import gzip
from pathlib import Path

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.devices.nvme import Nvme
from iolane.devices.nvme.spec import PSDT
from iolane.devices.nvme.structures import parse_entries
from iolane.model.pci import PciDevice
from iolane.model.trace.recorded import Recording, read_recording
from iolane.model.trace.replay import Replay, ReplayResult
from tests.unit.devices.nvme.broken_models import ADMIN_STATUSES, BROKEN, EXPLAINED, Broken

FILE = Path(__file__).parent / "recorded/linux-on-qemu.jsonl.gz"
DISK = 64 << 20
"""Bytes of the disk of the recorded controller. What is on it is not compared."""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("recorded") / "linux-on-qemu.jsonl"
    path.write_bytes(gzip.decompress(FILE.read_bytes()))
    return read_recording(path)


def replay(recording: Recording, model: PciDevice, ignore: list[str] | None = None) -> ReplayResult:
    try:
        return Replay(recording, model, ignore=ignore).run()
    finally:
        model.close()


def test_what_is_in_it(recording: Recording) -> None:
    """Small, whole, and with everything that the bugs are in: a reset, a queue that wraps, data by PRPs and
    by lists, written, read, flushed and deallocated.
    """
    assert FILE.stat().st_size < 300_000
    assert recording.complete
    assert not recording.lost
    written = [item.value for item in recording.events if item.register == "bar0.CC" and item.op == "write"]
    enabled = "".join(str(value & 1) for value in written)
    assert enabled.count("01") == 3  # the firmware, Linux, and its reset
    assert written[-1] >> 14 & 3 == 1  # shut down
    assert sum(len(event.content) // 16 for event in recording.events if event.name == "cq0") > 256
    queued = [event.content for event in recording.events if event.name == "sq1"]
    commands = [command for content in queued for command in parse_entries(content)]
    assert {command.opcode for command in commands} >= {0, 1, 2, 9}
    assert {command.flags & PSDT for command in commands if command.opcode == 1} == {0x00, 0x40}
    assert {command.flags & PSDT for command in commands if command.opcode == 2} == {0x00, 0x40}


def test_our_model_differs_in_what_is_explained(recording: Recording) -> None:
    """And all I/O ends as it did on the hardware: of completions only those of admin commands differ."""
    result = replay(recording, Nvme(backend=MemoryBackend(DISK)))
    unexplained = [item for item in result.differences if not any(name in EXPLAINED for name in item.names)]
    assert not unexplained, unexplained[:10]
    assert len(result.places) <= 10
    assert not [place for place in result.places if place.startswith("memory.cq1")]
    statuses = {(item.recorded, item.replayed) for item in result.places["memory.cq0.STATUS.SC"]}
    assert statuses == set(ADMIN_STATUSES)
    assert result.interrupts > 50
    assert result.memory > 50


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_broken_model(recording: Recording, broken: Broken) -> None:
    """Its bug is the first difference, by register and field, or completion."""
    result = replay(recording, broken.make(MemoryBackend(DISK)), [*EXPLAINED])
    assert result.first is not None
    assert result.first.place == broken.place, result.first
