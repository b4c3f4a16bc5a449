"""Commands of the NVM Command Set (NVM Command Set 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iolane.devices.nvme.commands import Command, error_from
from iolane.devices.nvme.identify import MDTS
from iolane.devices.nvme.namespace import Namespace
from iolane.devices.nvme.prp import Pieces, resolve_prps
from iolane.devices.nvme.registers import page_size
from iolane.devices.nvme.sgl import resolve_sgl
from iolane.devices.nvme.spec import (
    ALL_NAMESPACES,
    FUSE,
    PSDT,
    PSDT_SGL,
    CommandError,
    IoOpcode,
    Status,
    invalid_field,
)
from iolane.devices.nvme.structures import DSM_RANGE, SubmissionEntry
from iolane.model.dma import DmaFault, Pinned

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

OPCODE_LOCATION, FLAGS_LOCATION, NSID_LOCATION = 0, 1, 4
LBA_LOCATION, LENGTH_LOCATION, CONTROL_LOCATION = 40, 48, 50
FORCE_UNIT_ACCESS, DEALLOCATE = 1 << 30, 1 << 25
PROTECTION = 0xF << 26
"""PRINFO: there is no protection information to check or insert."""
ATTRIBUTE_DEALLOCATE = 1 << 2
MAX_TRANSFER = 4096 << MDTS


class Io:
    """Executes the commands of the I/O submission queues."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self._executors: dict[int, Callable[[Command], None]] = {
            IoOpcode.FLUSH: self._flush,
            IoOpcode.WRITE: self._write,
            IoOpcode.READ: self._read,
            IoOpcode.COMPARE: self._compare,
            IoOpcode.WRITE_ZEROES: self._write_zeroes,
            IoOpcode.DATASET_MANAGEMENT: self._manage_dataset,
        }

    def execute(self, command: Command) -> None:
        """Check the command and begin its work, which ends in a task."""
        executor = self._executors.get(command.entry.opcode)
        if executor is None:
            raise CommandError(Status.INVALID_OPCODE, location=OPCODE_LOCATION)
        if command.entry.flags:
            self._check_flags(command.entry.flags)
        executor(command)

    @staticmethod
    def _check_flags(flags: int) -> None:
        """No fused operations (FUSES is 0), no SGL of metadata (SGLS bit 19 is 0; Base, Figure 87)."""
        if flags & FUSE or flags & PSDT not in (0, PSDT_SGL):
            raise invalid_field(FLAGS_LOCATION, f"flags {flags:#04x} ask for what is not supported")

    def _namespace(self, entry: SubmissionEntry, *, write: bool = False) -> Namespace:
        controller = self.controller
        namespace = controller.namespaces.get(entry.nsid)
        if namespace is None:
            if 0 < entry.nsid <= max(controller.namespaces):
                raise invalid_field(NSID_LOCATION, f"namespace {entry.nsid} is not active")
            raise CommandError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)
        if write and controller.is_write_protected(namespace):
            raise CommandError(Status.NAMESPACE_WRITE_PROTECTED, location=NSID_LOCATION)
        return namespace

    def _extent(self, entry: SubmissionEntry, namespace: Namespace) -> tuple[int, int]:
        """Offset and length in bytes of the blocks that the command names."""
        lba, blocks = entry.cdw10 | entry.cdw11 << 32, (entry.cdw12 & 0xFFFF) + 1
        if entry.cdw12 & PROTECTION:
            raise invalid_field(CONTROL_LOCATION, "there is no protection information")
        if lba + blocks > namespace.blocks:
            raise CommandError(Status.LBA_OUT_OF_RANGE, location=LBA_LOCATION, lba=lba)
        return lba * namespace.lba_size, blocks * namespace.lba_size

    def _pin(self, command: Command, length: int, *, write: bool) -> Pinned:
        """Hold the guest's memory that the command's data is in. `write`: the controller writes into it."""
        entry = command.entry
        if length > MAX_TRANSFER:
            raise invalid_field(LENGTH_LOCATION, f"MDTS: at most {MAX_TRANSFER} bytes")
        pieces = self._pieces(entry, length)
        try:
            command.pinned = self.controller.dma.pin(pieces, write=write)
        except DmaFault as fault:
            raise error_from(fault, entry) from None
        return command.pinned

    def _pieces(self, entry: SubmissionEntry, length: int) -> Pieces:
        """Where the command's data is, by PRPs or by an SGL (PSDT; Base, Figure 87)."""
        dma = self.controller.dma
        if entry.flags & PSDT:
            return resolve_sgl(dma, entry.prp1, entry.prp2, length)
        return resolve_prps(dma, entry.prp1, entry.prp2, length, page_size(self.controller.bar0.CC))

    def _secure(self, entry: SubmissionEntry, namespace: Namespace) -> None:
        """Force Unit Access, or the write cache is off: what was written is safe before the command ends."""
        if entry.cdw12 & FORCE_UNIT_ACCESS or not self.controller.state.features.write_cache:
            namespace.backend.flush()

    def _read(self, command: Command) -> None:
        """Read (3.2.4). Force Unit Access reads the medium: what is cached there is the same."""
        entry = command.entry
        namespace = self._namespace(entry)
        offset, length = self._extent(entry, namespace)
        views = self._pin(command, length, write=True).views
        self.controller.commands.run(command, lambda: namespace.backend.readv(offset, views))

    def _write(self, command: Command) -> None:
        """Write (3.2.6)."""
        entry = command.entry
        namespace = self._namespace(entry, write=True)
        offset, length = self._extent(entry, namespace)
        views = self._pin(command, length, write=False).views

        def work() -> None:
            namespace.backend.writev(offset, views)
            self._secure(entry, namespace)

        self.controller.commands.run(command, work)

    def _compare(self, command: Command) -> None:
        """Compare (3.2.1)."""
        entry = command.entry
        namespace = self._namespace(entry)
        offset, length = self._extent(entry, namespace)
        views = self._pin(command, length, write=False).views

        def work() -> None:
            stored = bytearray(length)
            namespace.backend.readv(offset, [memoryview(stored)])
            if stored != b"".join(views):
                raise CommandError(Status.COMPARE_FAILURE, lba=entry.lba)

        self.controller.commands.run(command, work)

    def _flush(self, command: Command) -> None:
        """Flush (Base 7.1); VWC says that the broadcast NSID flushes every namespace."""
        if command.entry.nsid == ALL_NAMESPACES:
            self.controller.commands.run(command, self.controller.flush_all)
        else:
            self.controller.commands.run(command, self._namespace(command.entry).backend.flush)

    def _write_zeroes(self, command: Command) -> None:
        """Write Zeroes (3.2.8); with Deallocate the blocks may be dropped if they then read as zeroes."""
        entry = command.entry
        namespace = self._namespace(entry, write=True)
        offset, length = self._extent(entry, namespace)
        backend = namespace.backend
        drop = entry.cdw12 & DEALLOCATE and backend.reads_zeroes_after_discard

        def work() -> None:
            if drop:
                backend.discard(offset, length)
            else:
                backend.write_zeroes(offset, length)
            self._secure(entry, namespace)

        self.controller.commands.run(command, work)

    def _manage_dataset(self, command: Command) -> None:
        """Dataset Management (3.2.3): Deallocate is done, the other attributes are hints."""
        entry = command.entry
        deallocate = bool(entry.cdw11 & ATTRIBUTE_DEALLOCATE)
        namespace = self._namespace(entry, write=deallocate)
        ranges = self._ranges(entry, namespace)
        if not deallocate:
            self.controller.commands.finish(command)
            return

        def work() -> None:
            for offset, length in ranges:
                namespace.backend.discard(offset, length)

        self.controller.commands.run(command, work)

    def _ranges(self, entry: SubmissionEntry, namespace: Namespace) -> list[tuple[int, int]]:
        """At most 256 ranges of 16 bytes each; offset and length in bytes of those that are not empty."""
        size = ((entry.cdw10 & 0xFF) + 1) * DSM_RANGE.size
        pieces = self._pieces(entry, size)
        try:
            data = b"".join(self.controller.dma.read(address, count) for address, count in pieces)
        except DmaFault as fault:
            raise error_from(fault, entry) from None
        found = []
        for _, blocks, lba in DSM_RANGE.iter_unpack(data):
            if lba + blocks > namespace.blocks:
                raise CommandError(Status.LBA_OUT_OF_RANGE, location=LBA_LOCATION, lba=lba)
            if blocks:
                found.append((lba * namespace.lba_size, blocks * namespace.lba_size))
        return found
