"""In the lab: a virtual function of an igb leaves a guest for its stand-in and comes back, and a TCP
connection goes on all the while. `tests/lab/guest/standin_in_lab.py` runs there.

What the operations do with a function is real here: taken from the host, its address given and taken away by
its physical function's driver, plugged, unplugged, given back. The machine itself moves in
tests/guest/test_failover.py, where an emulated e1000e plays the function.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from iolane.lab.hardware import Kind, LabDevice
from iolane.lab.machine import Lab, LabConfig
from tests.lab.conftest import tell
from tests.lab.guest.standin_in_lab import MAC

pytestmark = [pytest.mark.slow, pytest.mark.guest, pytest.mark.timeout(1500)]
SECONDS = 1200.0
BOTH = ["igbvf 1", "virtio_net 1"]
STANDIN = ["virtio_net 1"]
Told = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def told() -> Told:
    devices = [LabDevice(Kind.IGB, net="hub"), LabDevice(Kind.E1000E, net="hub")]
    with Lab(LabConfig(devices=devices, modules=("tun", "bridge")), report=tell) as lab:
        addresses = [str(lab.address(name)) for name in ("igb0", "e1000e0")]
        command = [sys.executable, "-m", "tests.lab.guest.standin_in_lab", *addresses]
        result = lab.run(command, timeout=SECONDS)
        faults = lab.iommu_trace()
    words = f"{result.output}\n{result.stderr.decode()}\n{result.kernel}"
    assert result.exit_code == 0, words
    print(words)
    lines = [json.loads(line) for line in result.stdout.decode().splitlines() if line.startswith("{")]
    return {line.pop("what"): line for line in lines} | {"faults": {"seen": faults}}


def test_the_function_and_its_stand_in_are_one_interface(told: Told) -> None:
    assert told["up"]["driver"] == "vfio-pci"
    assert told["both"]["lowers"] == BOTH
    assert told["over the function"]["on"]


def test_without_the_function_the_connection_goes_on(told: Told) -> None:
    """It stays taken: the machine may stay after all."""
    assert told["left"] == {"mac": MAC, "lowers": STANDIN, "on": True, "driver": "vfio-pci"}


def test_qemu_names_a_function_that_it_can_not_move(told: Told) -> None:
    """By this it is known which functions QEMU moves itself; igbvf reports no support for it."""
    assert told["objections"]["moves"] is False, told["objections"]["reasons"]


def test_when_the_machine_stays_the_function_is_back(told: Told) -> None:
    assert told["stayed"] == {"lowers": BOTH, "on": True}


def test_a_function_takes_the_place_of_one_that_was_given_back(told: Told) -> None:
    assert told["given back"] == {"driver": None, "on": True}
    assert told["came"] == {"lowers": BOTH, "on": True, "driver": "vfio-pci"}


def test_no_byte_was_lost_and_drivers_are_back(told: Told) -> None:
    assert told["stream"]["problem"] == ""
    assert told["stream"]["bytes"] > 0
    assert told["after"] == {"igb": "igb", "function": None}


def test_the_iommu_had_nothing_to_block(told: Told) -> None:
    assert told["faults"]["seen"] == []
