"""A guest's side, the mediator, and hardware behind a fake VFIO: vfio-user end to end."""

import mmap
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.vfio import VfioFunction, open_function
from iolane.carriers.vfio.mediator import Mediator
from iolane.carriers.vfio_user import VfioUserClient
from iolane.carriers.vfio_user.channel import VfioUserError
from iolane.carriers.vfio_user.protocol import DeviceFlag, Feature, IrqAction, IrqFlag, RegionFlag
from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptIndex
from iolane.model.region import Area, RegionIndex
from iolane.model.registers import Register32
from iolane.model.trace import DROP, RegisterAccess, TraceLevel
from iolane.model.trace.recorded import read_recording
from iolane.model.trace.recording import Recorder
from iolane.model.trace.replay import Replay
from iolane.testing.fake_vfio import FakeFunction, FakeKernel
from tests.unit.carriers.vfio.hardware import ADDRESS, WINDOW, Card, CardRegisters, Command

PAGE = 4096
MSIX = InterruptIndex.MSIX


def came(fd: int, timeout: float = 5.0) -> bool:
    """Wait for an interrupt, and take it."""
    if not select.select([fd], [], [], timeout)[0]:
        return False
    return os.eventfd_read(fd) > 0


def silent(fd: int) -> bool:
    return not select.select([fd], [], [], 0)[0]


@pytest.fixture
def mediator(function: VfioFunction, tmp_path: Path) -> Iterator[Mediator]:
    with Mediator(function, tmp_path / "socket", maps={0: CardRegisters}) as mediator:
        yield mediator


@pytest.fixture
def client(mediator: Mediator) -> Iterator[VfioUserClient]:
    with VfioUserClient(mediator.path) as client:
        client.negotiate()
        client.config_write(4, 2, 0x6)
        yield client
    assert mediator.server is not None
    assert mediator.server.wait_idle(5)


@pytest.fixture
def guest(client: VfioUserClient) -> Iterator[mmap.mmap]:
    """Memory of the guest at 0x10000."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 16 * PAGE)
    client.dma_map(0x10000, 16 * PAGE, fd=fd)
    memory = mmap.mmap(fd, 16 * PAGE)
    os.close(fd)
    yield memory
    memory.close()


# What QEMU sees.


def test_a_normal_device(client: VfioUserClient) -> None:
    info = client.device_info()
    assert info.flags == DeviceFlag.RESET | DeviceFlag.PCI
    assert client.config_read(0, 4) == 0xCA4D_1234
    assert client.config_read(0x10, 4) & ~0xF == 0
    assert client.irq_info(MSIX).count == 8
    assert client.irq_info(InterruptIndex.INTX).flags & IrqFlag.AUTOMASKED
    assert client.irq_info(InterruptIndex.REQUEST).count == 1
    assert client.region_info(RegionIndex.VGA).size == 0


def test_what_is_not_traced_is_mapped_straight_through(client: VfioUserClient, fake: FakeFunction) -> None:
    """The descriptor is the device's own, with the region's offset."""
    info = client.region_info(0)
    assert info.size == 0x4000
    assert info.areas == (WINDOW,)
    mapped = mmap.mmap(info.fd, WINDOW.size, offset=info.offset + WINDOW.offset)
    os.close(info.fd)
    mapped[:4] = b"mine"
    assert fake.memory(0, WINDOW)[:4] == b"mine"


def test_pages_with_traced_registers_are_not(kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.add(FakeFunction(ADDRESS, Card(), 7, mappable={0: [Area(0, 0x4000)]}))
    with open_function(ADDRESS, host=kernel, kernel=kernel) as function:
        for trap, expected in (
            ("*", (Area(0x1000, 0x3000),)),
            ("bar0.SLOT[1]", (Area(0x1000, 0x3000),)),
            ("bar0.NOTHING", (Area(0, 0x4000),)),
            (None, (Area(0, 0x4000),)),
        ):
            mediator = Mediator(function, tmp_path / "s", maps={0: CardRegisters}, trap=trap)
            with mediator, VfioUserClient(mediator.path) as client:
                client.negotiate()
                info = client.region_info(0)
                assert info.areas == expected
                os.close(info.fd)


def test_the_msix_table_is_never_mapped(kernel: FakeKernel, tmp_path: Path) -> None:
    """There are the addresses and numbers of the host's interrupts."""
    card = Card()
    table = card.interrupts.msix
    assert table is not None
    bar = table.bar  # type: ignore[attr-defined]
    region = card.regions[bar]
    assert region is not None
    kernel.add(FakeFunction(ADDRESS, card, 7, mappable={bar: [Area(0, region.size)]}))
    with open_function(ADDRESS, host=kernel, kernel=kernel) as function:
        mediator = Mediator(function, tmp_path / "s")
        with mediator, VfioUserClient(mediator.path) as client:
            client.negotiate()
            info = client.region_info(bar)
            assert not info.flags & RegionFlag.MMAP


