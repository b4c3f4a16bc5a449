"""`--pass ADDRESS,mediate=FILE.py:MAP`: what is written, what traps, and a session from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from iolane.carriers.vfio import open_function
from iolane.carriers.vfio_user import VfioUserClient
from iolane.devices.nvme.recorded_memory import NvmeMemory
from iolane.errors import IolaneError
from iolane.model.region import Area
from iolane.model.trace.recorded import read_recording
from iolane.operations import mediation
from iolane.operations.mediation import MediatedFunctionServer, MediationRequest, load_mediation
from iolane.operations.passthrough import parse_pass
from iolane.operations.tracing import TraceRequest
from iolane.testing.fake_vfio import FakeFunction, FakeKernel
from tests.unit.carriers.vfio.hardware import ADDRESS, HOST_BAR, Card, CardRegisters

MAP = "tests.unit.carriers.vfio.hardware:CardRegisters"
HOOKED = """
from iolane.model.trace import TraceLevel
from tests.unit.carriers.vfio.hardware import CardRegisters

def mediate(mediator):
    mediator.tracer.follow(TraceLevel.HOOK, registers="bar0.ID", direction="read", hook=lambda access: 0xBAD)
"""


def test_keys() -> None:
    request = parse_pass(f"01:00.0,mediate={MAP}").mediation
    assert request == MediationRequest(registers=MAP)
    request = parse_pass(f"01:00.0,mediate={MAP},bar=2,trap=bar2.C*").mediation
    assert request == MediationRequest(registers=MAP, bar=2, trap="bar2.C*")
    assert parse_pass("01:00.0").mediation is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("01:00.0,bar=0", "bar goes with mediate"),
        ("01:00.0,trap=*", "trap goes with mediate"),
        ("01:00.0,record=x", "record goes with mediate"),
        (f"01:00.0,mediate={MAP},bar=6", "not '6'"),
    ],
)
def test_what_is_wrong_with_keys(text: str, words: str) -> None:
    with pytest.raises(IolaneError, match=words):
        parse_pass(text)


@pytest.mark.parametrize(
    ("registers", "words"),
    [
        ("nvme.py", "no register map is named"),
        ("/nowhere/nvme.py:Map", "no such file"),
        ("no.such.module:Map", "No module named"),
        ("tests.unit.carriers.vfio.hardware:Card", "has no register map 'Card'"),
        ("tests.unit.carriers.vfio.hardware:Nothing", "has no register map 'Nothing'"),
    ],
)
def test_what_names_no_map(registers: str, words: str) -> None:
    with pytest.raises(IolaneError, match=words):
        load_mediation(MediationRequest(registers=registers))


def test_what_traps(tmp_path: Path) -> None:
    """Nothing that nobody looks at: then it costs what direct passthrough costs."""
    plain = load_mediation(MediationRequest(registers=MAP))
    assert plain.registers is CardRegisters
    assert plain.trap(None) is None
    assert plain.trap(TraceRequest("off")) is None
    assert plain.trap(TraceRequest("fields")) == "*"
    assert plain.trap(TraceRequest("fields", "bar0.ID")) == "bar0.ID"
    chosen = load_mediation(MediationRequest(registers=MAP, trap="bar0.C*"))
    assert chosen.trap(TraceRequest("fields")) == "bar0.C*"
    file = tmp_path / "hooked.py"
    file.write_text(HOOKED)
    assert load_mediation(MediationRequest(registers=f"{file}:CardRegisters")).trap(None) == "*"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    kernel = FakeKernel(tmp_path / "root")
    card = Card()
    card.config.write(0x10, 4, HOST_BAR)
    kernel.add(FakeFunction(ADDRESS, card, 7, mappable={0: [Area(0, 0x4000)]}))
    monkeypatch.setattr(
        mediation, "open_function", lambda address: open_function(address, host=kernel, kernel=kernel)
    )
    return kernel


def serve(tmp_path: Path, registers: str, trace: TraceRequest | None = None) -> MediatedFunctionServer:
    loaded = load_mediation(MediationRequest(registers=registers))
    return MediatedFunctionServer(ADDRESS, "card", tmp_path / "socket", loaded, trace)


def test_untraced_everything_is_mapped(kernel: FakeKernel, tmp_path: Path) -> None:
    with serve(tmp_path, MAP) as server, VfioUserClient(server.device.socket) as client:
        client.negotiate()
        assert client.region_info(0).areas == (Area(0, 0x4000),)
        assert server.device.physical
        assert server.served.report().type == "MediatedFunction"
    assert not kernel.files


def test_hooks_of_the_file_and_counts(kernel: FakeKernel, tmp_path: Path) -> None:
    file = tmp_path / "changed.py"
    file.write_text(HOOKED)
    with serve(tmp_path, f"{file}:CardRegisters") as server, VfioUserClient(server.device.socket) as client:
        client.negotiate()
        client.config_write(4, 2, 0x6)
        before = server.served.report().counters["traps"]
        assert client.read(0, 0, 4) == 0xBAD
        assert server.served.report().counters["traps"] == before + 1


def test_the_trace_names_registers(
    kernel: FakeKernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(tmp_path, MAP, TraceRequest("fields")) as server:
        with VfioUserClient(server.device.socket) as client:
            client.negotiate()
            client.config_write(4, 2, 0x6)
            client.read(0, 0, 4)
    assert "bar0.ID" in capsys.readouterr().err


def test_a_recording(kernel: FakeKernel, tmp_path: Path) -> None:
    """Then all of the map traps; what the hook changed is in it beside what the hardware said."""
    file = tmp_path / "changed.py"
    file.write_text(HOOKED)
    path = tmp_path / "session.jsonl"
    request = parse_pass(f"01:00.0,mediate={file}:CardRegisters,record={path}").mediation
    assert request is not None
    loaded = load_mediation(request)
    with MediatedFunctionServer(ADDRESS, "card", tmp_path / "socket", loaded, None) as server:
        assert server.device.properties("rp1")["x-msg-timeout"] == 120_000
        with VfioUserClient(server.device.socket) as client:
            client.negotiate()
            client.config_write(4, 2, 0x6)
            client.read(0, 0, 4)
    recording = read_recording(path)
    assert recording.complete
    (event,) = [each for each in recording.events if each.register == "bar0.ID"]
    assert (event.value, event.seen) == (0, 0xBAD)  # all of the BAR is memory here


def test_which_memory_is_recorded(tmp_path: Path) -> None:
    known = load_mediation(MediationRequest(registers="iolane.devices.nvme.registers:NvmeRegisters"))
    assert isinstance(known.memory, NvmeMemory)
    assert load_mediation(MediationRequest(registers=MAP)).memory is None
    file = tmp_path / "own.py"
    file.write_text(HOOKED + "\n\nclass RecordedMemory:\n    pass\n")
    own = load_mediation(MediationRequest(registers=f"{file}:CardRegisters")).memory
    assert type(own).__name__ == "RecordedMemory"
