"""A PCI function as its guest sees it (PCI Express Base 6.0, 7.5)."""

from __future__ import annotations

import os

import pytest

from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptIndex, InterruptMode
from iolane.model.pci import (
    Aer,
    Bar,
    BarKind,
    CapabilityId,
    ExtendedCapabilityId,
    Intx,
    MemoryPart,
    Msi,
    Msix,
    PciDevice,
    PcieEndpoint,
    PcieId,
    ResetKind,
    SerialNumber,
    VendorSpecific,
)
from iolane.model.pci.caps.aer import UncorrectableErrors
from iolane.model.region import Area, Region, RegionIndex
from iolane.model.registers import Register32, RegisterMap, register

COMMAND, STATUS, BAR0 = 0x04, 0x06, 0x10


class Registers(RegisterMap):
    VALUE = register(0x0, Register32)
    SUM = register(0x4, Register32, access="ro", reset=3)


class Everything(PciDevice):
    vendor_id, device_id, class_code, revision_id = 0x1234, 0x5678, 0x010802, 7
    subsystem_vendor_id, subsystem_id = 0x1AF4, 0x1100
    bar0 = Bar(Registers, kind=BarKind.MEM64, prefetchable=True, memory=[MemoryPart(0x1000, 0x1000)])
    bar2 = Bar(Registers, kind=BarKind.IO)
    bar3 = Bar(RegisterMap, size=0x8000)
    intx = Intx()
    msi = Msi(4)
    msix = Msix(5)
    vendor = VendorSpecific(b"hello")
    aer = Aer()
    number = SerialNumber(0x0011_2233_4455_6677)

    def __init__(self) -> None:
        super().__init__()
        self.written: list[int] = []
        self.resets: list[ResetKind] = []

    @bar0.on_write(Registers.VALUE)
    def value(self, value: Register32) -> None:
        self.written.append(value)

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind)


@pytest.fixture
def device() -> Everything:
    return Everything()


def config(device: PciDevice) -> Region:
    return device.config


def test_the_header_holds_the_identity_and_ignores_writes_to_it(device: Everything) -> None:
    space = config(device)
    space.write_bytes(0, bytes([0xFF]) * 4)
    space.write_bytes(8, bytes([0xFF]) * 4)
    assert (space.read(0, 2), space.read(2, 2), space.read(8, 4)) == (0x1234, 0x5678, 0x0108_0207)
    assert (space.read(0x2C, 4), space.read(0x3D, 1)) == (0x1100_1AF4, 1)


def test_sizing_a_bar_finds_its_size_kind_and_64_bits(device: Everything) -> None:
    """7.5.1.2.1: after writing all ones, the writable bits tell the size."""
    space = config(device)
    for index in range(6):
        space.write(BAR0 + 4 * index, 4, 0xFFFF_FFFF)
    values = [space.read(BAR0 + 4 * index, 4) for index in range(6)]
    assert values == [0xFFFF_E00C, 0xFFFF_FFFF, 0xFFFF_FFF9, 0xFFFF_8000, 0xFFFF_F000, 0]


def test_a_bar_written_byte_by_byte_takes_every_byte(device: Everything) -> None:
    space = config(device)
    for position, byte in enumerate((0xAB, 0xCD, 0xEF, 0x12)):
        space.write(BAR0 + 12 + position, 1, byte)
    assert space.read(BAR0 + 12, 4) == 0x12EF_8000


def test_a_bar_has_an_address_only_while_the_command_register_lets_it_decode(device: Everything) -> None:
    space = config(device)
    space.write(BAR0, 4, 0xE000_0000)
    space.write(BAR0 + 4, 4, 0x1)
    space.write(BAR0 + 8, 4, 0xC000)
    assert device.config.bar_address(0) is None
    space.write(COMMAND, 2, 2)
    assert device.config.bar_address(0) == 0x1_E000_0000
    assert device.config.bar_address(2) is None
    space.write(COMMAND, 2, 3)
    assert device.config.bar_address(2) == 0xC000


def test_bus_master_gates_dma(device: Everything) -> None:
    assert not device.dma.enabled
    config(device).write(COMMAND, 2, 4)
    assert device.dma.enabled
    config(device).write(COMMAND, 2, 0)
    assert not device.dma.enabled


def walk(space: Region) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    offset = space.read(0x34, 1)
    while offset and len(found) < 48:
        found.append((space.read(offset, 1), offset))
        offset = space.read(offset + 1, 1)
    return found


def test_capabilities_are_chained_in_the_order_of_declaration(device: Everything) -> None:
    space = config(device)
    assert space.read(STATUS, 2) & 1 << 4
    assert [capability for capability, _ in walk(space)] == [
        CapabilityId.PM,
        CapabilityId.EXP,
        CapabilityId.MSI,
        CapabilityId.MSIX,
        CapabilityId.VNDR,
    ]


