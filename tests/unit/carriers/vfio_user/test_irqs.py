"""IRQ info, SET_IRQS in all its forms, and what QEMU does with them."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator

import pytest

from iolane.carriers.vfio_user import Rejection, VfioUserClient, VfioUserError
from iolane.carriers.vfio_user.protocol import IrqAction, IrqData, IrqFlag
from iolane.model.interrupts import InterruptIndex
from tests.unit.carriers.vfio_user.sample import RawClient, Sample, memory_fd, open_fds

INTX, MSI, MSIX = InterruptIndex.INTX, InterruptIndex.MSI, InterruptIndex.MSIX
TRIGGER = IrqAction.TRIGGER


def irq_set(
    flags: int, index: int, start: int, count: int, data: bytes = b"", argsz: int | None = None
) -> bytes:
    size = 20 + len(data) if argsz is None else argsz
    return struct.pack("<IIIII", size, flags, index, start, count) + data


def signalled(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.fixture
def eventfds() -> Iterator[Callable[[int], list[int]]]:
    made: list[int] = []

    def make(count: int) -> list[int]:
        new = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        made.extend(new)
        return new

    yield make
    for fd in made:
        os.close(fd)


def test_what_there_is(client: VfioUserClient) -> None:
    intx = client.irq_info(INTX)
    assert intx.flags == IrqFlag.EVENTFD | IrqFlag.MASKABLE | IrqFlag.AUTOMASKED
    assert intx.count == 1
    assert client.irq_info(MSIX).count == 40
    assert client.irq_info(MSIX).flags == IrqFlag.EVENTFD
    assert client.irq_info(MSI).count == 4


def test_msix_as_qemu_enables_it(
    client: VfioUserClient, device: Sample, eventfds: Callable[[int], list[int]]
) -> None:
    """One vector without a descriptor, everything off, then chunks of the set, again and again."""
    client.set_irqs(MSIX, fds=eventfds(1))
    device.msix.raise_vector(0)  # from its first signal on a device holds a descriptor for that
    client.set_irqs(MSIX, fds=[], count=1)
    client.set_irqs(MSIX, count=0)
    before = open_fds()
    for _ in range(3):
        fds = eventfds(40)
        client.set_irqs(MSIX, fds=fds)
        for vector in (0, 15, 16, 39):
            device.msix.raise_vector(vector)
            assert signalled(fds[vector]) == 1
    assert open_fds() == before + 3 * 40 + 40  # ours, and one copy of each vector's last
    client.set_irqs(MSIX, count=0)
    assert open_fds() == before + 3 * 40


def test_vectors_can_be_connected_one_by_one(
    client: VfioUserClient, device: Sample, eventfds: Callable[[int], list[int]]
) -> None:
    first, second = eventfds(2)
    client.set_irqs(MSIX, start=7, fds=[first])
    client.set_irqs(MSIX, start=9, fds=[second])
    device.msix.raise_vector(9)
    assert (signalled(first), signalled(second)) == (0, 1)
    client.set_irqs(MSIX, start=9, fds=[])
    device.msix.raise_vector(9)
    assert signalled(second) == 0


def test_a_vector_raised_before_its_eventfd_came_fires_once(
    client: VfioUserClient, device: Sample, eventfds: Callable[[int], list[int]]
) -> None:
    (other, late) = eventfds(2)
    client.set_irqs(MSIX, start=0, fds=[other])
    device.msix.raise_vector(3)
    client.set_irqs(MSIX, start=3, fds=[late])
    assert signalled(late) == 1


def test_the_client_may_trigger(client: VfioUserClient, eventfds: Callable[[int], list[int]]) -> None:
    fds = eventfds(3)
    client.set_irqs(MSI, fds=fds)
    client.set_irqs(MSI, start=1, count=2)
    assert [signalled(fd) for fd in fds] == [0, 1, 1]
    client.set_irqs(MSI, booleans=b"\1\0\1")
    assert [signalled(fd) for fd in fds] == [1, 0, 1]


def test_intx_masks_itself_and_is_raised_again_when_unmasked(
    client: VfioUserClient, device: Sample, eventfds: Callable[[int], list[int]]
) -> None:
    (fd,) = eventfds(1)
    client.set_irqs(INTX, fds=[fd])
    with device.lock:
        device.interrupts.intx.set_level(True)
    assert signalled(fd) == 1
    client.set_irqs(INTX, action=IrqAction.UNMASK, count=1)
    assert signalled(fd) == 1  # still asserted
    with device.lock:
        device.interrupts.intx.set_level(False)
    client.set_irqs(INTX, action=IrqAction.UNMASK, booleans=b"\1")
    assert signalled(fd) == 0
    client.set_irqs(INTX, action=IrqAction.MASK, count=1)
    with device.lock:
        device.interrupts.intx.set_level(True)
    assert signalled(fd) == 0
    client.set_irqs(INTX, action=IrqAction.UNMASK, count=1)
    assert signalled(fd) == 1


def test_intx_is_unmasked_by_an_eventfd(
    client: VfioUserClient, device: Sample, eventfds: Callable[[int], list[int]]
) -> None:
    """QEMU gives one that KVM signals at the guest's end of interrupt (KVM_IRQFD_FLAG_RESAMPLE)."""
    fd, resample = eventfds(2)

    def came(seconds: float) -> bool:
        return bool(select.select([fd], [], [], seconds)[0]) and signalled(fd) == 1

    client.set_irqs(INTX, fds=[fd])
    client.set_irqs(INTX, action=IrqAction.UNMASK, fds=[resample])
    with device.lock:
        device.interrupts.intx.set_level(True)
    assert signalled(fd) == 1
    os.eventfd_write(resample, 1)
    assert came(10)  # still asserted
    with device.lock:
        device.interrupts.intx.set_level(False)
    os.eventfd_write(resample, 1)
    assert not came(0.1)
    for _ in range(50):
        with device.lock:
            device.interrupts.intx.set_level(True)
        assert came(10)
        with device.lock:
            device.interrupts.intx.set_level(False)
        os.eventfd_write(resample, 1)
    client.set_irqs(INTX, count=0)
    client.set_irqs(INTX, fds=[fd])
    with device.lock:
        device.interrupts.intx.set_level(True)
    assert signalled(fd) == 1
    os.eventfd_write(resample, 1)
    assert not came(0.1)  # disabled, and the eventfd with it