# Accesses.


def test_trapped_accesses_reach_the_hardware(client: VfioUserClient, fake: FakeFunction) -> None:
    assert client.read(0, 0, 4) == 0x10AD_1E55
    client.write(0, 0x18, 2, 0x1234)
    client.write(0, 0x1A, 1, 0x56, posted=True)
    assert client.read(0, 0x18, 4) == 0x56_1234
    assert isinstance(fake.device, Card)
    assert fake.device.bar0.SMALL == 0x1234
    client.write_bytes(0, 0x10, bytes(range(8)))
    assert client.read_bytes(0, 0x10, 8) == bytes(range(8))
    assert client.read(0, 0x11, 2) == 0x201  # not aligned


def test_a_function_that_does_not_answer(client: VfioUserClient, mediator: Mediator) -> None:
    """All ones, as on a bus without it."""
    client.config_write(4, 2, 0)
    assert client.read(0, 0, 4) == 0xFFFF_FFFF
    client.write(0, 0x18, 2, 0x1234)
    assert mediator.device.describe()["unanswered"] == 2
    client.config_write(4, 2, 0x6)
    assert client.read(0, 0, 4) == 0x10AD_1E55
    assert client.read(0, 0x18, 2) == 0


def test_traced_by_name(client: VfioUserClient, mediator: Mediator) -> None:
    mediator.tracer.set(TraceLevel.FIELDS)
    client.write(0, 4, 4, Command.make(VECTOR=3))
    client.read(0, 0x48, 4)
    client.config_read(4, 2)
    told = [event for event in mediator.tracer.recent if isinstance(event, RegisterAccess)]
    assert [event.register for event in told] == ["bar0.COMMAND", "bar0.SLOT[2]", "config.COMMAND"]
    assert told[0].fields["VECTOR"] == 3
    assert told[0].time_ns


def test_hooks(client: VfioUserClient, mediator: Mediator, fake: FakeFunction) -> None:
    """Rewrite a read, drop a write, inject an interrupt."""

    def hook(access: RegisterAccess) -> object:
        if access.register == "bar0.ID":
            return access.value ^ 1
        if access.register == "bar0.SLOT[0]":
            mediator.device.inject(MSIX, 2)
            return DROP
        return None

    (fd,) = client.connect_irqs(MSIX, 1, start=2)
    mediator.tracer.set(TraceLevel.HOOK, hook=hook)  # type: ignore[arg-type]
    assert client.read(0, 0, 4) == 0x10AD_1E54
    client.write(0, 0x40, 4, 5)
    assert came(fd)
    mediator.tracer.off()
    assert client.read(0, 0, 4) == 0x10AD_1E55
    assert client.read(0, 0x40, 4) == 0
    os.close(fd)


# DMA.