def test_extended_capabilities_start_at_0x100_and_name_the_next(device: Everything) -> None:
    space = config(device)
    first = space.read(0x100, 4)
    assert (first & 0xFFFF, first >> 16 & 0xF) == (ExtendedCapabilityId.ERR, 2)
    second = space.read(first >> 20, 4)
    assert (second & 0xFFFF, second >> 20) == (ExtendedCapabilityId.DSN, 0)
    assert space.read_bytes((first >> 20) + 4, 8) == (0x0011_2233_4455_6677).to_bytes(8, "little")


def test_a_function_without_extended_capabilities_has_an_empty_list() -> None:
    """7.6.2: a header of zeros."""

    class Bare(PciDevice):
        power = None
        express = None

    space = config(Bare())
    assert (space.read(0x100, 4), space.read(0x34, 1), space.read(STATUS, 2)) == (0, 0, 0)


def test_vendor_specific_has_its_length_and_data(device: Everything) -> None:
    space = config(device)
    offset = dict(walk(space))[CapabilityId.VNDR]
    assert space.read_bytes(offset + 2, 6) == b"\x08hello"


def test_power_states_that_do_not_exist_are_not_entered(device: Everything) -> None:
    """PCI Power Management 3.2.4: writing an unsupported state completes and changes nothing."""
    space = config(device)
    offset = dict(walk(space))[CapabilityId.PM] + 4
    for written, state in ((3, 3), (1, 3), (0, 0), (2, 0)):
        space.write(offset, 2, written)
        assert space.read(offset, 2) & 3 == state


def test_flr_resets_the_function_and_reads_back_as_0(device: Everything) -> None:
    """6.6.2."""
    space = config(device)
    device.bar0.VALUE = 9
    space.write(COMMAND, 2, 6)
    control = dict(walk(space))[CapabilityId.EXP] + 8
    space.write(control, 2, space.read(control, 2) | 1 << 15)
    assert device.resets == [ResetKind.FLR]
    assert (space.read(control, 2) >> 15, space.read(COMMAND, 2), device.bar0.VALUE) == (0, 0, 0)
    assert device.bar0.SUM == 3


def test_a_function_without_flr_ignores_it() -> None:
    class NoFlr(Everything):
        express = PcieEndpoint(flr=False)

    device = NoFlr()
    space = config(device)
    express = dict(walk(space))[CapabilityId.EXP]
    assert not space.read(express + 4, 4) & 1 << 28
    space.write(express + 8, 2, 1 << 15)
    assert device.resets == []


def test_aer_status_is_cleared_by_writing_ones_and_survives_flr(device: Everything) -> None:
    """7.8.4.2; the status bits are sticky."""
    device.aer.report_uncorrectable(UncorrectableErrors.COMPLETER_ABORT, (1, 2, 3, 4))
    space = config(device)
    assert space.read(0x104, 4) == 1 << 15
    assert (space.read(0x118, 4) & 0x1F, space.read_bytes(0x11C, 4)) == (15, b"\1\0\0\0")
    device.reset(ResetKind.FLR)
    assert space.read(0x104, 4) == 1 << 15
    space.write(0x104, 4, 1 << 15)
    assert space.read(0x104, 4) == 0


def test_hooks_run_and_plain_memory_is_mappable(device: Everything) -> None:
    region = device.regions[RegionIndex.BAR0]
    assert region is not None
    region.write(0, 4, 42)
    assert device.written == [42]
    assert (region.mappable, os.fstat(region.fd).st_size) == ((Area(0x1000, 0x1000),), 0x2000)
    region.write(0x1FF8, 8, 0x1122_3344_5566_7788)
    assert os.pread(region.fd, 8, 0x1FF8) == bytes.fromhex("8877665544332211")
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(region.fd, 0)


def test_an_access_across_pieces_and_holes_takes_each_byte_from_its_place(device: Everything) -> None:
    region = device.regions[RegionIndex.BAR0]
    assert region is not None
    region.write(0x1000, 1, 0xAA)
    assert region.read(0xFFC, 8) == 0xAA << 32
    region.read(0x800, 4)
    assert region.unmodelled[("read", 0x800, 4)] == 1


def test_locate_names_registers_in_every_region(device: Everything) -> None:
    space, bar = config(device), device.regions[RegionIndex.BAR0]
    assert bar is not None
    names = [space.locate(COMMAND), space.locate(BAR0 + 5), bar.locate(2), bar.locate(0x1000)]
    assert [found.name if found else None for found in names] == [
        "config.COMMAND",
        "config.BAR[1]",
        "bar0.VALUE",
        None,
    ]


