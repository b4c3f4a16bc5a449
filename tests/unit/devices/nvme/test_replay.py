"""A session with a controller, recorded, and replayed against models that are right, and that are not."""

from pathlib import Path

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.devices.nvme import Nvme
from iolane.devices.nvme.recorded_memory import NvmeMemory
from iolane.devices.nvme.registers import NvmeRegisters
from iolane.errors import IolaneError
from iolane.model.region import RegionIndex
from iolane.model.trace import Tracer
from iolane.model.trace.recorded import read_recording
from iolane.model.trace.recording import Recorder
from iolane.model.trace.replay import Replay, ReplayResult
from tests.unit.devices.nvme.conftest import DISK, Make


@pytest.fixture
def recording(make: Make, tmp_path: Path) -> Path:
    """A driver enables the controller, makes queues, writes, reads and asks for what is refused."""
    driver = make()
    path = tmp_path / "session.jsonl"
    with Recorder(path, memory=NvmeMemory()) as recorder:
        end = recorder.attach(driver.device, Tracer(driver.device))
        bar = driver.region(RegionIndex.BAR0)
        bar.read(NvmeRegisters.CAP.offset, 8)
        bar.read(NvmeRegisters.VS.offset, 4)
        driver.enable()
        driver.create_queues(2)
        driver.identify(1)
        driver.write(8, bytes(range(256)) * 64)  # with a PRP list
        assert driver.read(8, 32) == bytes(range(256)) * 64
        driver.write(80, b"second" + bytes(506), qid=2)
        driver.io(0x02, prp1=driver.memory.allocate(4096), cdw10=DISK // 512)  # past the end
        end()
    return path


def replay(path: Path, device: Nvme, ignore: list[str] | None = None) -> ReplayResult:
    try:
        return Replay(read_recording(path), device, ignore=ignore).run()
    finally:
        device.close()


def test_what_is_recorded(recording: Path) -> None:
    found = read_recording(recording)
    assert found.complete
    assert found.head.regions["bar0"] >= 0x2000
    operations = {event.op for event in found.events}
    assert operations >= {"read", "write", "interrupt", "map", "given", "left"}
    names = {event.name for event in found.events}
    assert names >= {"sq0", "sq1", "sq2", "cq0", "cq1", "cq2", "data", "PRP list"}


def test_the_same_model_differs_in_nothing(recording: Path) -> None:
    backend = MemoryBackend(DISK)
    result = replay(recording, Nvme(backend=backend))
    assert result.first is None
    assert result.accesses > 20
    assert result.interrupts >= 5
    assert result.memory >= 5


def test_the_model_did_what_the_guest_asked_for(recording: Path) -> None:
    """Memory was given as it was: the data of writes is on the model's disk."""
    backend = MemoryBackend(DISK)
    device = Nvme(backend=backend)
    Replay(read_recording(recording), device).run()
    assert backend.content[80 * 512 :][:6] == b"second"
    device.close()


class OtherCapabilities(Nvme):
    """CAP.TO and VS are not those of the recorded device."""

    def __init__(self) -> None:
        super().__init__(backend=MemoryBackend(DISK))
        self.bar0.CAP = self.bar0.CAP.replace(TO=7)
        self.bar0.VS = 0x0001_0400


def test_differences_by_register_and_field(recording: Path) -> None:
    result = replay(recording, OtherCapabilities())
    assert set(result.places) == {"bar0.CAP.TO", "bar0.VS"}
    assert result.first is not None
    assert (result.first.recorded, result.first.replayed) == ("0x14", "7")


def test_differences_that_are_explained(recording: Path) -> None:
    result = replay(recording, OtherCapabilities(), ["bar0.CAP.TO", "bar0.VS"])
    assert result.first is None
    assert result.ignored["bar0.VS"] >= 1
    assert replay(recording, OtherCapabilities(), ["bar0.CAP", "bar0.vs"]).first is None


class WrongStatus(Nvme):
    """Answers a read past the end as if all were well: caught in the completion."""

    def __init__(self) -> None:
        super().__init__(backend=MemoryBackend(2 * DISK))


def test_a_wrong_completion(recording: Path) -> None:
    result = replay(recording, WrongStatus())
    assert "memory.cq1.STATUS.SC" in result.places


class Silent(Nvme):
    """Raises no interrupt of I/O queues."""

    def __init__(self) -> None:
        super().__init__(backend=MemoryBackend(DISK))
        original = self.interrupts.raise_vector
        self.interrupts.raise_vector = (  # type: ignore[method-assign]
            lambda vector: original(vector) if not vector else None
        )


def test_a_missing_interrupt(recording: Path) -> None:
    result = replay(recording, Silent())
    assert "interrupt.MSIX[1]" in result.places


def test_an_interrupt_that_says_nothing_new(recording: Path) -> None:
    """The hardware raised a vector twice for one completion, and in between was asked for something else."""
    lines = recording.read_bytes().splitlines(keepends=True)
    ours = [line for line in lines if b'"interrupt"' in line and b'"vector":1' in line]
    behind = next(number for number, line in enumerate(lines) if b'"vector":2' in line)
    recording.write_bytes(b"".join([*lines[:behind], ours[0], *lines[behind:]]))
    result = replay(recording, Nvme(backend=MemoryBackend(DISK)))
    assert result.first is None
    assert result.timing == 1
    assert "interrupt.MSIX[1]" in replay(recording, Silent()).places


class NeverReady(Nvme):
    """CSTS.RDY stays 0: found at the end of the guest's poll."""

    def __init__(self) -> None:
        super().__init__(backend=MemoryBackend(DISK))
        self.bar0.hook_read(NvmeRegisters.CSTS, lambda status: int(status) & ~1)


def test_a_broken_model(recording: Path) -> None:
    assert "bar0.CSTS.RDY" in replay(recording, NeverReady()).places


# Files.


def test_a_recording_has_a_limit(make: Make, tmp_path: Path) -> None:
    driver = make()
    path = tmp_path / "short.jsonl"
    with Recorder(path, limit=500) as recorder:
        end = recorder.attach(driver.device, Tracer(driver.device))
        driver.enable()
        end()
    assert path.stat().st_size < 3000
    assert recorder.lost
    assert read_recording(path).lost == recorder.lost


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no recording"),
        ("{}\n", "no recording"),
        ('{"recording": 99, "device": "x"}\n', "version 99"),
        ('{"recording": 1, "device": "x"}\nnonsense\n', "line 2"),
        ('{"recording": 1, "device": "x"}\n{"op": "fly"}\n', "line 2"),
        ('{"recording": 1, "device": "x"}\n{"op": "read", "size": 3}\n', "line 2"),
        ('{"recording": 1, "device": "x"}\n{"op": "write", "size": 1, "value": 256}\n', "line 2"),
        ('{"recording": 1, "device": "x"}\n{"op": "given", "data": "???"}\n', "line 2"),
    ],
)
def test_what_is_no_recording(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(IolaneError, match=words):
        read_recording(path)


def test_a_torn_end(recording: Path) -> None:
    """As after a crash: the last whole line counts."""
    whole = read_recording(recording)
    data = recording.read_bytes()
    recording.write_bytes(data[: data.rindex(b'{"at"') + 20])
    torn = read_recording(recording)
    assert not torn.complete
    assert len(torn.events) == len(whole.events) - 1


def test_a_region_that_the_model_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    event = '{"op": "read", "region": "bar3", "offset": 0, "size": 4, "value": 0, "register": "bar3+0x0"}'
    path.write_text('{"recording": 1, "device": "x"}\n' + event + "\n")
    with pytest.raises(IolaneError, match="line 2: bar3"):
        replay(path, Nvme(backend=MemoryBackend(DISK)))
