"""Which memory an NVMe controller reads and writes, for recordings of one that is hardware.

Followed from the registers alone: the admin queues from AQA, ASQ and ACQ, the others from the commands that
make them. Recorded are the commands behind a doorbell, PRP lists, the data of writes, and completions. What a
Read or Identify put into memory is not: it is the content of the disk, and the controller's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iolane.devices.nvme.registers import NvmeRegisters, page_size
from iolane.devices.nvme.sgl import DESCRIPTOR, SglIdentifier, command_descriptor, parse_segment
from iolane.devices.nvme.spec import PSDT, AdminOpcode, IoOpcode
from iolane.devices.nvme.structures import DSM_RANGE, SubmissionEntry, parse_entries
from iolane.model.dma import Direction, DmaFault, DmaSpace
from iolane.model.interrupts import InterruptIndex
from iolane.model.registers import RegisterMap
from iolane.model.trace.events import RegisterAccess
from iolane.model.trace.recording import LEFT, MemoryField, MemoryKick, MemoryPart, Seen

ENTRY, COMPLETION = 64, 16
MAX_QUEUES, MAX_ENTRIES = 1024, 65536
MAX_DATA = 1 << 20
"""Bytes of one command's data that are recorded."""
MAX_DESCRIPTORS = 4096
"""Of one command's scatter gather list that are recorded: controllers may take more than our model does."""
DATA_TO_CONTROLLER = 0x1
"""Bits 1:0 of an opcode (Base 3.3.3.1)."""
COMPLETION_FIELDS = (
    MemoryField("RESULT", 0, 4, 0xFFFF_FFFF),
    MemoryField("SQID", 10, 2, 0xFFFF),
    MemoryField("CID", 12, 2, 0xFFFF),
    MemoryField("STATUS.SC", 14, 2, 0x01FE),
    MemoryField("STATUS.SCT", 14, 2, 0x0E00),
    MemoryField("STATUS.DNR", 14, 2, 0x8000),
    MemoryField("P", 14, 2, 0x0001),
)
"""Not SQ Head: how far the controller has fetched is a matter of time. Not M: it is of the error log."""


@dataclass
class _Submission:
    qid: int
    base: int
    entries: int
    tail: int = 0


@dataclass
class _Completion:
    qid: int
    base: int
    entries: int
    vector: int
    head: int = 0
    phase: int = 1


