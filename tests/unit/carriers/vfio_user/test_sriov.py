"""Functions with SR-IOV, as QEMU's client meets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.vfio_user import VfioUserClient, VfioUserServer
from iolane.devices.sriov import SharedAdder
from iolane.model.pci import ExtendedCapabilityId
from iolane.model.region import RegionIndex
from iolane.testing.drivers.sriov import SriovDriver
from tests.unit.carriers.vfio_user.sample import Sample

EXTENDED = 0x100


@pytest.fixture
def adder() -> Iterator[SharedAdder]:
    adder = SharedAdder()
    yield adder
    adder.close()


@pytest.mark.parametrize("whole", [4096, 0x200, 0x104])
def test_a_client_that_reads_all_at_once_finds_no_extended_capabilities(
    adder: SharedAdder, tmp_path: Path, whole: int
) -> None:
    """QEMU 11 would drop SR-IOV of what it finds; what it doesn't find, the guest reads from us."""
    with VfioUserServer(adder, tmp_path / "s") as server, VfioUserClient(server.path) as client:
        client.negotiate()
        taken = client.read_bytes(RegionIndex.CONFIG, 0, whole)
        assert taken[:EXTENDED] == bytes(adder.config.storage[:EXTENDED])
        assert taken[EXTENDED : EXTENDED + 4] == bytes(4)
        assert taken[EXTENDED + 4 :] == bytes(adder.config.storage[EXTENDED + 4 : whole])
        assert client.config_read(EXTENDED, 4) & 0xFFFF == ExtendedCapabilityId.ARI
        assert client.config_read(EXTENDED, 2) == ExtendedCapabilityId.ARI


@pytest.mark.parametrize(("offset", "length"), [(0, 0x100), (0x104, 0x100), (0xFE, 4)])
def test_other_reads_are_what_they_are(adder: SharedAdder, tmp_path: Path, offset: int, length: int) -> None:
    with VfioUserServer(adder, tmp_path / "s") as server, VfioUserClient(server.path) as client:
        client.negotiate()
        expected = bytes(adder.config.storage[offset : offset + length])
        assert client.read_bytes(RegionIndex.CONFIG, offset, length) == expected


def test_functions_without_sriov_hide_nothing(tmp_path: Path) -> None:
    sample = Sample()
    with VfioUserServer(sample, tmp_path / "s") as server, VfioUserClient(server.path) as client:
        client.negotiate()
        assert client.read_bytes(RegionIndex.CONFIG, 0, 4096) == bytes(sample.config.storage)
    sample.close()


def test_a_vf_is_served_before_it_exists(adder: SharedAdder, tmp_path: Path) -> None:
    """A client sets itself up by the VF's config space, and a scan finds nobody: the ids are FFFFh."""
    vf = adder.sriov.all[1]
    with VfioUserServer(vf, tmp_path / "s") as server, VfioUserClient(server.path) as client:
        client.negotiate()
        assert client.config_read(0, 4) == 0xFFFF_FFFF
        assert client.config_read(0x34, 1) == 0x40
        assert client.read(RegionIndex.BAR0, 0x10, 4) == 0xFFFF_FFFF
        driver = SriovDriver(adder)
        driver.place()
        driver.enable_vfs(2)
        assert client.config_read(4, 2) == 2, "QEMU maps by this bit: what is written back must keep it"
        client.config_write(4, 2, 6)
        assert client.read(RegionIndex.BAR0, 0x10, 4) == 1
        assert vf.dma.enabled
        driver.disable_vfs()
        assert (client.read(RegionIndex.BAR0, 0x10, 4), client.config_read(4, 2)) == (0xFFFF_FFFF, 0)
