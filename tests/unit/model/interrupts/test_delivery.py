"""Every raised vector is delivered exactly once, whatever the guest does between (PCI Express Base 6.0,
6.1.4).
"""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptIndex, MsiMessage, TableOwner
from iolane.model.pci import Intx, Msi, MsiCapability, Msix, MsixCapability, PciDevice
from iolane.model.region import Region

VECTORS = 70
COMMAND, BUS_MASTER, INTX_DISABLE = 0x04, 1 << 2, 1 << 10


class Many(PciDevice):
    msix = Msix(VECTORS)


class Few(PciDevice):
    msi = Msi(8)


class Pin(PciDevice):
    intx = Intx()


class MsixDelivery(RuleBasedStateMachine):
    """MSI-X against a set of pending vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Many()
        self.delivered: list[int] = []
        self.expected: list[int] = []
        self.pending: set[int] = set()
        self.unmasked: set[int] = set()
        self.enabled = self.function_mask = self.bus_master = False
        self.device.interrupts.deliver = self.deliver
        capability = self.device.interrupts.msix
        assert isinstance(capability, MsixCapability)
        self.capability = capability
        table = self.device.regions[capability.bar]
        assert table is not None
        self.table: Region = table

    def deliver(self, message: MsiMessage) -> None:
        assert message.data == message.vector + 1000 or message.data == 0
        self.delivered.append(message.vector)

    @initialize()
    def fill_table(self) -> None:
        for vector in range(VECTORS):
            self.table.write(16 * vector + 8, 4, vector + 1000)

    def can_send(self, vector: int) -> bool:
        return self.bus_master and self.enabled and not self.function_mask and vector in self.unmasked

    def settle(self) -> None:
        ready = sorted(vector for vector in self.pending if self.can_send(vector))
        self.pending.difference_update(ready)
        self.expected += ready

    @rule(vector=st.integers(0, VECTORS - 1))
    def raise_vector(self, vector: int) -> None:
        if self.can_send(vector):
            self.expected.append(vector)
        else:
            self.pending.add(vector)
        self.device.msix.raise_vector(vector)

    @rule(vector=st.integers(0, VECTORS - 1), masked=st.booleans())
    def mask(self, vector: int, masked: bool) -> None:
        (self.unmasked.discard if masked else self.unmasked.add)(vector)
        self.table.write(16 * vector + 12, 4, int(masked))
        self.settle()

    @rule(enabled=st.booleans(), function_mask=st.booleans(), byte=st.booleans())
    def control(self, enabled: bool, function_mask: bool, byte: bool) -> None:
        self.enabled, self.function_mask = enabled, function_mask
        value = enabled << 15 | function_mask << 14
        if byte:
            self.device.config.write(self.capability.offset + 3, 1, value >> 8)
        else:
            self.device.config.write(self.capability.offset + 2, 2, value)
        self.settle()

    @rule(bus_master=st.booleans())
    def command(self, bus_master: bool) -> None:
        self.bus_master = bus_master
        self.device.config.write(COMMAND, 2, BUS_MASTER if bus_master else 0)
        self.settle()

    @rule()
    def save_and_load(self) -> None:
        self.device.load(self.device.save())

    @rule()
    def reset(self) -> None:
        self.device.reset()
        self.pending.clear()
        self.unmasked.clear()
        self.enabled = self.function_mask = self.bus_master = False

    @invariant()
    def delivered_is_expected(self) -> None:
        assert self.delivered == self.expected
        shown = {vector for vector in range(VECTORS) if self.capability.is_pending(vector)}
        assert shown == self.pending, "the pending bit array shows what waits"


class MsiDelivery(RuleBasedStateMachine):
    """MSI with per-vector masks; vectors beyond the granted ones fold onto those."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Few()
        self.delivered: list[int] = []
        self.expected: list[int] = []
        self.pending: set[int] = set()
        self.mask_bits = self.granted_log = 0
        self.enabled = self.bus_master = False
        self.device.interrupts.deliver = lambda message: self.delivered.append(message.data)
        capability = self.device.interrupts.msi
        assert isinstance(capability, MsiCapability)
        self.offset = capability.offset
        self.capability = capability
        self.device.config.write(self.offset + 0xC, 2, 0x40)

    def folded(self, vector: int) -> int:
        return vector % min(8, 1 << self.granted_log)

    def can_send(self, vector: int) -> bool:
        return self.bus_master and self.enabled and not self.mask_bits >> self.folded(vector) & 1

    def settle(self) -> None:
        for vector in sorted(self.pending):
            if self.can_send(vector):
                self.pending.discard(vector)
                self.expected.append(0x40 | self.folded(vector))

    @rule(vector=st.integers(0, 7))
    def raise_vector(self, vector: int) -> None:
        if self.can_send(vector):
            self.expected.append(0x40 | self.folded(vector))
        else:
            self.pending.add(vector)
        self.device.msi.raise_vector(vector)

    @rule(bits=st.integers(0, 0xFF))
    def mask(self, bits: int) -> None:
        self.mask_bits = bits
        self.device.config.write(self.offset + 0x10, 4, bits)
        self.settle()

    @rule(enabled=st.booleans(), granted=st.integers(0, 7))
    def control(self, enabled: bool, granted: int) -> None:
        self.enabled, self.granted_log = enabled, granted
        self.device.config.write(self.offset + 2, 2, int(enabled) | granted << 4)
        self.settle()

    @rule(bus_master=st.booleans())
    def command(self, bus_master: bool) -> None:
        self.bus_master = bus_master
        self.device.config.write(COMMAND, 2, BUS_MASTER if bus_master else 0)
        self.settle()

    @rule()
    def reset(self) -> None:
        self.device.reset()
        self.pending.clear()
        self.mask_bits = self.granted_log = 0
        self.enabled = self.bus_master = False
        self.device.config.write(self.offset + 0xC, 2, 0x40)

    @invariant()
    def delivered_is_expected(self) -> None:
        assert self.delivered == self.expected
        assert self.device.config.read(self.offset + 0x14, 4) == sum(1 << vector for vector in self.pending)