class NvmeMemory:
    """Follows a session with a controller.

    Args:
        block_size: bytes of a logical block, for the length of writes.
    """

    def __init__(self, *, block_size: int = 512) -> None:
        self._block_size = block_size
        self._registers: RegisterMap = NvmeRegisters()
        self._submission: dict[int, _Submission] = {}
        self._completion: dict[int, _Completion] = {}
        self._shadow = 0
        """Address of the shadow doorbells, 0 for none (Base 5.8)."""

    @property
    def _bar(self) -> NvmeRegisters:
        assert isinstance(self._registers, NvmeRegisters)
        return self._registers

    # What a recorder asks.

    def before(self, access: RegisterAccess, dma: DmaSpace) -> Iterator[Seen]:
        if access.region != "bar0" or access.dropped:
            return
        if access.direction is Direction.READ:
            self._learn(access)
            return
        doorbell = self._doorbell(access.offset)
        if doorbell is None:
            was_enabled = self._bar.CC.EN
            self._learn(access)
            if was_enabled != self._bar.CC.EN:
                self._enabled()
            return
        if doorbell % 2 == 0 and doorbell // 2 in self._submission:
            yield from self._submitted(self._submission[doorbell // 2], access.value, dma)

    def after(self, kind: InterruptIndex, vector: int, dma: DmaSpace) -> Iterator[Seen]:
        # Completions first: a tail that is read later covers every command that they are of.
        completed: list[Seen] = []
        for queue in list(self._completion.values()):
            if kind is not InterruptIndex.MSIX or queue.vector == vector:
                completed += self._completed(queue, dma)
        if self._shadow:
            yield from self._shadowed(dma)
        yield from completed

    # Registers.

    def _learn(self, access: RegisterAccess) -> None:
        """Remember what a register held; its own access kinds play no part."""
        storage = self._registers.storage
        if access.offset + access.size <= NvmeRegisters.DOORBELL.offset:
            value = access.original if access.direction is Direction.READ else access.value
            storage[access.offset : access.offset + access.size] = value.to_bytes(access.size, "little")

    def _doorbell(self, offset: int) -> int | None:
        """The number of a doorbell: 2 y for the tail of SQ y, 2 y + 1 for the head of CQ y."""
        stride = 4 << self._bar.CAP.DSTRD
        first = NvmeRegisters.DOORBELL.offset
        return (offset - first) // stride if offset >= first and not (offset - first) % stride else None

    def _enabled(self) -> None:
        """CC.EN changed: all queues are gone, or the admin queues are there."""
        self._submission.clear()
        self._completion.clear()
        self._shadow = 0
        bar = self._bar
        if bar.CC.EN:
            self._submission[0] = _Submission(0, int(bar.ASQ) & ~0xFFF, bar.AQA.ASQS + 1)
            self._completion[0] = _Completion(0, int(bar.ACQ) & ~0xFFF, bar.AQA.ACQS + 1, 0)

    # Commands.

    def _submitted(self, queue: _Submission, tail: int, dma: DmaSpace) -> Iterator[Seen]:
        """The entries up to `tail`, and what they make the controller read."""
        if self._shadow and queue.qid:
            # The guest may be further than the doorbell says: the controller looks here.
            size = page_size(self._bar.CC)
            try:
                page = dma.read(self._shadow, size)
            except DmaFault:
                return
            tail = int.from_bytes(page[8 * queue.qid : 8 * queue.qid + 4], "little")
            if tail != queue.tail:
                yield MemoryPart(self._shadow, size, "shadow doorbells", data=page)
        if tail >= queue.entries:
            return
        while queue.tail != tail:
            stop = tail if tail > queue.tail else queue.entries
            address = queue.base + ENTRY * queue.tail
            length = ENTRY * (stop - queue.tail)
            queue.tail = stop % queue.entries
            yield MemoryPart(address, length, f"sq{queue.qid}")
            try:
                commands = parse_entries(dma.read(address, length))
            except DmaFault:
                return
            for command in commands:
                yield from self._command(queue.qid, command, dma)

    def _command(self, qid: int, command: SubmissionEntry, dma: DmaSpace) -> Iterator[Seen]:
        if qid == 0:
            self._admin(command)
            if command.opcode & 3 == DATA_TO_CONTROLLER and command.opcode not in (
                AdminOpcode.CREATE_SQ,
                AdminOpcode.CREATE_CQ,
                AdminOpcode.SET_FEATURES,
            ):
                yield MemoryPart(command.prp1, 4096, "data")
            return
        blocks = (command.cdw12 & 0xFFFF) + 1
        if command.opcode in (IoOpcode.WRITE, IoOpcode.COMPARE):
            yield from self._data(command, blocks * self._block_size, dma, content=True)
        elif command.opcode == IoOpcode.READ:
            yield from self._data(command, blocks * self._block_size, dma, content=False)
        elif command.opcode == IoOpcode.DATASET_MANAGEMENT:
            length = ((command.cdw10 & 0xFF) + 1) * DSM_RANGE.size
            yield from self._data(command, length, dma, content=True, name="ranges")

    def _admin(self, command: SubmissionEntry) -> None:
        qid, entries = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
        if command.opcode == AdminOpcode.CREATE_SQ and len(self._submission) < MAX_QUEUES:
            self._submission[qid] = _Submission(qid, command.prp1 & ~0xFFF, entries)
        elif command.opcode == AdminOpcode.CREATE_CQ and len(self._completion) < MAX_QUEUES:
            self._completion[qid] = _Completion(qid, command.prp1 & ~0xFFF, entries, command.cdw11 >> 16)
        elif command.opcode == AdminOpcode.DELETE_SQ:
            self._submission.pop(qid, None)
        elif command.opcode == AdminOpcode.DELETE_CQ:
            self._completion.pop(qid, None)
        elif command.opcode == AdminOpcode.DOORBELL_BUFFER_CONFIG:
            self._shadow = command.prp1

    def _data(
        self, command: SubmissionEntry, length: int, dma: DmaSpace, *, content: bool, name: str = "data"
    ) -> Iterator[Seen]:
        """PRP lists, and the data itself where the controller reads it (Base 4.1.1)."""
        length = min(length, MAX_DATA)
        if command.flags & PSDT:
            for part in self._sgl(command, length, dma, name):
                if content or part.name != name:
                    yield part
            return
        page = page_size(self._bar.CC)
        first = min(page - command.prp1 % page, length)
        if content:
            yield MemoryPart(command.prp1, first, name)
        left = length - first
        if left <= 0:
            return
        if left <= page:
            if content:
                yield MemoryPart(command.prp2, left, name)
            return
        for address in self._listed(command.prp2, -(-left // page), page, dma):
            if isinstance(address, MemoryPart):
                yield address
            elif content:
                yield MemoryPart(address, min(page, left), name)
                left -= page

    def _listed(self, address: int, count: int, page: int, dma: DmaSpace) -> Iterator[MemoryPart | int]:
        """The entries of PRP lists, and the lists."""
        while count > 0:
            room = (page - address % page) // 8
            taken = min(room, count) if count <= room else room - 1
            length = 8 * (taken if count <= room else room)
            yield MemoryPart(address, length, "PRP list")
            try:
                raw = dma.read(address, length)
            except DmaFault:
                return
            entries = [int.from_bytes(raw[place : place + 8], "little") for place in range(0, length, 8)]
            yield from entries[:taken]
            count -= taken
            if not taken:
                return
            address = entries[-1]

    def _sgl(self, command: SubmissionEntry, left: int, dma: DmaSpace, name: str) -> Iterator[MemoryPart]:
        """Segments, and `left` bytes of data, of a scatter gather list (Base 4.1.2)."""
        segment, budget = [command_descriptor(command.prp1, command.prp2)], MAX_DESCRIPTORS
        while segment and left > 0:
            for address, length, identifier in segment:
                if identifier == SglIdentifier.DATA_BLOCK and left > 0 and length:
                    yield MemoryPart(address, min(length, left), name)
                    left -= min(length, left)
            address, length, identifier = segment[-1]
            length = min(length // DESCRIPTOR.size, budget) * DESCRIPTOR.size
            budget -= length // DESCRIPTOR.size
            links = identifier in (SglIdentifier.SEGMENT, SglIdentifier.LAST_SEGMENT)
            if not links or not left or not length:
                return
            yield MemoryPart(address, length, "SGL segment")
            try:
                segment = list(parse_segment(dma.read(address, length)))
            except DmaFault:
                return

    # Completions.

    def _completed(self, queue: _Completion, dma: DmaSpace) -> Iterator[Seen]:
        """Entries that were posted since the last look."""
        start, taken = queue.head, 0
        while taken < queue.entries:
            place = queue.base + COMPLETION * queue.head
            try:
                posted = dma.read(place + 14, 1)[0] & 1 == queue.phase
            except DmaFault:
                return
            if not posted:
                break
            taken += 1
            queue.head += 1
            if queue.head == queue.entries:
                yield self._part(queue, start, queue.head, dma)
                queue.head = start = 0
                queue.phase ^= 1
        if queue.head > start:
            yield self._part(queue, start, queue.head, dma)

    @staticmethod
    def _part(queue: _Completion, start: int, stop: int, dma: DmaSpace) -> MemoryPart:
        address, length = queue.base + COMPLETION * start, COMPLETION * (stop - start)
        return MemoryPart(
            address,
            length,
            f"cq{queue.qid}",
            op=LEFT,
            fields=COMPLETION_FIELDS,
            stride=COMPLETION,
            key=("SQID", "CID"),
            placed=("P",),
            data=dma.read(address, length),
        )

    # Shadow doorbells.

    def _shadowed(self, dma: DmaSpace) -> Iterator[Seen]:
        """Tails that the guest put into memory only: the controller has looked there (Base 5.8)."""
        for queue in list(self._submission.values()):
            if not queue.qid:
                continue
            doorbell = 2 * queue.qid
            try:
                tail = int.from_bytes(dma.read(self._shadow + 4 * doorbell, 4), "little")
            except DmaFault:
                return
            if tail == queue.tail or tail >= queue.entries:
                continue
            yield from self._submitted(queue, tail, dma)
            offset = NvmeRegisters.DOORBELL.offset + doorbell * (4 << self._bar.CAP.DSTRD)
            yield MemoryKick("bar0", offset, 4, tail, f"bar0.DOORBELL[{doorbell}]")