def test_saved_state_brings_back_registers_memory_and_what_follows_from_them(device: Everything) -> None:
    space, bar = config(device), device.regions[RegionIndex.BAR0]
    assert bar is not None
    space.write(COMMAND, 2, 6)
    bar.write(0, 4, 77)
    bar.write(0x1000, 8, 88)
    document = device.save()
    other = Everything()
    other.load(document)
    region = other.regions[RegionIndex.BAR0]
    assert region is not None
    assert (region.read(0, 4), region.read(0x1000, 8), other.dma.enabled) == (77, 88, True)


def test_a_loaded_document_cannot_change_who_the_device_is(device: Everything) -> None:
    for offset in range(0, 0x200):
        device.config.storage[offset] = 0xFF
    document = device.save()
    fresh = Everything()
    fresh.load(document)
    space = config(fresh)
    assert (space.read(0, 4), space.read(8, 4)) == (0x5678_1234, 0x0108_0207)
    assert len(walk(space)) == 5


@pytest.mark.parametrize(
    ("presentation", "kinds"),
    [
        ("auto", {CapabilityId.MSI, CapabilityId.MSIX}),
        ("msix", {CapabilityId.MSIX}),
        ("msi", {CapabilityId.MSI}),
        ("intx", set()),
    ],
)
def test_the_presentation_chooses_the_interrupts_the_guest_sees(presentation: str, kinds: set[int]) -> None:
    class Presented(PciDevice):
        intx = Intx()
        msi = Msi(4)
        msix = Msix(5)

    device = Presented(presentation=presentation)
    found = {capability for capability, _ in walk(config(device))}
    assert found & {CapabilityId.MSI, CapabilityId.MSIX} == kinds
    device.msix.raise_vector(0)
    assert device.interrupts.mode is InterruptMode.INTX


def test_msi_stands_in_for_declared_msix_with_enough_vectors() -> None:
    class OnlyMsix(PciDevice):
        msix = Msix(5)

    device = OnlyMsix(presentation="msi")
    assert device.interrupts.group(InterruptIndex.MSI).count == 8
    assert device.interrupts.group(InterruptIndex.MSIX).count == 0
    with pytest.raises(IolaneError, match="no interrupt pin"):
        OnlyMsix(presentation="intx")


def test_msix_of_2048_vectors_gets_a_bar_of_its_own() -> None:
    class Many(PciDevice):
        msix = Msix(2048)

    device = Many()
    region = device.regions[RegionIndex.BAR4]
    assert region is not None
    assert region.size == 0x10000
    region.write(16 * 2047 + 12, 4, 0)
    assert region.read(16 * 2047 + 12, 4) == 0


def test_wrong_declarations_are_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="bar0 to bar5"):
        type("Bad", (PciDevice,), {"bar9": Bar(Registers)})
    with pytest.raises(TypeError, match="replaced"):
        type("Bad", (Everything,), {"bar0": Bar(Registers)})
    with pytest.raises(TypeError, match="whole pages"):
        Bar(Registers, memory=[MemoryPart(0x800, 0x1000)])
    with pytest.raises(TypeError, match="1 to 2048"):
        Msix(2049)

    class Overlapping(PciDevice):
        bar0 = Bar(Registers)
        msix = Msix(1, bar=0, table=0)

    with pytest.raises(TypeError, match="overlaps"):
        Overlapping()


def test_a_subclass_overrides_a_handler_and_adds_one() -> None:
    class Derived(Everything):
        def value(self, value: Register32) -> None:
            self.written.append(-value)

        @Everything.bar0.on_read(Registers.SUM)
        def sum(self, value: Register32) -> int:
            return value + 1

    device = Derived()
    region = device.regions[0]
    assert region is not None
    region.write(0, 4, 5)
    assert (device.written, region.read(4, 4)) == ([-5], 4)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:01:00.0", PcieId(0, 1, 0, 0)),
        ("3b:1f.7", PcieId(0, 0x3B, 0x1F, 7)),
    ],
)
def test_a_pcie_id_is_written_as_lspci_writes_it(text: str, address: PcieId) -> None:
    assert PcieId.from_string(text) == address
    assert str(address).endswith(text)
    assert PcieId.from_routing(address.routing_id) == address


@pytest.mark.parametrize("text", ["", "1:2", "0000:01:20.0", "0000:01:00.8", "nonsense"])
def test_what_is_no_pcie_id_is_refused(text: str) -> None:
    with pytest.raises(IolaneError, match="not a PCI address"):
        PcieId.from_string(text)
