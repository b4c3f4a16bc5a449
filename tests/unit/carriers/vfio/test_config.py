"""Config space as a guest sees it."""

from collections.abc import Callable

import pytest

from iolane.carriers.vfio import VfioFunction
from iolane.carriers.vfio.capability_chain import (
    FoundCapability,
    extended_capabilities,
    standard_capabilities,
)
from iolane.carriers.vfio.config import ConfigView
from iolane.testing.fake_vfio import FakeFunction
from iolane.uapi.pci import Capability, Command
from iolane.uapi.vfio import PciRegion
from tests.unit.carriers.vfio.hardware import HOST_BAR


@pytest.fixture
def resets() -> list[str]:
    return []


@pytest.fixture
def view(function: VfioFunction, resets: list[str]) -> ConfigView:
    return ConfigView(function, reset=lambda: resets.append("FLR"))


def find(view: ConfigView, identity: Capability) -> int:
    found = view.capability(identity)
    assert found is not None
    return found.offset


def test_no_address_of_the_host(view: ConfigView, function: VfioFunction) -> None:
    raw = function.read(PciRegion.CONFIG, 0x10, 4)
    assert int.from_bytes(raw, "little") & ~0xF == HOST_BAR
    assert view.read(0x10, 4) & ~0xF == 0
    assert view.read(0x10, 4) & 0xF == raw[0] & 0xF


def test_bars_are_sized_and_placed_by_the_guest(view: ConfigView, function: VfioFunction) -> None:
    """PCI Express Base 6.0, 7.5.1.2.1: all ones read back as the mask of the size. The hardware's stay."""
    view.write(0x10, 4, 0xFFFF_FFFF)
    assert view.read(0x10, 4) & ~0xF == ~(0x4000 - 1) & 0xFFFF_FFF0
    view.write(0x10, 4, 0xE000_0000)
    assert view.read(0x10, 4) & ~0xF == 0xE000_0000
    assert int.from_bytes(function.read(PciRegion.CONFIG, 0x10, 4), "little") & ~0xF == HOST_BAR
    view.write(0x18 + 12, 4, 0xFFFF_FFFF)  # there is no BAR 5
    assert view.read(0x18 + 12, 4) == 0


def test_the_rest_is_the_hardware(view: ConfigView, function: VfioFunction) -> None:
    assert view.read(0, 4) == 0xCA4D_1234
    view.write(4, 2, Command.MEMORY)
    assert function.read(PciRegion.CONFIG, 4, 2) == b"\x02\x00"
    assert view.read(4, 2) == Command.MEMORY


def test_msix_is_stored_only(view: ConfigView, function: VfioFunction, fake: FakeFunction) -> None:
    offset = find(view, Capability.MSIX)
    before = view.read(offset + 2, 2)
    assert before & 0x7FF == 7
    view.write(offset + 2, 2, 0xFFFF)
    assert view.read(offset + 2, 2) == 0xC007
    assert fake.device.interrupts.msix is not None
    assert not fake.device.interrupts.msix.enabled
    view.reset()
    assert view.read(offset + 2, 2) == before


def test_flr_goes_by_way_of_vfio(view: ConfigView, fake: FakeFunction, resets: list[str]) -> None:
    offset = find(view, Capability.EXP) + 8
    view.write(offset, 2, 0x8000 | 0x10)
    assert resets == ["FLR"]
    assert fake.resets == 0
    view.write(offset + 1, 1, 0x80)  # the same bit by its byte
    view.write(offset, 4, 0x8000)
    assert resets == ["FLR"] * 3


def test_power_state(view: ConfigView, function: VfioFunction) -> None:
    offset = find(view, Capability.PM) + 4
    view.write(offset, 2, 3)
    assert view.power_state == 3
    view.wake()
    assert view.power_state == 0
    view.wake()


def test_names_for_traces(view: ConfigView) -> None:
    located = view.locate(find(view, Capability.MSIX) + 2)
    assert located is not None
    assert located.name == "config.msix.CONTROL"
    located = view.locate(4)
    assert located is not None
    assert located.name == "config.COMMAND"


# Chains.


def extended(*chain: tuple[int, int, int]) -> bytearray:
    """Config space with (offset, id, next) capabilities."""
    config = bytearray(4096)
    for offset, identity, following in chain:
        config[offset : offset + 4] = (identity | 1 << 16 | following << 20).to_bytes(4, "little")
        config[offset + 4 : offset + 8] = b"body"
    return config


Build = Callable[[bytearray], ConfigView]


@pytest.fixture
def build(function: VfioFunction, fake: FakeFunction, monkeypatch: pytest.MonkeyPatch) -> Build:
    original = fake.pread
    start = PciRegion.CONFIG << 40

    def make(config: bytearray) -> ConfigView:
        def pread(length: int, position: int) -> bytes:
            found = original(length, position)
            if position < start:
                return found
            offset = position - start
            extended = bytes(0x100) + bytes(config[0x100:])
            return bytes(
                extended[offset + place] if offset + place >= 0x100 else byte
                for place, byte in enumerate(found)
            )

        monkeypatch.setattr(fake, "pread", pread)
        return ConfigView(function, reset=lambda: None)

    return make


def chained(view: ConfigView) -> list[tuple[int, int]]:
    """(id, offset) as a guest walks them."""
    raw = b"".join(view.read(offset, 4).to_bytes(4, "little") for offset in range(0, 4096, 4))
    return [(found.id, found.offset) for found in extended_capabilities(raw)]


def test_capabilities_that_a_guest_must_not_see(build: Build) -> None:
    """SR-IOV and ARI are unlinked, and read as nothing."""
    view = build(extended((0x100, 0x1, 0x140), (0x140, 0x10, 0x180), (0x180, 0xE, 0x1C0), (0x1C0, 0x3, 0)))
    assert chained(view) == [(0x1, 0x100), (0x3, 0x1C0)]
    assert view.read(0x140, 4) == 0
    assert view.read(0x144, 4) == 0
    assert view.read(0x1C4, 4) == int.from_bytes(b"body", "little")


def test_the_first_one_hidden(build: Build) -> None:
    """The chain must begin at 0x100: with an empty capability (7.6.3)."""
    view = build(extended((0x100, 0x10, 0x180), (0x180, 0x3, 0)))
    assert chained(view) == [(0, 0x100), (0x3, 0x180)]
    assert view.read(0x104, 4) == 0


def test_all_hidden(build: Build) -> None:
    assert chained(build(extended((0x100, 0x10, 0)))) == []


def test_chains_that_do_not_end() -> None:
    config = extended((0x100, 0x1, 0x140), (0x140, 0x3, 0x100))
    assert [found.offset for found in extended_capabilities(bytes(config))] == [0x100, 0x140]
    config[6], config[0x34] = 0x10, 0x40
    config[0x40:0x42], config[0x50:0x52] = b"\x01\x50", b"\x05\x40"
    assert standard_capabilities(bytes(config)) == [
        FoundCapability(1, 0x40, 0x10, False),
        FoundCapability(5, 0x50, 0xB0, False),
    ]