def test_dma_is_direct(client: VfioUserClient, guest: mmap.mmap, function: VfioFunction) -> None:
    """The guest's file is mapped here, and from here into the IOMMU."""
    assert [item[:2] for item in function.space.maps] == [(0x10000, 16 * PAGE)]
    client.write_bytes(0, 8, (0x10010).to_bytes(8, "little"))
    client.write_bytes(0, 16, b"fromcard")
    client.write(0, 4, 4, Command.make(WRITE=1))
    assert guest[0x10:0x18] == b"fromcard"
    guest[0x10:0x18] = b"toocard!"
    client.write(0, 4, 4, Command.make(READ=1))
    assert client.read_bytes(0, 16, 8) == b"toocard!"
    client.dma_unmap(0x10000, 16 * PAGE)
    assert function.space.maps == []
    client.write(0, 4, 4, Command.make(READ=1))
    assert client.read(0, 0x1C, 4) == 1


def test_memory_without_a_file_is_out_of_reach(
    client: VfioUserClient, mediator: Mediator, function: VfioFunction
) -> None:
    """QEMU maps ROMs so, and the BARs of other devices."""
    client.dma_map(0x80000, PAGE, memory=bytearray(PAGE))
    assert function.space.maps == []
    assert mediator.device.describe()["maps_out_of_reach"] == 1
    client.dma_unmap(0x80000, PAGE)
    assert mediator.device.describe()["maps_out_of_reach"] == 0


def test_maps_that_the_iommu_refuses(
    client: VfioUserClient, kernel: FakeKernel, function: VfioFunction
) -> None:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 16 * PAGE)
    with pytest.raises(VfioUserError):
        client.dma_map(0xFEE00000, PAGE, fd=fd)
    domain = kernel.containers[-1].domain
    assert domain is not None
    domain.lock_limit = PAGE
    with pytest.raises(VfioUserError):
        client.dma_map(0, 2 * PAGE, fd=fd)
    client.dma_map(0, PAGE, fd=fd)
    assert [item[:2] for item in function.space.maps] == [(0, PAGE)]
    os.close(fd)


# Interrupts.


def test_interrupts_are_direct(client: VfioUserClient, fake: FakeFunction) -> None:
    """As QEMU does it: first enabled without an eventfd, then vector by vector."""
    client.set_irqs(MSIX, fds=[], count=1)
    assert fake.enabled == {2: 8}
    first = client.connect_irqs(MSIX, 1)
    others = client.connect_irqs(MSIX, 3, start=5)
    client.write(0, 4, 4, Command.make(RAISE=1, VECTOR=6))
    assert came(others[1])
    client.write(0, 4, 4, Command.make(RAISE=1, VECTOR=0))
    assert came(first[0])
    assert silent(others[0])
    client.set_irqs(MSIX, count=0)
    assert fake.enabled == {}
    for fd in (*first, *others):
        os.close(fd)


def test_a_host_with_few_vectors(client: VfioUserClient, fake: FakeFunction) -> None:
    """Then as many as are needed are enabled, and enabled anew when there are more."""
    fake.vectors_available = 3
    fds = client.connect_irqs(MSIX, 2)
    assert fake.enabled == {2: 2}
    fds += client.connect_irqs(MSIX, 1, start=2)
    assert fake.enabled == {2: 3}
    for vector, fd in enumerate(fds):
        client.write(0, 4, 4, Command.make(RAISE=1, VECTOR=vector))
        assert came(fd)
    with pytest.raises(VfioUserError):
        client.connect_irqs(MSIX, 1, start=3)
    for fd in fds:
        os.close(fd)


def test_intx(client: VfioUserClient, fake: FakeFunction) -> None:
    (fd,) = client.connect_irqs(InterruptIndex.INTX, 1)
    fake.device.interrupts.intx.set_level(True)
    assert came(fd)
    client.set_irqs(InterruptIndex.INTX, action=IrqAction.UNMASK, count=1)
    assert came(fd)
    resample = os.eventfd(0, os.EFD_NONBLOCK)
    client.set_irqs(InterruptIndex.INTX, action=IrqAction.UNMASK, fds=[resample])
    os.eventfd_write(resample, 1)
    fake.resample()
    assert came(fd)
    os.close(fd)
    os.close(resample)


def test_error_and_request(client: VfioUserClient, fake: FakeFunction) -> None:
    (fd,) = client.connect_irqs(InterruptIndex.REQUEST, 1)
    fake.notify(4)  # type: ignore[arg-type]
    assert came(fd)
    os.close(fd)