def test_eventfds_that_mask_are_refused(client: VfioUserClient, eventfds: Callable[[int], list[int]]) -> None:
    for kind, action in ((INTX, IrqAction.MASK), (MSI, IrqAction.UNMASK)):
        with pytest.raises(VfioUserError) as caught:
            client.set_irqs(kind, action=action, fds=eventfds(1))
        assert caught.value.errno == Rejection.IRQ_ACTION.error
    with open(os.devnull) as file, pytest.raises(VfioUserError) as caught:
        client.set_irqs(INTX, action=IrqAction.UNMASK, fds=[file.fileno()])
    assert caught.value.errno == Rejection.IRQ_NOT_EVENTFD.error


EVENT = IrqData.EVENTFD | TRIGGER
NONE = IrqData.NONE | TRIGGER
BOOL = IrqData.BOOL | TRIGGER


@pytest.mark.parametrize(
    ("payload", "fds", "rejection"),
    [
        (irq_set(NONE, 5, 0, 1), 0, Rejection.IRQ_INDEX),
        (irq_set(NONE, 0xFFFF_FFFF, 0, 1), 0, Rejection.IRQ_INDEX),
        (irq_set(NONE, MSIX, 0, 41), 0, Rejection.IRQ_RANGE),
        (irq_set(NONE, MSIX, 40, 1), 0, Rejection.IRQ_RANGE),
        (irq_set(NONE, MSIX, 0xFFFF_FFFF, 2), 0, Rejection.IRQ_RANGE),
        (irq_set(EVENT, MSIX, 39, 2), 2, Rejection.IRQ_RANGE),
        (irq_set(0, MSIX, 0, 1), 0, Rejection.IRQ_FLAGS),
        (irq_set(NONE | IrqData.BOOL, MSIX, 0, 1, b"\1"), 0, Rejection.IRQ_FLAGS),
        (irq_set(NONE | IrqAction.MASK, MSIX, 0, 1), 0, Rejection.IRQ_FLAGS),
        (irq_set(NONE | 0x40, MSIX, 0, 1), 0, Rejection.IRQ_FLAGS),
        (irq_set(NONE, MSIX, 1, 0), 0, Rejection.IRQ_FLAGS),
        (irq_set(EVENT, MSIX, 0, 0), 0, Rejection.IRQ_FLAGS),
        (irq_set(BOOL, MSIX, 0, 2, b"\1"), 0, Rejection.PAYLOAD_SIZE),
        (irq_set(BOOL, MSIX, 0, 0xFFFF_FFFF, b"\1"), 0, Rejection.PAYLOAD_SIZE),
        (b"\0" * 19, 0, Rejection.PAYLOAD_SIZE),
        (irq_set(NONE, MSIX, 0, 1, argsz=19), 0, Rejection.ARGSZ),
        (irq_set(NONE, MSIX, 0, 1), 1, Rejection.FDS_UNWANTED),
        (irq_set(EVENT, MSIX, 0, 2), 1, Rejection.IRQ_FDS),
        (irq_set(EVENT, MSIX, 0, 1), 2, Rejection.IRQ_FDS),
        (irq_set(IrqData.NONE | IrqAction.MASK, MSIX, 0, 1), 0, Rejection.IRQ_ACTION),
    ],
)
def test_bad_requests_are_refused(
    raw: RawClient,
    rejected: Callable[[Rejection], int],
    eventfds: Callable[[int], list[int]],
    payload: bytes,
    fds: int,
    rejection: Rejection,
) -> None:
    given = eventfds(fds)
    before = open_fds()
    assert raw.refused(8, payload, fds=given) == rejection.error
    assert rejected(rejection) == 1
    assert open_fds() == before


def test_what_is_no_eventfd_is_refused_and_the_rest_taken_back(
    raw: RawClient, rejected: Callable[[Rejection], int], eventfds: Callable[[int], list[int]]
) -> None:
    memory = memory_fd()
    reader, writer = os.pipe()
    good = eventfds(2)
    before = open_fds()
    for bad in (memory, writer):
        raw.refused(8, irq_set(EVENT, MSIX, 0, 3), fds=[good[0], bad, good[1]])
    assert rejected(Rejection.IRQ_NOT_EVENTFD) == 2
    assert open_fds() == before
    for fd in (memory, reader, writer):
        os.close(fd)


def test_a_full_eventfd_does_not_stop_the_device(client: VfioUserClient, device: Sample) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC)  # it would block, were it not for the server
    os.eventfd_write(fd, (1 << 64) - 2)
    client.set_irqs(MSIX, fds=[fd])
    device.msix.raise_vector(0)
    assert client.read(0, 0, 4) == 0
    os.close(fd)


def test_bus_master_holds_messages_back(
    client: VfioUserClient, device: Sample, eventfds: Callable[[int], list[int]]
) -> None:
    (fd,) = eventfds(1)
    client.set_irqs(MSIX, fds=[fd])
    client.config_write(4, 2, 0x2)
    with device.lock:
        device.msix.raise_vector(0)
    assert signalled(fd) == 0
    client.config_write(4, 2, 0x6)
    assert signalled(fd) == 1