class CarrierOwnsTable(RuleBasedStateMachine):
    """vfio-user: the client keeps table and masks; a vector with an eventfd is signalled, another waits for
    one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device = Many()
        self.group = self.device.interrupts.group(InterruptIndex.MSIX)
        self.device.interrupts.table_owner = TableOwner.CARRIER
        self.eventfds: dict[int, int] = {}
        self.counted = dict.fromkeys(range(4), 0)
        self.pending: set[int] = set()
        self.bus_master = False

    def settle(self) -> None:
        for vector in [item for item in self.pending if self.bus_master and item in self.eventfds]:
            self.pending.discard(vector)
            self.counted[vector] += 1

    @rule(vector=st.integers(0, 3))
    def raise_vector(self, vector: int) -> None:
        self.pending.add(vector)
        self.device.msix.raise_vector(vector)
        self.settle()

    @rule(vector=st.integers(0, 3))
    def connect(self, vector: int) -> None:
        self.drain(vector)
        self.eventfds[vector] = os.eventfd(0, os.EFD_NONBLOCK)
        self.group.connect(vector, os.dup(self.eventfds[vector]))
        self.settle()

    @rule(vector=st.integers(0, 3))
    def disconnect(self, vector: int) -> None:
        self.drain(vector)
        self.group.connect(vector, None)

    @rule(bus_master=st.booleans())
    def command(self, bus_master: bool) -> None:
        self.bus_master = bus_master
        self.device.config.write(COMMAND, 2, BUS_MASTER if bus_master else 0)
        self.settle()

    @precondition(lambda self: self.pending)
    @rule()
    def reset(self) -> None:
        self.device.reset()
        self.pending.clear()
        self.bus_master = False

    def drain(self, vector: int) -> None:
        fd = self.eventfds.pop(vector, None)
        if fd is None:
            return
        with suppress(BlockingIOError):
            self.counted[vector] -= os.eventfd_read(fd)
        os.close(fd)

    @invariant()
    def signalled_is_expected(self) -> None:
        for vector, fd in self.eventfds.items():
            with suppress(BlockingIOError):
                self.counted[vector] -= os.eventfd_read(fd)
        assert not any(self.counted.values())

    def teardown(self) -> None:
        for vector in list(self.eventfds):
            self.drain(vector)
        self.device.close()


MANY = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMsixDelivery = MsixDelivery.TestCase
TestMsixDelivery.settings = MANY
TestMsiDelivery = MsiDelivery.TestCase
TestMsiDelivery.settings = MANY
TestCarrierOwnsTable = CarrierOwnsTable.TestCase
TestCarrierOwnsTable.settings = MANY


def test_intx_is_a_level_told_again_after_unmask() -> None:
    """VFIO_IRQ_INFO_AUTOMASKED: signalling masks; unmasking signals again while the level stands."""
    device = Pin()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    group = device.interrupts.group(InterruptIndex.INTX)
    group.connect(0, os.dup(fd))
    device.intx.set_level(True)
    device.intx.set_level(True)
    assert os.eventfd_read(fd) == 1
    assert device.config.read(6, 2) & 1 << 3
    group.unmask(0)
    assert os.eventfd_read(fd) == 1, "the level still stands"
    device.intx.set_level(False)
    group.unmask(0)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)
    os.close(fd)
    device.close()


def test_intx_disable_holds_the_pin_and_not_the_status_bit() -> None:
    """PCI Express Base 6.0, 7.5.1.1.3 and 7.5.1.1.4."""
    device = Pin()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    device.interrupts.group(InterruptIndex.INTX).connect(0, os.dup(fd))
    device.config.write(COMMAND, 2, INTX_DISABLE)
    device.intx.set_level(True)
    assert device.config.read(6, 2) & 1 << 3
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)
    device.config.write(COMMAND, 2, 0)
    assert os.eventfd_read(fd) == 1
    os.close(fd)
    device.close()


def test_a_carrier_of_lines_is_told_of_each_change() -> None:
    device = Pin()
    wire: list[bool] = []
    device.intx.changed = wire.append
    device.intx.set_level(True)
    device.config.write(COMMAND, 2, INTX_DISABLE)
    device.config.write(COMMAND, 2, 0)
    device.reset()
    assert wire == [True, False, True, False]


def test_an_interrupt_needs_an_eventfd_and_never_blocks_on_it() -> None:
    """The client names the fd: a pipe is refused, and a full counter does not stop the device."""
    device = Many()
    group = device.interrupts.group(InterruptIndex.MSIX)
    reader, writer = os.pipe()
    with pytest.raises(IolaneError, match="eventfd"):
        group.connect(0, writer)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(writer)
    os.close(reader)
    with pytest.raises(IolaneError, match="no vector"):
        group.connect(VECTORS, os.eventfd(0))
    full = os.eventfd(0)
    os.eventfd_write(full, 2**64 - 2)
    group.connect(0, os.dup(full))
    assert group.trigger(0)
    os.close(full)
    device.close()


def test_a_vector_the_device_does_not_have_is_the_devices_error() -> None:
    with pytest.raises(ValueError, match="the device has 70"):
        Many().msix.raise_vector(VECTORS)
