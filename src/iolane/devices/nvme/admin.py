"""Admin commands (Base 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iolane.devices.nvme.commands import Command, error_from
from iolane.devices.nvme.prp import Pieces, resolve_prps
from iolane.devices.nvme.registers import page_size
from iolane.devices.nvme.spec import (
    FUSE,
    PSDT,
    AdminOpcode,
    CommandError,
    FeatureId,
    Status,
    invalid_field,
)
from iolane.devices.nvme.structures import SubmissionEntry
from iolane.model.dma import DmaFault

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

FLAGS_LOCATION, OPCODE_LOCATION = 1, 0
NOT_ABORTED = 1
"""Dword 0, bit 0 of Abort's completion."""


def check_flags(entry: SubmissionEntry) -> None:
    """No fused operations (FUSES of Identify Controller is 0); over PCIe admin commands use PRPs, never SGLs
    (Base, Figure 87, FUSE and PSDT).
    """
    if entry.flags & (FUSE | PSDT):
        raise invalid_field(FLAGS_LOCATION, "admin commands are not fused and have no SGLs")


class Admin:
    """Executes the commands of the Admin Submission Queue."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        queues = controller.queues
        self._simple: dict[int, Callable[[SubmissionEntry], int]] = {
            AdminOpcode.CREATE_SQ: queues.create_submission,
            AdminOpcode.CREATE_CQ: queues.create_completion,
            AdminOpcode.DELETE_CQ: queues.delete_completion,
            AdminOpcode.IDENTIFY: self._identify,
            AdminOpcode.GET_LOG_PAGE: self._get_log_page,
            AdminOpcode.ABORT: self._abort,
            AdminOpcode.GET_FEATURES: self._get_features,
            AdminOpcode.DOORBELL_BUFFER_CONFIG: controller.shadow.configure,
        }

    def execute(self, command: Command) -> None:
        """Execute a command: at once, but for those that wait for others or for the back ends."""
        entry = command.entry
        check_flags(entry)
        simple = self._simple.get(entry.opcode)
        if simple is not None:
            self.controller.commands.finish(command, simple(entry))
            return
        match entry.opcode:
            case AdminOpcode.SET_FEATURES:
                self._set_features(command)
            case AdminOpcode.DELETE_SQ:
                self.controller.queues.delete_submission(command)
            case AdminOpcode.ASYNC_EVENT_REQUEST:
                self._async_event_request(command)
            case _:
                raise CommandError(Status.INVALID_OPCODE, location=OPCODE_LOCATION)

    def _pieces(self, entry: SubmissionEntry, length: int) -> Pieces:
        page = page_size(self.controller.bar0.CC)
        return resolve_prps(self.controller.dma, entry.prp1, entry.prp2, length, page)

    def _to_host(self, entry: SubmissionEntry, data: bytes) -> None:
        at = 0
        try:
            for address, length in self._pieces(entry, len(data)):
                self.controller.dma.write(address, data[at : at + length])
                at += length
        except DmaFault as fault:
            raise error_from(fault, entry) from None

    def _from_host(self, entry: SubmissionEntry, length: int) -> bytes:
        try:
            return b"".join(
                self.controller.dma.read(address, count) for address, count in self._pieces(entry, length)
            )
        except DmaFault as fault:
            raise error_from(fault, entry) from None

    def _identify(self, entry: SubmissionEntry) -> int:
        self._to_host(entry, self.controller.identify.build(entry))
        return 0

    def _get_log_page(self, entry: SubmissionEntry) -> int:
        self._to_host(entry, self.controller.log_pages.build(entry))
        self.controller.log_pages.read(entry)
        return 0

    def _get_features(self, entry: SubmissionEntry) -> int:
        answer = self.controller.features.get(entry)
        if answer.data:
            self._to_host(entry, answer.data)
        return answer.result

    def _set_features(self, command: Command) -> None:
        """Switching the write cache off ends when what it holds is safe."""
        entry, controller = command.entry, self.controller
        length = controller.features.data_length(entry)
        result = controller.features.set(entry, self._from_host(entry, length) if length else b"")
        if (
            entry.cdw10 & 0xFF == FeatureId.VOLATILE_WRITE_CACHE
            and not controller.features.values.write_cache
        ):
            controller.commands.run(command, controller.flush_all)
        else:
            controller.commands.finish(command, result)

    def _abort(self, entry: SubmissionEntry) -> int:
        """Abort (Base 5.1): what waits for a worker or an event is aborted, what has begun is not."""
        sqid, cid = entry.cdw10 & 0xFFFF, entry.cdw10 >> 16
        if sqid == 0 and self.controller.events.abort(cid):
            return 0
        command = self.controller.commands.active.get((sqid, cid))
        if command is not None and self.controller.commands.cancel(command, Status.ABORT_REQUESTED):
            return 0
        return NOT_ABORTED

    def _async_event_request(self, command: Command) -> None:
        """It leaves the commands that are executed and waits for an event (Base 5.2)."""
        self.controller.commands.withdraw(command)
        try:
            self.controller.events.request(command.entry.cid)
        except CommandError as error:
            self.controller.commands.reject(0, command.entry, error)
