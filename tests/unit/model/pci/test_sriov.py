"""The SR-IOV capability and virtual functions, by section of PCI Express Base 6.0."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from iolane.model.interrupts import InterruptIndex
from iolane.model.pci import (
    Ari,
    Bar,
    BarKind,
    Intx,
    MemoryPart,
    PciDevice,
    PhysicalFunction,
    ResetKind,
    Sriov,
    VirtualFunction,
)
from iolane.model.pci.caps.express import DeviceControl
from iolane.model.pci.caps.sriov import SriovControl, SriovRegisters
from iolane.model.registers import RegisterMap, RegisterSpec
from iolane.model.state import StateError, decode, encode
from iolane.testing.drivers.sriov import APERTURES_START, ENABLE, SriovDriver, read, write
from tests.unit.model.pci.sriov_sample import FIRST, STRIDE, TOTAL, SamplePf, SampleVf

ONES = 0xFFFF_FFFF
ARI_HIERARCHY = SriovControl.ARI_CAPABLE_HIERARCHY.mask


@pytest.fixture
def driver() -> Iterator[SriovDriver[SamplePf]]:
    with SriovDriver(SamplePf()) as driver:
        yield driver


def device_control(vf: VirtualFunction) -> int:
    """Offset of Device Control in config space."""
    express = SampleVf.express
    assert express is not None
    return int(vf.bound(express).offset) + 8


def config(function: PciDevice, offset: int, size: int) -> int:
    return function.config.read(offset, size)


# 9.3.3.2, 9.3.3.5 to 9.3.3.11: constants.


def test_constants_are_what_the_class_declares(driver: SriovDriver[SamplePf]) -> None:
    expected: dict[RegisterSpec[Any], int] = {
        SriovRegisters.INITIAL_VFS: TOTAL,  # 9.3.3.5: all of them, without VF Migration
        SriovRegisters.TOTAL_VFS: TOTAL,
        SriovRegisters.FUNCTION_LINK: 0,
        SriovRegisters.FIRST_VF_OFFSET: FIRST,
        SriovRegisters.VF_STRIDE: STRIDE,
        SriovRegisters.VF_DEVICE_ID: SampleVf.device_id,
        SriovRegisters.CAPABILITIES: 0,
        SriovRegisters.STATUS: 0,
        SriovRegisters.MIGRATION_STATE: 0,
        SriovRegisters.SUPPORTED_PAGE_SIZES: 0x553,
    }
    for register, value in expected.items():
        driver.put(register, ONES)
        assert driver.get(register) == value, register.name


def test_every_function_has_ari(driver: SriovDriver[SamplePf]) -> None:
    """9.3.7: all but root complex integrated ones."""
    for function in (driver.device, *driver.device.vfs.all):
        assert config(function, 0x100, 4) & 0xFFFF == 0x0E


@pytest.mark.parametrize(
    "wrong",
    [
        {"total": 0},
        {"total": 1 << 16},
        {"total": 2, "stride": 0},
        {"total": 2, "first_offset": 0},
        {"total": 0x8000, "stride": 3},
        {"total": 1, "function": 256},
    ],
)
def test_declarations_that_no_hierarchy_could_hold_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        Sriov(SampleVf, **wrong)


def test_sriov_takes_a_physical_function() -> None:
    class Plain(PciDevice):
        sriov = Sriov(SampleVf, total=1)

    with pytest.raises(TypeError, match="derive it from PhysicalFunction"):
        Plain()

    class Without(PhysicalFunction):
        pass

    with pytest.raises(TypeError, match=r"declares no sriov"):
        Without()


# 9.3.3.3: control.


def test_vf_enable_makes_vfs(driver: SriovDriver[SamplePf]) -> None:
    vfs = driver.device.vfs
    driver.put(SriovRegisters.NUM_VFS, 3)
    assert vfs.present == ()
    driver.put(SriovRegisters.CONTROL, SriovControl.VF_ENABLE.mask)
    assert [vf.present for vf in vfs.all] == [True] * 3 + [False] * 2
    assert not any(vf.memory_enabled for vf in vfs.all)
    driver.put(SriovRegisters.CONTROL, 0)
    assert not any(vf.present for vf in vfs.all)
    assert driver.device.changes == 2


def test_a_vf_that_comes_again_is_new(driver: SriovDriver[SamplePf]) -> None:
    """9.3.3.3.1: VF Enable cleared and set gives VFs as after a reset."""
    driver.place()
    driver.enable_vfs(1)
    with driver.virtual(0) as vf:
        vf.write(0, 4, 5)
        assert vf.device.dma.enabled
    driver.disable_vfs()
    assert not driver.device.vfs.all[0].dma.enabled
    driver.enable_vfs(1)
    with driver.virtual(0) as vf:
        assert vf.read(0, 4) == 0


def test_num_vfs_and_page_size_are_kept_while_vfs_are_enabled(driver: SriovDriver[SamplePf]) -> None:
    """9.3.3.7, 9.3.3.13."""
    driver.place()
    driver.enable_vfs(2)
    driver.put(SriovRegisters.NUM_VFS, 4)
    driver.put(SriovRegisters.SYSTEM_PAGE_SIZE, 2)
    assert driver.get(SriovRegisters.NUM_VFS) == len(driver.device.vfs.present) == 2
    assert driver.get(SriovRegisters.SYSTEM_PAGE_SIZE) == 1
    driver.put(SriovRegisters.CONTROL, 0)
    driver.put(SriovRegisters.NUM_VFS, 4)
    assert driver.get(SriovRegisters.NUM_VFS) == 4


def test_more_vfs_than_there_are_is_not_taken(driver: SriovDriver[SamplePf]) -> None:
    for count, taken in ((TOTAL, TOTAL), (TOTAL + 1, TOTAL), (0xFFFF, TOTAL), (1, 1)):
        driver.put(SriovRegisters.NUM_VFS, count)
        assert driver.get(SriovRegisters.NUM_VFS) == taken


def test_the_hierarchy_bit_changes_only_without_vfs(driver: SriovDriver[SamplePf]) -> None:
    """9.3.3.3.5."""
    driver.put(SriovRegisters.CONTROL, ARI_HIERARCHY | SriovControl.VF_ENABLE.mask)
    driver.put(SriovRegisters.CONTROL, SriovControl.VF_ENABLE.mask)
    assert driver.get(SriovRegisters.CONTROL) & ARI_HIERARCHY
    driver.put(SriovRegisters.CONTROL, 0)
    driver.put(SriovRegisters.CONTROL, 0)
    assert not driver.get(SriovRegisters.CONTROL)


def test_reserved_bits_of_control_stay_clear(driver: SriovDriver[SamplePf]) -> None:
    driver.put(SriovRegisters.CONTROL, 0xFFFF)
    assert driver.get(SriovRegisters.CONTROL) == ENABLE | ARI_HIERARCHY


# 9.3.3.12 to 9.3.3.14: page sizes and BARs.


@pytest.mark.parametrize("pages", [1, 2, 0x10, 0x40, 0x100, 0x400])
def test_bars_have_the_size_of_a_page_at_least(driver: SriovDriver[SamplePf], pages: int) -> None:
    sizes = driver.place(pages << 12)
    assert driver.get(SriovRegisters.SYSTEM_PAGE_SIZE) == pages
    assert sizes == {0: max(0x4000, pages << 12), 2: pages << 12, 4: pages << 12}
    driver.enable_vfs(TOTAL)
    for vf in range(TOTAL):
        addresses = [driver.device.vfs.address_of(vf, bar) for bar in (0, 2, 4)]
        assert all(address and not address & ((pages << 12) - 1) for address in addresses)


@pytest.mark.parametrize("wrong", [0, 3, 4, 0x800, ONES])
def test_page_sizes_that_are_none_are_not_taken(driver: SriovDriver[SamplePf], wrong: int) -> None:
    driver.put(SriovRegisters.SYSTEM_PAGE_SIZE, 0x10)
    driver.put(SriovRegisters.SYSTEM_PAGE_SIZE, wrong)
    assert driver.get(SriovRegisters.SYSTEM_PAGE_SIZE) == 0x10


def test_vf_bars_say_what_they_are(driver: SriovDriver[SamplePf]) -> None:
    assert [driver.get(SriovRegisters.VF_BAR, index) for index in range(6)] == [0xC, 0, 0, 0, 0, 0]
    for index in range(6):
        driver.put(SriovRegisters.VF_BAR, ONES, index)
    found = [driver.get(SriovRegisters.VF_BAR, index) for index in range(6)]
    assert found == [0xFFFF_C00C, ONES, 0xFFFF_F000, 0, 0xFFFF_F000, 0]


def test_the_aperture_holds_the_vfs_one_behind_the_other(driver: SriovDriver[SamplePf]) -> None:
    driver.place()
    driver.enable_vfs(3)
    for number, vf in enumerate(driver.device.vfs.present):
        write(driver.device, APERTURES_START + 0x4000 * number, 4, 100 + number)
        assert int(vf.bar0.VALUE) - number == 100
    assert driver.device.vfs.find(APERTURES_START + 3 * 0x4000) is None
    assert driver.device.vfs.find(APERTURES_START - 1) is None
    assert read(driver.device, APERTURES_START + 3 * 0x4000, 4) == ONES


def test_what_the_page_size_adds_is_nobodys(driver: SriovDriver[SamplePf]) -> None:
    driver.place(0x10000)
    driver.enable_vfs(2)
    assert driver.device.vfs.find(APERTURES_START + 0x10000 + 0x3FFF) is not None
    assert driver.device.vfs.find(APERTURES_START + 0x10000 + 0x4000) is None


def test_a_64_bit_aperture_lies_above_4_gib(driver: SriovDriver[SamplePf]) -> None:
    driver.place()
    driver.put(SriovRegisters.VF_BAR, 0x12, 1)
    driver.enable_vfs(2)
    assert driver.device.vfs.address_of(1, 0) == 0x12_0000_0000 + APERTURES_START + 0x4000


def test_bars_are_reached_only_with_vf_mse(driver: SriovDriver[SamplePf]) -> None:
    """9.3.3.3.4, and what bypasses the aperture (a carrier that maps a VF by itself) is held to it."""
    driver.place()
    driver.enable_vfs(1)
    vf = driver.device.vfs.all[0]
    region = vf.regions[0]
    assert region is not None
    region.write(0, 4, 7)
    for control in (SriovControl.VF_ENABLE.mask, SriovControl.VF_MSE.mask, 0):
        driver.put(SriovRegisters.CONTROL, control)
        assert driver.device.vfs.find(APERTURES_START) is None
        region.write(0, 4, 9)
        assert (region.read(0, 4), region.read(0, 1)) == (ONES, 0xFF)
    assert vf.written == 1


def test_a_bar_without_an_address_decodes_nothing(driver: SriovDriver[SamplePf]) -> None:
    driver.enable_vfs(1)
    assert driver.device.vfs.address_of(0, 0) is None
    assert driver.device.vfs.find(0) is None


# 9.2.1.2: routing ids.


def test_vfs_are_found_at_their_routing_ids(driver: SriovDriver[SamplePf]) -> None:
    driver.put(SriovRegisters.NUM_VFS, 3)
    driver.put(SriovRegisters.CONTROL, ENABLE)
    vfs = driver.device.vfs
    found = {offset: vf.number for offset in range(-8, 64) if (vf := vfs.function_at(offset)) is not None}
    assert found == {FIRST: 0, FIRST + STRIDE: 1, FIRST + 2 * STRIDE: 2}
    driver.put(SriovRegisters.CONTROL, 0)
    assert all(vfs.function_at(offset) is None for offset in range(64))


# 9.3.4, 9.3.5: a VF's own config space.


def test_a_vfs_header_is_its_own(driver: SriovDriver[SamplePf]) -> None:
    driver.enable_vfs(1)
    vf = driver.device.vfs.all[0]
    assert config(vf, 0, 4) == ONES
    assert (config(vf, 8, 4) >> 8, config(vf, 0x2E, 2), config(vf, 0x3D, 1)) == (0x020000, 0x77, 0)
    for offset in range(0x10, 0x28, 4):
        vf.config.write(offset, 4, ONES)
        assert config(vf, offset, 4) == 0
    vf.config.write(0x04, 2, 0xFFFF)
    assert config(vf, 0x04, 2) == 0x4  # Bus Master alone
    vf.config.write(0x0C, 1, 0xFF)
    vf.config.write(0x3C, 1, 0xFF)
    assert (config(vf, 0x0C, 1), config(vf, 0x3C, 1)) == (0, 0)


def test_memory_enable_is_shown_where_an_engine_maps_by_it(driver: SriovDriver[SamplePf]) -> None:
    vf = driver.device.vfs.all[0]
    vf.memory_shown = True
    assert config(vf, 0x04, 2) == 0
    driver.enable_vfs(1)
    assert config(vf, 0x04, 2) == 2
    vf.config.write(0x04, 2, 6)
    assert (config(vf, 0x04, 2), vf.config.header.COMMAND) == (6, 4)


def test_device_control_of_a_vf_has_its_reset_alone(driver: SriovDriver[SamplePf]) -> None:
    driver.enable_vfs(1)
    vf = driver.device.vfs.all[0]
    offset = device_control(vf)
    vf.config.write(offset, 2, 0xFFFF & ~DeviceControl.INITIATE_FLR.mask)
    assert config(vf, offset, 2) == 0


@pytest.mark.parametrize(
    ("member", "name"),
    [
        (Bar(RegisterMap, kind=BarKind.IO, size=16), "bar0"),
        (Bar(RegisterMap, memory=[MemoryPart(0, 4096)]), "bar0"),
        (Intx(), "intx"),
    ],
)
def test_what_a_vf_cannot_have_is_refused(member: object, name: str) -> None:
    with pytest.raises(TypeError):
        type("Wrong", (VirtualFunction,), {name: member})


def test_a_vf_that_does_not_exist_does_nothing(driver: SriovDriver[SamplePf]) -> None:
    vf = driver.device.vfs.all[0]
    vf.config.write(0x04, 2, 4)
    assert not vf.dma.enabled
    assert not vf.interrupts.bus_master


# 9.2.2, 6.6.2: resets.


@pytest.mark.parametrize("kind", list(ResetKind))
def test_a_reset_of_the_pf_ends_its_vfs(driver: SriovDriver[SamplePf], kind: ResetKind) -> None:
    driver.place(0x10000)
    driver.put(SriovRegisters.CONTROL, ARI_HIERARCHY)
    driver.enable_vfs(2)
    with driver.virtual(0) as vf:
        assert vf.device.dma.enabled
        driver.device.reset(kind)
        assert not vf.device.present
        assert not vf.device.dma.enabled
    assert (driver.get(SriovRegisters.CONTROL), driver.get(SriovRegisters.NUM_VFS)) == (0, 0)
    assert driver.get(SriovRegisters.SYSTEM_PAGE_SIZE) == 1
    assert [driver.get(SriovRegisters.VF_BAR, index) for index in range(3)] == [0xC, 0, 0]
    assert driver.device.vfs.function_at(FIRST) is None


def test_flr_of_a_vf_leaves_it_where_it_is(driver: SriovDriver[SamplePf]) -> None:
    """9.2.2.3."""
    driver.place()
    driver.enable_vfs(2)
    with driver.virtual(0) as first, driver.virtual(1) as second:
        first.write(0, 4, 1)
        second.write(0, 4, 2)
        offset = device_control(first.device)
        with first.device.lock:
            first.device.config.write(offset, 2, DeviceControl.INITIATE_FLR.mask)
        assert (first.read(0, 4), second.read(0, 4)) == (0, 2)
        assert (first.device.dma.enabled, second.device.dma.enabled) == (False, True)


def test_msix_of_a_vf_is_its_own(driver: SriovDriver[SamplePf]) -> None:
    driver.place()
    driver.enable_vfs(2)
    with driver.virtual(0) as first, driver.virtual(1) as second:
        with second.device.lock:
            second.device.interrupts.raise_vector(1)
        assert [first.interrupts(1), second.interrupts(0), second.interrupts(1)] == [0, 0, 1]


def test_a_vanished_vfs_interrupt_is_not_sent(driver: SriovDriver[SamplePf]) -> None:
    driver.place()
    driver.enable_vfs(1)
    with driver.virtual(0) as vf:
        driver.disable_vfs()
        with vf.device.lock:
            vf.device.interrupts.raise_vector(0)
        assert vf.interrupts(0) == 0
        eventfd = os.eventfd(0)
        vf.device.interrupts.group(InterruptIndex.MSIX).connect(0, eventfd)
        vf.device.interrupts.flush()
        assert vf.interrupts(0) == 0


# State.


def saved_with_vfs() -> tuple[SriovDriver[SamplePf], bytes]:
    driver = SriovDriver(SamplePf())
    driver.place()
    driver.enable_vfs(2)
    with driver.virtual(1) as vf:
        vf.write(0, 4, 0xABCD)
        return driver, driver.device.save()


def test_a_pf_is_saved_with_its_vfs() -> None:
    driver, document = saved_with_vfs()
    with driver, SriovDriver(SamplePf()) as other:
        other.device.load(document)
        assert [vf.number for vf in other.device.vfs.present] == [0, 1]
        assert read(other.device, APERTURES_START + 0x4000, 4) == 0xABCD
        assert other.device.vfs.all[1].dma.enabled
        assert other.device.save() == document


def test_a_refused_state_changes_nothing() -> None:
    driver, document = saved_with_vfs()
    with driver:
        damages: list[dict[str, Any]] = [
            {},
            {"virtual_functions": []},
            {"virtual_functions": [b""] * TOTAL},
            {"virtual_functions": 3},
        ]
        for damage in damages:
            saved = decode(document)
            saved.extra = damage
            with pytest.raises(StateError):
                driver.device.load(encode(saved))
            assert driver.device.save() == document


def test_hostile_registers_in_a_saved_state_are_put_right() -> None:
    driver, document = saved_with_vfs()
    with driver:
        saved = decode(document)
        storage = bytearray(saved.regions["config"])
        storage[driver.offset + 8 : driver.offset + 0x40] = b"\xff" * 0x38
        saved.regions["config"] = bytes(storage)
        driver.device.load(encode(saved))
        assert driver.get(SriovRegisters.CONTROL) == ENABLE | ARI_HIERARCHY
        assert driver.get(SriovRegisters.NUM_VFS) == TOTAL == len(driver.device.vfs.present)
        assert driver.get(SriovRegisters.SYSTEM_PAGE_SIZE) == 1
        assert driver.get(SriovRegisters.VF_DEVICE_ID) == SampleVf.device_id
        assert driver.get(SriovRegisters.VF_BAR, 2) == 0xFFFF_F000


def test_the_next_function_is_a_number() -> None:
    with pytest.raises(TypeError):
        Ari(next_function=256)
