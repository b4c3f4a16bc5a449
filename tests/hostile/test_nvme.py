"""A guest that does its worst to an NVMe controller: statuses, events, a fatal state; never a traceback."""

import os
import random
import struct
import time
from pathlib import Path

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.devices.nvme import Nvme
from iolane.devices.nvme.sgl import MAX_DESCRIPTORS
from iolane.devices.nvme.spec import ERROR_LOG_ENTRIES, PSDT_SGL, AdminOpcode, IoOpcode, Select, Status
from iolane.devices.nvme.structures import SubmissionEntry
from iolane.model.dma import DmaFault
from iolane.model.region import RegionIndex
from iolane.model.workers import Workers
from iolane.testing.nvme_driver import CC, DOORBELLS, ENABLE, NvmeDriver

pytestmark = pytest.mark.hostile
DISK = 1 << 20
KNOWN = frozenset(int(status) for status in Status)
BLOCK, SEGMENT, LAST_SEGMENT = 0x00, 0x20, 0x30
DESCRIPTOR = struct.Struct("<QI3xB")


class Hostile:
    """A driver that goes wrong in seeded ways."""

    def __init__(self, seed: int, workers: Workers | None = None) -> None:
        self.chance = random.Random(seed)
        self.backend = MemoryBackend(b"\xa5" * DISK)
        self.device = Nvme(backend=self.backend, backends=[MemoryBackend(8192, read_only=True)])
        if workers is not None:
            self.device.attach(workers)
        self.driver = NvmeDriver(self.device, memory_size=2 << 20)
        self.start()

    def start(self) -> None:
        self.driver.memory.clear()
        self.driver.enable(entries=16)
        self.driver.create_queues(2, entries=16)
        self.device.counters.clear()

    def recover(self) -> None:
        """Whatever has happened, a reset brings the controller back."""
        self.driver.region(RegionIndex.CONFIG).write(4, 2, 6)
        self.driver.write_register(CC, 0)
        self.driver.until_ready(False)
        self.start()
        self.driver.identify(1)
        self.driver.read(0, 1)

    def address(self) -> int:
        """Somewhere: in memory, at its edges, outside, at the end of the address space."""
        chance, memory = self.chance, self.driver.memory
        end = memory.base + len(memory.buffer)
        match chance.randrange(6):
            case 0:
                return memory.base + chance.randrange(len(memory.buffer)) // 4096 * 4096
            case 1:
                return memory.base + chance.randrange(len(memory.buffer))
            case 2:
                return end - chance.choice((4096, 8192, 8, 1))
            case 3:
                return chance.getrandbits(64)
            case 4:
                return (1 << 64) - chance.choice((4096, 8, 1))
        return chance.choice((0, end, memory.base - 8))

    def number(self) -> int:
        chance = self.chance
        small = chance.choice((0, 1, 2, 7, 8, 15, 16, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
        return small if chance.random() < 0.7 else chance.getrandbits(32)

    def entry(self, opcodes: list[int]) -> SubmissionEntry:
        chance = self.chance
        return SubmissionEntry(
            opcode=chance.choice(opcodes) if chance.random() < 0.95 else chance.getrandbits(8),
            flags=0 if chance.random() < 0.9 else chance.getrandbits(8),
            cid=chance.getrandbits(16),
            nsid=chance.choice((0, 1, 1, 1, 2, 3, 0xFFFFFFFF)),
            cdw2=self.number(),
            cdw3=self.number(),
            mptr=self.address(),
            prp1=self.address(),
            prp2=self.address(),
            cdw10=chance.choice((self.number(), chance.randrange(0x20), chance.randrange(3000))),
            cdw11=chance.choice((0, 0, self.number())),
            cdw12=chance.choice((chance.randrange(64), self.number())),
            cdw13=self.number(),
            cdw14=chance.choice((0, self.number())),
            cdw15=self.number(),
        )

    def descriptor(self) -> bytes:
        """Of a Scatter Gather List: plausible, or anything."""
        chance = self.chance
        if chance.random() < 0.05:
            return chance.randbytes(16)
        identifier = chance.choice((BLOCK, BLOCK, BLOCK, SEGMENT, LAST_SEGMENT))
        length = chance.choice((0, 1, 16, 32, 64, 512, 4096, 4096, 0x4000, 0xFFFFFFFF))
        return DESCRIPTOR.pack(self.address(), length, identifier)

    def scattered(self, opcodes: list[int]) -> SubmissionEntry:
        """A command whose data an SGL is to tell of."""
        first, second = struct.unpack("<2Q", self.descriptor())
        flags = PSDT_SGL if self.chance.random() < 0.95 else self.chance.getrandbits(8)
        return self.entry(opcodes)._replace(flags=flags, nsid=1, prp1=first, prp2=second)

    def check(self) -> None:
        """Nothing has grown, nothing has raised."""
        device = self.device
        assert device.error_count == 0
        assert len(device.state.errors) <= ERROR_LOG_ENTRIES
        assert len(device.commands.active) <= 256 + 64
        assert len(device.state.events.pending) <= 8
        assert len(device.dma.faults) <= 256

    def close(self) -> None:
        self.driver.close()


@pytest.mark.parametrize("seed", range(6))
def test_random_commands(seed: int) -> None:
    hostile = Hostile(seed)
    driver, seen = hostile.driver, set()
    for _ in range(1500):
        qid = hostile.chance.randrange(3)
        if qid not in driver.rings or hostile.device.state.submission.get(qid) is None or driver.fatal:
            hostile.recover()
        opcodes = [*AdminOpcode] if qid == 0 else [*IoOpcode]
        driver.submit(qid, hostile.entry([int(opcode) for opcode in opcodes]))
        if hostile.device.state.completion.get(qid) is not None:
            driver.reap(qid)
        for completion in driver.rings[qid].done.values():
            assert completion.status in KNOWN
            seen.add(completion.status)
        driver.rings[qid].done.clear()
    hostile.check()
    hostile.recover()
    hostile.close()
    assert len(seen) >= 8, f"too tame: {sorted(seen)}"


@pytest.mark.parametrize("seed", range(4))
def test_random_register_accesses(seed: int) -> None:
    hostile = Hostile(seed)
    region = hostile.driver.region(RegionIndex.BAR0)
    chance = hostile.chance
    for step in range(4000):
        size = chance.choice((1, 2, 4, 8))
        offset = chance.choice(
            (chance.randrange(0x48), 0x1000 + chance.randrange(80), chance.randrange(0x1FF8))
        )
        offset = min(offset, region.size - size)
        if chance.random() < 0.3:
            assert 0 <= region.read(offset, size) < 1 << 8 * size
        elif offset in range(0x14 - 7, 0x18) and chance.random() < 0.9:
            region.write(0x14, 4, ENABLE ^ (chance.getrandbits(24) if chance.random() < 0.3 else 0))
        else:
            region.write(offset, size, chance.getrandbits(8 * size))
        if step % 500 == 499:
            hostile.check()
    hostile.recover()
    hostile.close()


@pytest.mark.parametrize("seed", range(3))
def test_random_doorbells(seed: int) -> None:
    """Whatever doorbells say, at most what the rings hold is fetched."""
    hostile = Hostile(seed)
    driver, chance = hostile.driver, hostile.chance
    flush = driver.entry(IoOpcode.FLUSH, nsid=1)
    for qid in (0, 1, 2):
        for slot in range(16):
            filler = (
                flush if qid else driver.entry(AdminOpcode.GET_FEATURES, cdw10=Select.CAPABILITIES << 8 | 1)
            )
            driver.memory.write(driver.rings[qid].sq + 64 * slot, filler.pack())
    for _ in range(3000):
        driver.write_register(
            DOORBELLS + 4 * chance.randrange(8), chance.choice((chance.randrange(20), chance.getrandbits(32)))
        )
    assert hostile.device.counters["invalid_doorbells"] > 500
    assert not driver.fatal
    hostile.check()
    hostile.recover()
    hostile.close()


def test_prp_lists_that_go_round_are_bounded() -> None:
    """Every entry of every list points to the list itself: 1 MiB is read over the list, and that is all."""
    hostile = Hostile(1)
    driver = hostile.driver
    page = driver.memory.allocate(4096)
    driver.memory.write(page, struct.pack("<512Q", *[page] * 512))
    for at in (0, 4088, 8, 4080):
        entry = driver.entry(IoOpcode.WRITE, nsid=1, prp1=page, prp2=page + at, cdw12=2047)
        started = time.process_time()
        completion = driver.wait(1, driver.submit(1, entry))[0]
        assert completion.status in (0, Status.INVALID_PRP_OFFSET)
        assert time.process_time() - started < 2
    entry = driver.entry(IoOpcode.READ, nsid=1, prp1=page, prp2=page, cdw12=2047)
    driver.wait(1, driver.submit(1, entry))
    hostile.recover()
    hostile.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_scatter_gather_lists(seed: int) -> None:
    """All of memory holds descriptors, also where the controller writes what it read."""
    hostile = Hostile(seed)
    driver, seen = hostile.driver, set()
    for _ in range(3):
        hostile.recover()
        lists = driver.memory.allocate(1 << 20)
        driver.memory.write(lists, b"".join(hostile.descriptor() for _ in range(1 << 16)))
        for _ in range(300):
            if driver.fatal:
                break
            opcodes = [int(code) for code in (IoOpcode.READ, IoOpcode.WRITE, IoOpcode.DATASET_MANAGEMENT)]
            driver.submit(1, hostile.scattered(opcodes))
            driver.reap(1)
            for completion in driver.rings[1].done.values():
                assert completion.status in KNOWN
                seen.add(completion.status)
            driver.rings[1].done.clear()
    hostile.check()
    hostile.recover()
    hostile.close()
    assert seen >= {Status.SGL_TYPE_INVALID, Status.INVALID_SGL_SEGMENT, Status.DATA_SGL_LENGTH_INVALID}


def test_scatter_gather_lists_that_go_round_are_bounded() -> None:
    """Segments that lead to themselves, without data or with a byte of it at a time; the longest of all."""
    hostile = Hostile(1)
    driver = hostile.driver
    page = driver.memory.allocate(32 * MAX_DESCRIPTORS)
    for size in (0, 1):
        for count in (1, 2, 256, MAX_DESCRIPTORS):
            block = DESCRIPTOR.pack(page, size, BLOCK)
            link = DESCRIPTOR.pack(page, 16 * count, SEGMENT)
            driver.memory.write(page, block * (count - 1) + link)
            for length in (16, 16 * count, 16 * count + 16, 0xFFFFFFF0):
                first, second = struct.unpack("<2Q", DESCRIPTOR.pack(page, length, SEGMENT))
                entry = driver.entry(
                    IoOpcode.WRITE, flags=PSDT_SGL, nsid=1, prp1=first, prp2=second, cdw12=2047
                )
                started = time.process_time()
                status = driver.wait(1, driver.submit(1, entry))[0].status
                assert status in (Status.INVALID_SGL_COUNT, Status.DATA_SGL_LENGTH_INVALID)
                assert time.process_time() - started < 1
    hostile.recover()
    hostile.close()


def test_queues_on_top_of_each_other() -> None:
    """Queues, data and lists share memory: the controller reads its own completions as commands."""
    hostile = Hostile(2)
    driver = hostile.driver
    same = driver.memory.allocate(4096)
    for qid in (3, 4):
        driver.check(
            driver.admin(AdminOpcode.CREATE_CQ, prp1=same, cdw10=63 << 16 | qid, cdw11=qid << 16 | 3),
            driver.admin(AdminOpcode.CREATE_SQ, prp1=same, cdw10=63 << 16 | qid, cdw11=qid << 16 | 1),
        )
    for value in range(1, 64):
        for qid in (3, 4):
            driver.write_register(DOORBELLS + 8 * qid, value)
            driver.write_register(DOORBELLS + 8 * qid + 4, value)
    hostile.check()
    hostile.recover()
    hostile.close()


@pytest.mark.parametrize("seed", range(3))
def test_resets_in_the_middle_of_everything(seed: int) -> None:
    """With workers: commands, resets, shutdowns, deletions, aborts and unmapped memory at once."""
    with Workers(3) as workers:
        hostile = Hostile(seed, workers)
        driver, chance, device = hostile.driver, hostile.chance, hostile.device
        for _ in range(150):
            match chance.randrange(8):
                case 0:
                    hostile.recover()
                case 1:
                    driver.write_register(CC, ENABLE | chance.choice((1, 2)) << 14)
                case 2:
                    driver.submit(0, driver.entry(AdminOpcode.DELETE_SQ, cdw10=chance.randrange(4)))
                case 3:
                    cid = chance.getrandbits(8)
                    driver.submit(0, driver.entry(AdminOpcode.ABORT, cdw10=cid << 16 | chance.randrange(3)))
                case 4:
                    size = len(driver.memory.buffer)
                    device.dma.unmap(driver.memory.base, size)
                    device.dma.map(driver.memory.base, size, buffer=driver.memory.buffer)
                case 5:
                    driver.region(RegionIndex.CONFIG).write(4, 2, chance.choice((2, 6)))
                case _:
                    kind = chance.choice((hostile.entry, hostile.scattered))
                    entries = [kind([int(code) for code in IoOpcode]) for _ in range(5)]
                    driver.submit(chance.choice((1, 2)), *entries)
            for qid in list(driver.rings):
                driver.reap(qid)
        hostile.recover()
        hostile.check()
        hostile.close()


def test_writes_stay_in_the_namespace_and_reads_in_the_guest() -> None:
    """No sequence of commands changes what lies beside the namespace or the guest's memory."""
    hostile = Hostile(5)
    driver = hostile.driver
    outside = bytearray(b"\x5a" * 8192)
    end = driver.memory.base + len(driver.memory.buffer)
    for _ in range(800):
        entry = hostile.entry([int(IoOpcode.READ), int(IoOpcode.WRITE)])
        edge = entry._replace(prp1=end - 4096 + hostile.chance.randrange(4096) // 4 * 4, prp2=end)
        if driver.fatal:
            hostile.recover()
        driver.submit(1, edge)
        driver.reap(1)
        driver.rings[1].done.clear()
    assert outside == b"\x5a" * 8192
    assert len(hostile.backend.content) == DISK
    with pytest.raises(DmaFault):
        hostile.device.dma.read(end, 1)
    hostile.close()


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE])
def test_data_in_a_memory_file_that_is_truncated(tmp_path: Path, in_file: bool, opcode: IoOpcode) -> None:
    """By the guard (memory) or by EFAULT (files): Data Transfer Error, and the controller goes on."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(DISK))
    device = Nvme(image) if in_file else Nvme(backend=MemoryBackend(DISK))
    iova, size = 0x4000_0000, 1 << 20
    fd = os.memfd_create("guest")
    os.ftruncate(fd, size)
    with NvmeDriver(device) as driver:
        driver.enable()
        driver.create_queues(1)
        with device.lock:
            device.dma.map(iova, size, fd=fd)
        data = driver.transfer(opcode, 0, 64, iova + size // 2)
        driver.check(driver.wait(1, driver.submit(1, data))[0])
        os.ftruncate(fd, 4096)
        for _ in range(2):
            again = driver.transfer(opcode, 0, 64, iova + size // 2)
            completion = driver.wait(1, driver.submit(1, again))[0]
            assert completion.status == Status.DATA_TRANSFER_ERROR
        driver.read(0, 1)
        assert device.error_count == 0
    os.close(fd)