# Reset and the end.


def test_reset(client: VfioUserClient, fake: FakeFunction, guest: mmap.mmap) -> None:
    client.write(0, 0x18, 2, 0x1234)
    client.reset()
    assert fake.resets == 1
    assert client.read(0, 0x18, 2) == 0
    offset = next(item.offset for item in fake.device.config.capabilities if item.id == 0x10) + 8
    client.config_write(offset, 2, 0x8000)
    assert fake.resets == 2


def test_the_guest_goes(mediator: Mediator, fake: FakeFunction, function: VfioFunction) -> None:
    """Its memory is not reached any more, no interrupt comes, and the next guest finds it reset."""
    with VfioUserClient(mediator.path) as client:
        client.negotiate()
        client.config_write(4, 2, 0x6)
        fd = os.memfd_create("guest")
        os.ftruncate(fd, PAGE)
        client.dma_map(0, PAGE, fd=fd)
        os.close(fd)
        (eventfd,) = client.connect_irqs(MSIX, 1)
        client.write(0, 0x18, 2, 0x1234)
    assert mediator.server is not None
    assert mediator.server.wait_idle(5)
    assert function.space.maps == []
    assert fake.enabled == {}
    assert fake.resets == 1
    assert not fake.device.config.header.COMMAND.BUS_MASTER
    with VfioUserClient(mediator.path) as client:
        client.negotiate()
        client.config_write(4, 2, 0x6)
        assert client.read(0, 0x18, 2) == 0
    os.close(eventfd)


def test_no_migration(client: VfioUserClient) -> None:
    """The state of hardware can't be carried away: not offered, so nobody loses it."""
    for feature in (Feature.MIGRATION, Feature.MIG_DEVICE_STATE, Feature.DMA_LOGGING_START):
        assert not client.probe_feature(feature)


def test_maps_that_do_not_fit(function: VfioFunction, tmp_path: Path) -> None:
    with pytest.raises(IolaneError, match="no BAR 3"):
        Mediator(function, tmp_path / "s", maps={3: CardRegisters})


# Recording.


def test_a_recorded_session(function: VfioFunction, fake: FakeFunction, tmp_path: Path) -> None:
    """Interrupts then pass through here, in order with the accesses; a model that is the card differs in
    nothing, one that is not is caught.
    """
    path = tmp_path / "session.jsonl"
    with Recorder(path) as recorder:
        mediator = Mediator(function, tmp_path / "s", maps={0: CardRegisters}, recorder=recorder)
        with mediator, VfioUserClient(mediator.path) as client:
            client.negotiate()
            client.config_write(4, 2, 0x6)
            client.reset()
            fds = client.connect_irqs(MSIX, 2)
            assert client.read(0, 0, 4) == 0x10AD_1E55
            client.write(0, 4, 4, Command.make(RAISE=1, VECTOR=1))
            assert came(fds[1])
            client.write(0, 0x40, 4, 7)
            assert client.read(0, 0x40, 4) == 7
            client.set_irqs(MSIX, count=0)
            for fd in fds:
                os.close(fd)
    recording = read_recording(path)
    assert recording.complete
    on_bars = [event for event in recording.events if event.region != "config"]
    told = [(event.op, event.register or event.kind) for event in on_bars]
    assert told[:6] == [
        ("reset", ""),
        ("read", "bar0.ID"),
        ("write", "bar0.COMMAND"),
        ("interrupt", "msix"),
        ("write", "bar0.SLOT[0]"),
        ("read", "bar0.SLOT[0]"),
    ]
    assert Replay(recording, Card()).run().first is None

    class Broken(Card):
        """Forgets what is in a slot."""

        @Card.bar0.on_write(CardRegisters.SLOT)
        def forget(self, index: int, value: Register32) -> None:
            self.bar0.SLOT[index] = 0

    first = Replay(recording, Broken()).run().first
    assert first is not None
    assert (first.place, first.recorded, first.replayed) == ("bar0.SLOT[0]", "0x7", "0x0")
