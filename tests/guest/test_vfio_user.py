"""What QEMU's own client does with regions and resets, seen from a guest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from iolane.carriers.vfio_user import VfioUserServer
from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.model.pci import ResetKind
from iolane.model.region import RegionIndex
from iolane.model.workers import Workers
from tests.unit.carriers.vfio_user.sample import Sample

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

FOLDER = "/sys/bus/pci/devices/0000:01:00.0"


@dataclass
class Guest:
    machine: QemuMachine
    server: VfioUserServer
    device: Sample

    def bar(self, index: int) -> int:
        """Where the guest put a BAR."""
        lines = self.machine.check(f"cat {FOLDER}/resource").splitlines()
        return int(lines[index].split()[0], 16)

    def read(self, address: int, bits: int = 32) -> int:
        return int(self.machine.check(f"devmem {address:#x} {bits}"), 16)

    def write(self, address: int, value: int, bits: int = 32) -> None:
        self.machine.check(f"devmem {address:#x} {bits} {value:#x}")

    def traps(self) -> int:
        statistics = self.server.statistics
        return statistics.reads + statistics.writes


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    path: Path = tmp_path_factory.mktemp("sockets") / "sample"
    device = Sample()
    with Workers(1) as workers, VfioUserServer(device, path, workers=workers) as server:
        config = MachineConfig(name="vfio-user", devices=[VfioUserDevice("sample", path)])
        with QemuMachine(config) as machine:
            machine.check(f"echo 1 > {FOLDER}/enable")
            yield Guest(machine, server, device)
    assert not server.statistics.as_dict().get("device_errors")
    device.close()


def test_the_function_is_there(guest: Guest) -> None:
    assert guest.machine.check(f"cat {FOLDER}/vendor {FOLDER}/device").split() == ["0x1234", "0x5a5a"]


def test_registers_trap(guest: Guest) -> None:
    bar = guest.bar(0)
    before = guest.traps()
    for bits in (8, 16, 32):
        value = 0xA1B2C3D4 & ((1 << bits) - 1)
        guest.write(bar, value, bits)
        assert guest.read(bar, bits) == value
    guest.write(bar + 4, 0xFF)
    assert guest.read(bar + 4) == 0xFFFF_FF00
    assert guest.device.bar0.HOOKED == 0xFF
    assert guest.traps() >= before + 8


def test_a_sparse_region_is_mapped_in_parts(guest: Guest) -> None:
    bar = guest.bar(1)
    region = guest.device.regions[RegionIndex.BAR1]
    assert region is not None
    before = guest.traps()
    guest.write(bar + 0x1008, 0x11223344)
    guest.write(bar + 0x3000, 0x55667788)
    assert guest.traps() == before
    assert region.read(0x1008, 4) == 0x11223344
    assert region.read(0x3000, 4) == 0x55667788
    region.write(0x1FFC, 4, 0x99AABBCC)
    assert guest.read(bar + 0x1FFC) == 0x99AABBCC
    assert guest.traps() == before
    guest.write(bar, 7)  # between the mapped parts there are registers
    assert guest.traps() > before
    assert region.read(0, 4) == 7


def test_a_region_is_mapped_as_a_whole(guest: Guest) -> None:
    bar = guest.bar(3)
    region = guest.device.regions[RegionIndex.BAR3]
    assert region is not None
    before = guest.traps()
    guest.write(bar + 0x1F00, 0xCAFE)
    assert region.read(0x1F00, 4) == 0xCAFE
    assert guest.traps() == before


def test_a_function_level_reset_is_a_config_write(guest: Guest) -> None:
    guest.write(guest.bar(0), 0x77)
    guest.device.resets.clear()
    guest.machine.check(f"echo flr > {FOLDER}/reset_method; echo 1 > {FOLDER}/reset")
    assert ResetKind.FLR in guest.device.resets
    assert guest.device.bar0.PLAIN == 0


def test_a_reset_of_the_machine_resets_the_device(guest: Guest) -> None:
    guest.write(guest.bar(0), 0x77)
    guest.device.resets.clear()
    guest.machine.reset()
    assert ResetKind.CONVENTIONAL in guest.device.resets
    assert guest.device.bar0.PLAIN == 0
    guest.machine.check(f"echo 1 > {FOLDER}/enable")
    guest.write(guest.bar(0), 0x78)
    assert guest.read(guest.bar(0)) == 0x78


def test_nothing_of_this_was_refused(guest: Guest) -> None:
    """QEMU keeps to the protocol; a rejection here would be a mistake of ours."""
    refused = [name for name in guest.server.statistics.as_dict() if re.match("rejected", name)]
    assert refused == []
