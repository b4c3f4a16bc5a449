"""Which memory of a controller's session is recorded, seen from its registers and the guest's memory."""

import struct

import pytest

from iolane.devices.nvme.recorded_memory import NvmeMemory
from iolane.devices.nvme.structures import COMPLETION, SubmissionEntry
from iolane.model.dma import Direction, DmaSpace
from iolane.model.interrupts import InterruptIndex
from iolane.model.trace import RegisterAccess
from iolane.model.trace.recording import MemoryKick, MemoryPart, Seen

BASE = 0x10_0000
ASQ, ACQ, SQ, CQ, SHADOW, DATA, LIST = (BASE + 0x1000 * number for number in range(7))
MSIX = InterruptIndex.MSIX


class Guest:
    """Writes registers and memory as a driver does, and keeps what would be recorded."""

    def __init__(self) -> None:
        self.memory = bytearray(0x1_0000)
        self.dma = DmaSpace()
        self.dma.map(BASE, len(self.memory), buffer=self.memory)
        self.watcher = NvmeMemory()
        self.tails = {0: 0, 1: 0}
        for offset, size, value in (
            (0x24, 4, 0x000F_000F),
            (0x28, 8, ASQ),
            (0x30, 8, ACQ),
            (0x14, 4, 0x0046_0001),
        ):
            assert not self.write(offset, size, value)

    def put(self, address: int, data: bytes) -> None:
        self.memory[address - BASE : address - BASE + len(data)] = data

    def write(self, offset: int, size: int, value: int) -> list[Seen]:
        access = RegisterAccess(0, "nvme", Direction.WRITE, "bar0", offset, size, value, "", True)
        return list(self.watcher.before(access, self.dma))

    def entry(self, queue: int, **fields: int) -> None:
        values = (fields.get(name, 0) for name in SubmissionEntry._fields)
        self.put((ASQ, SQ)[queue] + 64 * self.tails[queue], struct.pack("<BBHIIIQQQ6I", *values))
        self.tails[queue] += 1

    def ring(self, queue: int) -> list[Seen]:
        return self.write(0x1000 + 8 * queue, 4, self.tails[queue])

    def submit(self, queue: int, **fields: int) -> list[Seen]:
        self.entry(queue, **fields)
        return self.ring(queue)

    def complete(self, queue: int, slot: int, cid: int) -> None:
        self.put((ACQ, CQ)[queue] + 16 * slot, COMPLETION.pack(0, 0, 0, queue, cid, 1))

    def after(self, vector: int) -> list[Seen]:
        return list(self.watcher.after(MSIX, vector, self.dma))


@pytest.fixture
def guest() -> Guest:
    """With an I/O queue pair, whose interrupts are vector 1."""
    guest = Guest()
    guest.submit(0, opcode=0x05, prp1=CQ, cdw10=15 << 16 | 1, cdw11=1 << 16 | 3)
    guest.submit(0, opcode=0x01, prp1=SQ, cdw10=15 << 16 | 1, cdw11=1 << 16 | 1)
    return guest


def places(seen: list[Seen]) -> list[tuple[str, int, int]]:
    return [(part.name, part.iova, part.length) for part in seen if isinstance(part, MemoryPart)]


def test_commands_behind_a_doorbell(guest: Guest) -> None:
    guest.entry(1, opcode=2, nsid=1, prp1=DATA)
    guest.entry(1, opcode=2, nsid=1, prp1=DATA)
    assert places(guest.ring(1)) == [("sq1", SQ, 128)]
    assert guest.ring(1) == []


def test_data_of_writes(guest: Guest) -> None:
    """512 bytes; a page and a half by PRP2; three pages by a list."""
    assert places(guest.submit(1, opcode=1, prp1=DATA)) == [("sq1", SQ, 64), ("data", DATA, 512)]
    seen = guest.submit(1, opcode=1, prp1=DATA + 0x800, prp2=LIST, cdw12=7)
    assert places(seen)[1:] == [("data", DATA + 0x800, 0x800), ("data", LIST, 0x800)]
    guest.put(LIST, struct.pack("<2Q", DATA + 0x1000, DATA + 0x3000))
    seen = guest.submit(1, opcode=1, prp1=DATA, prp2=LIST, cdw12=23)
    assert places(seen)[1:] == [
        ("data", DATA, 0x1000),
        ("PRP list", LIST, 16),
        ("data", DATA + 0x1000, 0x1000),
        ("data", DATA + 0x3000, 0x1000),
    ]


