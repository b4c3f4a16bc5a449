"""IOMMU faults of a machine's functions are told, and may end it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from iolane.engines.qemu.machine import QemuMachine
from iolane.errors import IolaneError
from iolane.host.fault_reasons import FaultKind
from iolane.host.faults import Fault
from iolane.model.pci import PcieId
from iolane.operations import watching
from iolane.operations.watching import StoppedByFaultError, iommu_watched

MINE, OTHER = PcieId(0, 1, 0, 0), PcieId(0, 2, 0, 0)


class FakeMonitor:
    """Hands faults on as `FaultMonitor` does."""

    made: FakeMonitor
    unreadable = False

    def __init__(self, *, notify: Any, machine_of: Any, stop_machine: Any) -> None:
        self.notify, self.machine_of, self.stop_machine = notify, machine_of, stop_machine
        self.running = False
        FakeMonitor.made = self

    def start(self) -> None:
        if self.unreadable:
            raise IolaneError("the kernel's log can't be read")
        self.running = True

    def stop(self) -> None:
        self.running = False

    def fault(self, function: PcieId) -> None:
        machine = self.machine_of(function)
        found = Fault(
            time=1.0,
            sequence=1,
            iommu="VT-d",
            kind=FaultKind.DMA,
            requester=str(function),
            reason="no",
            machine=machine,
        )
        self.notify(found)
        if machine is not None and self.stop_machine is not None:
            self.stop_machine(machine, found)


class FakeMachine:
    aborted = 0

    def abort(self) -> None:
        self.aborted += 1


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(watching, "FaultMonitor", FakeMonitor)
    monkeypatch.setattr(FakeMonitor, "unreadable", False)
    return []


def test_a_guest_that_makes_faults_without_end_is_told_of_seldom(lines: list[str]) -> None:
    machine = FakeMachine()
    with iommu_watched(cast(QemuMachine, machine), "m", {MINE}, lines.append) as teller:
        for _ in range(1000):
            FakeMonitor.made.fault(MINE)
            FakeMonitor.made.fault(OTHER)
        assert teller.count == 1000
        assert len(lines) == 10
        assert lines[-1].startswith("IOMMU fault (512 by now): ")
    assert not FakeMonitor.made.running
    assert machine.aborted == 0


def test_a_fault_may_end_the_machine(lines: list[str]) -> None:
    machine = FakeMachine()

    def use() -> None:
        with iommu_watched(cast(QemuMachine, machine), "m", {MINE}, lines.append, stop_on_fault=True):
            FakeMonitor.made.fault(OTHER)
            assert machine.aborted == 0
            FakeMonitor.made.fault(MINE)
            assert machine.aborted == 1
            raise IolaneError("the guest is gone")  # what follows of it

    with pytest.raises(StoppedByFaultError, match=r"ended by its IOMMU fault: 0000:01:00\.0 \(m\): DMA"):
        use()
    assert [line.split(":")[0] for line in lines] == ["IOMMU fault"]


def test_a_fault_in_the_last_moment_is_told_by_the_exit_code_too(lines: list[str]) -> None:
    machine = cast(QemuMachine, FakeMachine())
    with pytest.raises(StoppedByFaultError):
        with iommu_watched(machine, "m", {MINE}, lines.append, stop_on_fault=True):
            FakeMonitor.made.fault(MINE)
    with pytest.raises(IolaneError, match="something else"):
        with iommu_watched(machine, "m", {MINE}, lines.append, stop_on_fault=True):
            raise IolaneError("something else")


def test_a_log_that_may_not_be_read(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeMonitor, "unreadable", True)
    machine = cast(QemuMachine, FakeMachine())
    with iommu_watched(machine, "m", {MINE}, lines.append):
        pass
    assert lines == ["IOMMU faults are not watched: the kernel's log can't be read"]
    with pytest.raises(IolaneError, match="can't be read"):
        with iommu_watched(machine, "m", {MINE}, lines.append, stop_on_fault=True):
            pass
