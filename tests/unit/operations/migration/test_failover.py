"""A passed function stays behind only where something stands in for it, and another takes its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from iolane.engines.outcome import UnplugOutcome
from iolane.errors import IolaneError
from iolane.model.pci import PcieId
from iolane.operations.migration.failover import FunctionDevice, GivenFunctions, come_back
from iolane.operations.migration.function_macs import FunctionMacs
from iolane.operations.migration.moved_device import Departed
from iolane.operations.passthrough import parse_pass
from tests.unit.host.machine import Machine as HostMachine
from tests.unit.operations.migration.machine import FakeMachine

MAC = "52:54:00:00:00:0a"
PAIRED = f"interface eth1 {MAC} eth0 eth0nsby 1\n"


def nic(machine: FakeMachine) -> FunctionDevice:
    return FunctionDevice(machine, "nic", "port3", PcieId(0, 1, 0x10, 0), Macs(machine))


class Macs(FunctionMacs):
    """Tells the machine's list what was done with addresses."""

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__()
        self._machine = machine

    def give(self, address: PcieId, mac: str) -> None:
        self._machine.done.append(f"give {mac}")

    def take(self, address: PcieId) -> None:
        self._machine.done.append("take the address")


def test_it_leaves_and_its_address_goes_over() -> None:
    machine = FakeMachine(says=PAIRED)
    device = nic(machine)
    device.check()
    assert device.before() == Departed(name="nic", port="port3", mac=MAC)
    device.rollback()
    assert machine.done == [
        *("look", "look", "take out nic", "take the address"),
        *(f"give {MAC}", "put back nic"),
    ], "it stays taken meanwhile, and its stand-in hears what comes for it"


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (f"interface eth1 {MAC}\n", "no stand-in in the guest"),
        (f"interface eth1 {MAC} eth0 eth0nsby 0\n", "has no link"),
        ("", "no network interface in the guest"),
        (None, "no guest agent"),
    ],
)
def test_without_a_stand_in_it_stays(says: str | None, reason: str) -> None:
    """Also when the stand-in went between the preflight and the move."""
    machine = FakeMachine(says=says)
    for step in (nic(machine).check, nic(machine).before):
        with pytest.raises(IolaneError, match=reason):
            step()
    assert "take out nic" not in machine.done


@pytest.mark.parametrize("outcome", [UnplugOutcome.REFUSED, UnplugOutcome.NO_ANSWER])
def test_a_guest_that_does_not_let_go_keeps_it(outcome: UnplugOutcome) -> None:
    machine = FakeMachine(says=PAIRED, outcome=outcome)
    with pytest.raises(IolaneError, match="let go of nic"):
        nic(machine).before()
    assert machine.done[-1] == "take out nic"


class Host(HostMachine):
    """With an igb that has two virtual functions, and a disk."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.healthy()
        folder = self.function("0000:01:00.0", group=1, driver="igb", sriov_totalvfs="7", sriov_numvfs="2")
        self.interface("eno1", folder)
        for number, address in enumerate(("0000:01:10.0", "0000:01:10.2")):
            virtual = self.function(address, group=10 + number, ids="8086:10ca")
            self.link(f"{virtual}/physfn", folder)
            self.link(f"{folder}/virtfn{number}", virtual)
        self.function("0000:02:00.0", group=2, kind=0x01_0802, driver="nvme")
        nic = self.function("0000:03:00.0", group=3, driver="e1000e")
        self.interface("eno2", nic)
        self.file(f"{nic}/net/eno2/address", "52:54:00:00:00:99\n")


def given(host: Host, assigned: list[tuple[str, int, str]], **addresses: str) -> GivenFunctions:
    requests = {name: parse_pass(f"{address},id={name}") for name, address in addresses.items()}
    return GivenFunctions(requests, host.host, macs_of(host, assigned))


def macs_of(host: Host, assigned: list[tuple[str, int, str]]) -> FunctionMacs:
    return FunctionMacs(host.host, lambda interface, number, mac: assigned.append((interface, number, mac)))


def test_a_virtual_function_takes_the_place_and_the_address(tmp_path: Path) -> None:
    """net_failover joins what has the same address; its physical function's driver gives it."""
    assigned: list[tuple[str, int, str]] = []
    functions = given(Host(tmp_path), assigned, nic="0000:01:10.2")
    functions.check("nic")
    machine = FakeMachine()
    come_back(machine, Departed(name="nic", port="port3", mac=MAC), functions)
    assert assigned == [("eno1", 1, MAC)]
    assert machine.done == ["plug 0000:01:10.2,id=nic at port3"]


def test_a_virtual_function_that_left_has_no_address(tmp_path: Path) -> None:
    """Else the hardware would keep from the stand-in what comes for it."""
    assigned: list[tuple[str, int, str]] = []
    macs = macs_of(Host(tmp_path), assigned)
    for address in ("0000:01:10.0", "0000:03:00.0", "0000:09:00.0"):  # virtual, physical, gone
        macs.take(PcieId.from_string(address))
    assert assigned == [("eno1", 0, "00:00:00:00:00:00")]


def test_no_function_is_given(tmp_path: Path) -> None:
    functions = given(Host(tmp_path), [])
    with pytest.raises(
        IolaneError, match=r"no function for nic here \(iolane receive .*--pass ADDRESS,id=nic\)"
    ):
        functions.check("nic")


@pytest.mark.parametrize(
    ("address", "reason"),
    [("0000:02:00.0", "is no network function"), ("0000:05:00.0", "0000:05:00.0")],
)
def test_what_can_not_take_its_place_is_refused_before_the_machine_moves(
    tmp_path: Path, address: str, reason: str
) -> None:
    with pytest.raises(IolaneError, match=reason):
        given(Host(tmp_path), [], nic=address).check("nic")


def test_a_physical_function_has_the_address_that_it_has(tmp_path: Path) -> None:
    functions = given(Host(tmp_path), [], nic="0000:03:00.0")
    with pytest.raises(
        IolaneError, match=r"has the address 52:54:00:00:00:99, its stand-in 52:54:00:00:00:0a"
    ):
        functions.prepare(Departed(name="nic", mac=MAC))
    assert functions.prepare(Departed(name="nic", mac="52:54:00:00:00:99")) == "0000:03:00.0,id=nic"