def test_scatter_gather_lists(guest: Guest) -> None:
    """A data block in the command; a segment of two (Base 4.1.2)."""
    seen = guest.submit(1, opcode=1, flags=0x40, prp1=DATA, prp2=0x2000, cdw12=15)
    assert places(seen)[1:] == [("data", DATA, 0x2000)]
    guest.put(LIST, struct.pack("<4Q", DATA, 0x1000, DATA + 0x2000, 0x1000))
    seen = guest.submit(1, opcode=1, flags=0x40, prp1=LIST, prp2=3 << 60 | 32, cdw12=15)
    assert places(seen)[1:] == [
        ("SGL segment", LIST, 32),
        ("data", DATA, 0x1000),
        ("data", DATA + 0x2000, 0x1000),
    ]
    assert places(guest.submit(1, opcode=2, flags=0x40, prp1=DATA, prp2=0x2000))[1:] == []
    seen = guest.submit(1, opcode=2, flags=0x40, prp1=LIST, prp2=3 << 60 | 32, cdw12=15)
    assert places(seen)[1:] == [("SGL segment", LIST, 32)]


def test_lists_that_describe_more_than_the_transfer(guest: Guest) -> None:
    """What the controller does not need is not recorded."""
    seen = guest.submit(1, opcode=1, flags=0x40, prp1=DATA, prp2=0x2000, cdw12=0)
    assert places(seen)[1:] == [("data", DATA, 512)]
    guest.put(LIST, struct.pack("<4Q", DATA, 0x1000, LIST, 3 << 60 | 32))
    seen = guest.submit(1, opcode=1, flags=0x40, prp1=LIST, prp2=2 << 60 | 32, cdw12=7)
    assert places(seen)[1:] == [("SGL segment", LIST, 32), ("data", DATA, 0x1000)]


def test_ranges_of_dataset_management(guest: Guest) -> None:
    """They are data to the controller, by PRPs and by lists (NVM Command Set 3.2.3)."""
    seen = guest.submit(1, opcode=9, prp1=DATA + 0xFF0, prp2=LIST, cdw10=1)
    assert places(seen)[1:] == [("ranges", DATA + 0xFF0, 16), ("ranges", LIST, 16)]
    seen = guest.submit(1, opcode=9, flags=0x40, prp1=DATA, prp2=0x1000, cdw10=1)
    assert places(seen)[1:] == [("ranges", DATA, 32)]


def test_completions_at_their_interrupt(guest: Guest) -> None:
    guest.complete(1, 0, 7)
    guest.complete(1, 1, 8)
    assert guest.after(0) == []
    assert places(guest.after(1)) == [("cq1", CQ, 32)]
    assert guest.after(1) == []
    guest.complete(0, 0, 1)
    assert places(guest.after(0)) == [("cq0", ACQ, 16)]


def test_shadow_doorbells(guest: Guest) -> None:
    """The tail counts that is in memory, and one that nobody rang for is seen at the interrupt (Base 5.8)."""
    guest.submit(0, opcode=0x7C, prp1=SHADOW, prp2=LIST)
    guest.entry(1, opcode=2, prp1=DATA)
    guest.entry(1, opcode=2, prp1=DATA)
    guest.put(SHADOW + 8, struct.pack("<I", 2))
    seen = guest.write(0x1008, 4, 1)
    assert places(seen) == [("shadow doorbells", SHADOW, 4096), ("sq1", SQ, 128)]
    guest.entry(1, opcode=2, prp1=DATA)
    guest.put(SHADOW + 8, struct.pack("<I", 3))
    guest.complete(1, 0, 0)
    seen = guest.after(1)
    assert places(seen) == [
        ("shadow doorbells", SHADOW, 4096),
        ("sq1", SQ + 128, 64),
        ("cq1", CQ, 16),
    ]
    assert MemoryKick("bar0", 0x1008, 4, 3, "bar0.DOORBELL[2]") in seen


def test_a_hostile_guest(guest: Guest) -> None:
    """Queues, lists and buffers that are nowhere, tails beyond the queue: bounded, nothing raised."""
    assert guest.write(0x1008, 4, 99) == []
    guest.submit(0, opcode=0x01, prp1=0xDEAD_0000, cdw10=15 << 16 | 2, cdw11=1 << 16 | 1)
    list(guest.write(0x1010, 4, 3))
    guest.put(LIST, struct.pack("<2Q", LIST, 2 << 60 | 32) * 2)
    assert len(guest.submit(1, opcode=1, flags=0x40, prp1=LIST, prp2=2 << 60 | 32)) < 5000
    assert len(guest.submit(1, opcode=1, prp1=DATA, prp2=0xDEAD_0000, cdw12=0xFFFF)) < 5000
    guest.write(0x14, 4, 0)
    assert guest.after(1) == []
    assert guest.ring(1) == []
