"""Which functions carry the default route, through bridges, bonds and VLANs, and which is the only card."""

from __future__ import annotations

import pytest

from iolane.host.inventory import functions
from iolane.host.needs import needs
from iolane.host.network import default_routes
from iolane.model.pci.pcie_id import PcieId
from tests.unit.host.machine import Machine

FIRST, SECOND = PcieId(0, 1, 0, 0), PcieId(0, 2, 0, 0)


@pytest.fixture
def cards(machine: Machine) -> Machine:
    """Two network cards and the loopback interface."""
    for number in (1, 2):
        folder = machine.function(f"0000:0{number}:00.0", driver="igb")
        machine.interface(f"eth{number}", folder)
    machine.interface("lo")
    return machine


def kinds(machine: Machine) -> dict[PcieId, list[str]]:
    found = needs(machine.host, functions(machine.host))
    return {address: [need.kind for need in each] for address, each in found.items()}


@pytest.mark.parametrize("version", [4, 6])
def test_the_default_route_needs_its_card(cards: Machine, version: int) -> None:
    cards.default_route("eth1", version=version)
    assert kinds(cards) == {FIRST: ["default-route"], SECOND: []}


def test_a_route_over_a_vlan_on_a_bond_of_both_below_a_bridge(cards: Machine) -> None:
    cards.interface("bond0", lower=["eth1", "eth2"])
    cards.interface("bond0.5", lower=["bond0"])
    cards.interface("br0")
    cards.link("sys/devices/virtual/net/br0/brif/bond0.5", "sys/class/net/bond0.5")
    cards.default_route("br0")
    assert [str(route) for route in default_routes(cards.host)] == ["eth1, below br0", "eth2, below br0"]
    assert kinds(cards) == {FIRST: ["default-route"], SECOND: ["default-route"]}


def test_other_routes_need_nothing(cards: Machine) -> None:
    header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    cards.file(
        "proc/net/route",
        f"{header}eth1\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "eth2\t00000000\t00000000\t0203\t0\t0\t0\t00000000\t0\t0\t0\n"  # a reject route
        "eth2\t00000000\t00000000\tnone\t0\t0\t0\t00000000\t0\t0\t0\nbroken\n",
    )
    assert kinds(cards) == {FIRST: [], SECOND: []}


def test_the_only_card(machine: Machine) -> None:
    machine.interface("wlan0", machine.function("0000:01:00.0", kind=0x028000, driver="iwlwifi"))
    assert kinds(machine) == {FIRST: ["only-nic"]}


def test_virtual_functions_are_no_other_card(machine: Machine) -> None:
    """With the physical function its virtual ones go."""
    parent = machine.function("0000:01:00.0", driver="igb")
    child = machine.function("0000:01:10.0", driver="igbvf")
    machine.link(f"{child}/physfn", parent)
    machine.interface("eth0", parent)
    machine.interface("eth1", child)
    assert kinds(machine) == {FIRST: ["only-nic"], PcieId(0, 1, 0x10, 0): []}


def test_a_route_over_a_virtual_function_needs_the_physical_one(machine: Machine) -> None:
    parent = machine.function("0000:01:00.0", driver="igb")
    child = machine.function("0000:01:10.0", driver="igbvf")
    machine.link(f"{child}/physfn", parent)
    machine.interface("eth1", child)
    machine.interface("eth9", machine.function("0000:02:00.0", driver="igb"))
    machine.default_route("eth1")
    found = needs(machine.host, functions(machine.host))
    assert [need.text for need in found[FIRST]] == [
        "its virtual function 0000:01:10.0 carries the host's default route (eth1)"
    ]


def test_virtio_interfaces_lie_deeper(machine: Machine) -> None:
    folder = machine.function("0000:01:00.0", driver="virtio-pci")
    machine.interface("eth0", f"{folder}/virtio2")
    assert kinds(machine) == {FIRST: ["only-nic"]}
