"""The driver side of an NVMe controller, for tests: queues in memory of its own, commands, interrupts.

It drives a device without a carrier, through its regions, its DMA space and its eventfds, and takes nothing
from the device's code but the layout of the two queue entries.
"""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from iolane.devices.nvme.controller import Nvme
from iolane.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode
from iolane.devices.nvme.structures import CompletionEntry, SubmissionEntry
from iolane.model.interrupts import InterruptIndex, TableOwner
from iolane.model.region import Region, RegionIndex

PAGE = 4096
CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30
DOORBELLS = 0x1000
COMMAND_REGISTER, BUS_MASTER_AND_MEMORY = 0x04, 0x06
CAPABILITIES_POINTER, MSI_CAPABILITY, MSIX_CAPABILITY = 0x34, 0x05, 0x11
ENABLE = 4 << 20 | 6 << 16 | 1
TIMEOUT = 20.0
"""Seconds that a driver waits for a completion."""


class DriverMemory:
    """A piece of guest memory at an IOVA, given out in pages of `page` bytes and never taken back."""

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.page = PAGE
        self.buffer = bytearray(size)
        self._next = 0

    def allocate(self, size: int) -> int:
        """The IOVA of `size` bytes at a page's start, zero."""
        self._next = -(-self._next // self.page) * self.page
        iova = self.base + self._next
        self._next += -(-size // self.page) * self.page
        if self._next > len(self.buffer):
            raise MemoryError("the driver's memory is used up")
        return iova

    def clear(self) -> None:
        """Take everything back, and make it zero."""
        self._next = 0
        self.buffer[:] = bytes(len(self.buffer))

    def read(self, iova: int, length: int) -> bytes:
        return bytes(self.buffer[iova - self.base : iova - self.base + length])

    def write(self, iova: int, data: bytes) -> None:
        self.buffer[iova - self.base : iova - self.base + len(data)] = data


class Ring:
    """The driver's view of a submission queue with the completion queue of the same number."""

    def __init__(self, qid: int, sq: int, cq: int, entries: int, vector: int) -> None:
        self.qid = qid
        self.sq = sq
        self.cq = cq
        self.entries = entries
        self.vector = vector
        self.tail = 0
        self.head = 0
        self.phase = 1
        self.done: dict[int, CompletionEntry] = {}
        self.interrupts = 0


class NvmeDriver:
    """Drives one controller, as a guest's driver does.

    Args:
        device: the controller; attach it to workers before, or its tasks run in this thread.
        memory_size: bytes of guest memory.
        index: which interrupts to use.
    """

    def __init__(
        self,
        device: Nvme,
        *,
        memory_size: int = 16 << 20,
        index: InterruptIndex = InterruptIndex.MSIX,
    ) -> None:
        self.device = device
        self.index = index
        self.memory = DriverMemory(0x10_0000, memory_size)
        self.rings: dict[int, Ring] = {}
        self.event_fds: list[int] = []
        self._next_cid = 0
        self._connect()

    def _connect(self) -> None:
        with self.device.lock:
            self.device.dma.map(self.memory.base, len(self.memory.buffer), buffer=self.memory.buffer)
            self.device.interrupts.table_owner = TableOwner.CARRIER
            group = self.device.interrupts.group(self.index)
            for vector in range(group.count):
                fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self.event_fds.append(fd)
                group.connect(vector, os.dup(fd))
            self.region(RegionIndex.CONFIG).write(COMMAND_REGISTER, 2, BUS_MASTER_AND_MEMORY)
            if self.index is InterruptIndex.MSI:  # Enable, and as many vectors as it asks for
                place, control = self._capability(MSI_CAPABILITY)
                self.region(RegionIndex.CONFIG).write(place + 2, 2, control | (control >> 1 & 7) << 4 | 1)
            elif self.index is InterruptIndex.MSIX:
                place, control = self._capability(MSIX_CAPABILITY)
                self.region(RegionIndex.CONFIG).write(place + 2, 2, control | 1 << 15)

    def _capability(self, identifier: int) -> tuple[int, int]:
        """Place and Message Control of a capability (PCI Express Base 7.7)."""
        config = self.region(RegionIndex.CONFIG)
        place = config.read(CAPABILITIES_POINTER, 1)
        while place and config.read(place, 1) != identifier:
            place = config.read(place + 1, 1)
        return place, config.read(place + 2, 2)

    def close(self) -> None:
        """Close the device and the eventfds."""
        self.device.close()
        for fd in self.event_fds:
            os.close(fd)
        self.event_fds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Registers.

    def region(self, index: RegionIndex) -> Region:
        region = self.device.regions[index]
        if region is None:
            raise LookupError(f"the device has no {index.name}")
        return region

    def read_register(self, offset: int, size: int = 4) -> int:
        with self.device.lock:
            return self.region(RegionIndex.BAR0).read(offset, size)

    def write_register(self, offset: int, value: int, size: int = 4) -> None:
        with self.device.lock:
            self.region(RegionIndex.BAR0).write(offset, size, value)

    @property
    def ready(self) -> bool:
        return bool(self.read_register(CSTS) & 1)

    @property
    def fatal(self) -> bool:
        return bool(self.read_register(CSTS) & 2)

    def until_ready(self, wanted: bool) -> None:
        """Wait for CSTS.RDY."""
        deadline = time.monotonic() + TIMEOUT
        with self.device.changed:
            while self.ready != wanted:
                if not self.device.changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"CSTS.RDY does not become {int(wanted)}")

    # Life.

    def enable(self, entries: int = 32, *, configuration: int = ENABLE) -> None:
        """Set up the admin queues and enable the controller (Base 3.5.1)."""
        ring = Ring(0, self.memory.allocate(64 * entries), self.memory.allocate(16 * entries), entries, 0)
        self.rings = {0: ring}
        self.write_register(AQA, (entries - 1) << 16 | (entries - 1))
        for register, address in ((ASQ, ring.sq), (ACQ, ring.cq)):
            self.write_register(register, address & 0xFFFFFFFF)
            self.write_register(register + 4, address >> 32)
        self.write_register(CC, configuration)
        self.until_ready(True)

    def disable(self) -> None:
        """Clear CC.EN and wait until the controller is quiet."""
        self.write_register(CC, ENABLE & ~1)
        self.until_ready(False)

    def create_queues(self, count: int = 1, entries: int = 64, *, vectors: bool = True) -> None:
        """I/O queue pairs 1 to `count`, each with its own vector or all with vector 0."""
        self.admin(AdminOpcode.SET_FEATURES, cdw10=FeatureId.NUMBER_OF_QUEUES, cdw11=0x000F000F)
        for qid in range(1, count + 1):
            self.create_queue(qid, entries, qid if vectors else 0)

    def create_queue(self, qid: int, entries: int, vector: int) -> Ring:
        """One I/O queue pair."""
        ring = Ring(
            qid, self.memory.allocate(64 * entries), self.memory.allocate(16 * entries), entries, vector
        )
        size = (entries - 1) << 16 | qid
        self.check(
            self.admin(AdminOpcode.CREATE_CQ, prp1=ring.cq, cdw10=size, cdw11=vector << 16 | 0b11),
            self.admin(AdminOpcode.CREATE_SQ, prp1=ring.sq, cdw10=size, cdw11=qid << 16 | 0b01),
        )
        self.rings[qid] = ring
        return ring

    @staticmethod
    def check(*completions: CompletionEntry) -> None:
        """Raise unless all succeeded."""
        for completion in completions:
            if completion.status:
                raise AssertionError(f"{completion} ended with status {completion.status:#x}")

    # Commands.

    def entry(self, opcode: int, **fields: int) -> SubmissionEntry:
        """A command with a new identifier, all fields 0 but those named."""
        self._next_cid = (self._next_cid + 1) % 0xFFFF
        values = dict.fromkeys(SubmissionEntry._fields, 0)
        return SubmissionEntry(**{**values, "cid": self._next_cid, "opcode": int(opcode), **fields})

    def place(self, qid: int, entries: Iterable[SubmissionEntry]) -> None:
        """Put commands into the queue without telling the controller."""
        ring = self.rings[qid]
        for entry in entries:
            self.memory.write(ring.sq + 64 * ring.tail, entry.pack())
            ring.tail = (ring.tail + 1) % ring.entries

    def ring_tail(self, qid: int) -> None:
        """Tell the controller of the commands placed."""
        self.write_register(DOORBELLS + 8 * qid, self.rings[qid].tail)

    def submit(self, qid: int, *entries: SubmissionEntry) -> list[int]:
        """Put commands into the queue and ring. Returns their identifiers."""
        self.place(qid, entries)
        self.ring_tail(qid)
        return [entry.cid for entry in entries]

    def reap(self, qid: int, *, limit: int = 1 << 16) -> int:
        """Take completions out of the queue and tell the controller. Returns how many."""
        ring, count = self.rings[qid], 0
        while count < limit:
            completion = CompletionEntry.parse(self.memory.read(ring.cq + 16 * ring.head, 16))
            if completion.phase != ring.phase:
                break
            ring.done[completion.cid] = completion
            ring.head += 1
            if ring.head == ring.entries:
                ring.head, ring.phase = 0, ring.phase ^ 1
            count += 1
        if count:
            self.write_register(DOORBELLS + 8 * qid + 4, ring.head)
        return count

    def interrupts(self, vector: int) -> int:
        """Interrupts of a vector since the last call; an INTx is unmasked for the next."""
        try:
            count = os.eventfd_read(self.event_fds[vector])
        except BlockingIOError:
            return 0
        if self.index is InterruptIndex.INTX:
            with self.device.lock:
                self.device.interrupts.group(self.index).unmask(0)
        return count

    def wait(self, qid: int, cids: Sequence[int]) -> list[CompletionEntry]:
        """Wait for interrupts until the commands have completed."""
        ring = self.rings[qid]
        deadline = time.monotonic() + TIMEOUT
        vector = ring.vector if self.index is not InterruptIndex.INTX else 0
        self.reap(qid)
        while not all(cid in ring.done for cid in cids):
            if not select.select([self.event_fds[vector]], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError(f"queue {qid}: no completion of {set(cids) - set(ring.done)}")
            ring.interrupts += self.interrupts(vector)
            self.reap(qid)
        return [ring.done.pop(cid) for cid in cids]

    def admin(self, opcode: int, **fields: int) -> CompletionEntry:
        """Do an admin command."""
        return self.wait(0, self.submit(0, self.entry(opcode, **fields)))[0]

    def io(self, opcode: int, *, qid: int = 1, **fields: int) -> CompletionEntry:
        """Do an I/O command in namespace 1."""
        return self.wait(qid, self.submit(qid, self.entry(opcode, **{"nsid": 1, **fields})))[0]

    # Data.

    def prps(self, address: int, length: int) -> tuple[int, int]:
        """PRP1 and PRP2 of a run of memory, with as many lists as it takes (Base 4.1.1)."""
        page = self.memory.page
        first = page - address % page
        if length <= first:
            return address, 0
        entries = list(range(address + first, address + length, page))
        if len(entries) == 1:
            return address, entries[0]
        per_list = page // 8
        pages = []
        while len(entries) > per_list:
            pages.append(entries[: per_list - 1])
            entries = entries[per_list - 1 :]
        pages.append(entries)
        places = [self.memory.allocate(page) for _ in pages]
        for number, content in enumerate(pages):
            chained = [*content, *places[number + 1 : number + 2]]
            self.memory.write(places[number], struct.pack(f"<{len(chained)}Q", *chained))
        return address, places[0]

    def transfer(self, opcode: int, lba: int, blocks: int, address: int, **fields: int) -> SubmissionEntry:
        """A Read, Write or Compare of namespace 1 with the data at `address`."""
        nsid = fields.pop("nsid", 1)
        length = blocks * self.device.namespaces[nsid].lba_size
        prp1, prp2 = self.prps(address, length)
        values = {
            "nsid": nsid,
            "prp1": prp1,
            "prp2": prp2,
            "cdw10": lba & 0xFFFFFFFF,
            "cdw11": lba >> 32,
            "cdw12": (blocks - 1) | fields.pop("cdw12", 0),
        }
        return self.entry(opcode, **values, **fields)

    def write(self, lba: int, data: bytes, *, qid: int = 1, **fields: int) -> CompletionEntry:
        """Write blocks."""
        size = self.device.namespaces[fields.get("nsid", 1)].lba_size
        address = self.memory.allocate(len(data))
        self.memory.write(address, data)
        entry = self.transfer(IoOpcode.WRITE, lba, len(data) // size, address, **fields)
        return self.wait(qid, self.submit(qid, entry))[0]

    def read(self, lba: int, blocks: int, *, qid: int = 1, **fields: int) -> bytes:
        """Read blocks. Raises AssertionError when it fails."""
        size = blocks * self.device.namespaces[fields.get("nsid", 1)].lba_size
        address = self.memory.allocate(size)
        entry = self.transfer(IoOpcode.READ, lba, blocks, address, **fields)
        self.check(self.wait(qid, self.submit(qid, entry))[0])
        return self.memory.read(address, size)

    def identify(self, cns: int, nsid: int = 0, *, csi: int = 0) -> bytes:
        """An Identify structure. Raises AssertionError when it fails."""
        address = self.memory.allocate(PAGE)
        self.check(self.admin(AdminOpcode.IDENTIFY, nsid=nsid, prp1=address, cdw10=cns, cdw11=csi << 24))
        return self.memory.read(address, PAGE)

    def log_page(self, log: int, length: int, *, offset: int = 0, retain: bool = False) -> bytes:
        """A log page. Raises AssertionError when it fails."""
        address = self.memory.allocate(length)
        prp1, prp2 = self.prps(address, length)
        dwords = length // 4 - 1
        completion = self.admin(
            AdminOpcode.GET_LOG_PAGE,
            nsid=0xFFFFFFFF,
            prp1=prp1,
            prp2=prp2,
            cdw10=(dwords & 0xFFFF) << 16 | retain << 15 | log,
            cdw11=dwords >> 16,
            cdw12=offset & 0xFFFFFFFF,
            cdw13=offset >> 32,
        )
        self.check(completion)
        return self.memory.read(address, length)


class Gate:
    """Stops workers at a back end until a test opens it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.arrived = threading.Semaphore(0)

    def pass_through(self) -> None:
        """What the worker calls."""
        self.arrived.release()
        if not self._open.wait(TIMEOUT):
            raise TimeoutError("nobody opens the gate")

    def open(self) -> None:
        """Let everybody through, now and later."""
        self._open.set()
