"""The SR-IOV capability against a model of its rules: any order of writes, resets, saves and loads."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from iolane.model.pci import ResetKind
from iolane.model.pci.caps.sriov import SriovControl, SriovRegisters
from iolane.testing.drivers.sriov import SriovDriver
from tests.unit.model.pci.sriov_sample import FIRST, STRIDE, TOTAL, SamplePf

VFE, MSE, ARI = (
    field.mask for field in (SriovControl.VF_ENABLE, SriovControl.VF_MSE, SriovControl.ARI_CAPABLE_HIERARCHY)
)
SUPPORTED = {1, 2, 0x10, 0x40, 0x100, 0x400}
SIZES = {0: 0x4000, 2: 0x1000, 4: 0x1000}
FLAGS = {0: 0xC, 2: 0, 4: 0}

controls = st.one_of(st.sampled_from([0, VFE, MSE, VFE | MSE, VFE | MSE | ARI]), st.integers(0, 0xFFFF))
counts = st.one_of(st.integers(0, TOTAL + 1), st.integers(0, 0xFFFF))
pages = st.one_of(st.sampled_from(sorted(SUPPORTED)), st.integers(0, 0xFFFF_FFFF))
addresses = st.one_of(st.integers(0, 0xFFFF_FFFF), st.sampled_from([0, 0xE000_0000, 0xFFFF_FFFF]))


class Rules(RuleBasedStateMachine):
    """The oracle keeps what the guest may see; VF states are numbers that a reset makes 0."""

    @initialize()
    def start(self) -> None:
        self.driver = SriovDriver(SamplePf())
        self.resets()

    def resets(self) -> None:
        self.control, self.count, self.page = 0, 0, 1
        self.bars = [FLAGS.get(index, 0) for index in range(6)]
        self.values = [0] * TOTAL

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.close()

    @property
    def enabled(self) -> int:
        return self.count if self.control & VFE else 0

    def mask(self, index: int, value: int) -> int:
        if index == 1:
            return value & 0xFFFF_FFFF
        if index not in SIZES:
            return 0
        return value & ~(max(SIZES[index], self.page << 12) - 1) & 0xFFFF_FFFF | FLAGS[index]

    @rule(value=controls)
    def write_control(self, value: int) -> None:
        before = self.enabled
        self.driver.put(SriovRegisters.CONTROL, value)
        hierarchy = self.control & ARI if self.control & VFE else value & ARI
        self.control = value & (VFE | MSE) | hierarchy
        for vf in range(self.enabled, before):
            self.values[vf] = 0
        if not before:
            self.values = [0] * TOTAL

    @rule(value=counts)
    def write_num_vfs(self, value: int) -> None:
        self.driver.put(SriovRegisters.NUM_VFS, value)
        if not self.control & VFE and value <= TOTAL:
            self.count = value

    @rule(value=pages)
    def write_page_size(self, value: int) -> None:
        self.driver.put(SriovRegisters.SYSTEM_PAGE_SIZE, value)
        if not self.control & VFE and value in SUPPORTED:
            self.page = value
            self.bars = [self.mask(index, bar) for index, bar in enumerate(self.bars)]

    @rule(index=st.integers(0, 5), value=addresses)
    def write_bar(self, index: int, value: int) -> None:
        self.driver.put(SriovRegisters.VF_BAR, value, index)
        self.bars[index] = self.mask(index, value)

    @rule(offset=st.integers(4, 0x3F), value=st.integers(0, 0xFF))
    def write_a_constant(self, offset: int, value: int) -> None:
        writable = {0x8, 0x9, 0x10, 0x11, *range(0x20, 0x3C)}
        if offset not in writable:
            with self.driver.device.lock:
                self.driver.device.config.write(self.driver.offset + offset, 1, value)

    @rule(vf=st.integers(0, TOTAL - 1), value=st.integers(1, 0xFFFF))
    def use_a_vf(self, vf: int, value: int) -> None:
        region = self.driver.device.vfs.all[vf].regions[0]
        assert region is not None
        region.write(0, 4, value)
        if vf < self.enabled and self.control & MSE:
            self.values[vf] = value

    @rule(kind=st.sampled_from(ResetKind))
    def reset(self, kind: ResetKind) -> None:
        self.driver.device.reset(kind)
        self.resets()

    @rule(vf=st.integers(0, TOTAL - 1))
    def reset_a_vf(self, vf: int) -> None:
        self.driver.device.vfs.all[vf].reset(ResetKind.FLR)
        self.values[vf] = 0

    @rule()
    def move_to_another(self) -> None:
        other = SriovDriver(SamplePf())
        other.device.load(self.driver.device.save())
        self.driver.close()
        self.driver = other

    @invariant()
    def registers_are_the_models(self) -> None:
        if not hasattr(self, "driver"):
            return
        get = self.driver.get
        assert get(SriovRegisters.CONTROL) == self.control
        assert get(SriovRegisters.NUM_VFS) == self.count
        assert get(SriovRegisters.SYSTEM_PAGE_SIZE) == self.page
        assert [get(SriovRegisters.VF_BAR, index) for index in range(6)] == self.bars
        assert (get(SriovRegisters.TOTAL_VFS), get(SriovRegisters.INITIAL_VFS)) == (TOTAL, TOTAL)

    @invariant()
    def vfs_are_where_the_model_has_them(self) -> None:
        if not hasattr(self, "driver"):
            return
        vfs = self.driver.device.vfs
        assert [vf.present for vf in vfs.all] == [number < self.enabled for number in range(TOTAL)]
        for vf in vfs.all:
            alive = vf.number < self.enabled
            reached = alive and bool(self.control & MSE)
            assert (vfs.function_at(FIRST + vf.number * STRIDE) is vf) == alive
            assert vf.memory_enabled == reached
            assert int(vf.bar0.VALUE) == self.values[vf.number]
            for bar, size in SIZES.items():
                start = self.bars[bar] & ~0xF | (self.bars[1] << 32 if bar == 0 else 0)
                stride = max(size, self.page << 12)
                expected = start + vf.number * stride if reached and start else None
                assert vfs.address_of(vf.number, bar) == expected


Rules.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestSriov = Rules.TestCase
