"""Get Log Page (Base 5.16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iolane.devices.nvme.identify import FIRMWARE
from iolane.devices.nvme.spec import (
    ALL_NAMESPACES,
    ERROR_LOG_ENTRIES,
    AdminOpcode,
    CommandError,
    CommandSet,
    FeatureId,
    IoOpcode,
    LogId,
    Status,
    invalid_field,
)
from iolane.devices.nvme.state import ErrorEntry
from iolane.devices.nvme.structures import Page, SubmissionEntry

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

SUPPORTED = 1 << 0
"""CSUPP, LSUPP and FSUPP: bit 0 of each entry of the pages that tell what is supported."""
CONTENT_CHANGES = 1 << 1
"""LBCC: the command may change logical blocks."""
NAMESPACE_SCOPE, CONTROLLER_SCOPE = 1 << 20, 1 << 21
LID_LOCATION, OFFSET_LOCATION, CSI_LOCATION = 40, 48, 59

WRITERS = (IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT)


class LogPages:
    """Builds the pages and keeps the error log."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self._builders: dict[int, Callable[[SubmissionEntry], bytes]] = {
            LogId.SUPPORTED_LOG_PAGES: self._supported,
            LogId.ERROR_INFORMATION: self._errors,
            LogId.SMART: self._smart,
            LogId.FIRMWARE_SLOT: self._firmware,
            LogId.CHANGED_NAMESPACES: self._changed_namespaces,
            LogId.COMMANDS_AND_EFFECTS: self._commands,
            LogId.FEATURES_AND_EFFECTS: self._features,
            LogId.MI_COMMANDS_AND_EFFECTS: lambda _: bytes(4096),
        }

    def build(self, command: SubmissionEntry) -> bytes:
        """The part of the page that the command asks for; short where the page ends."""
        builder = self._builders.get(command.cdw10 & 0xFF)
        if builder is None:
            raise CommandError(Status.INVALID_LOG_PAGE, location=LID_LOCATION)
        offset = command.cdw12 | command.cdw13 << 32
        if offset & 3 or command.cdw14 >> 23 & 1:
            raise invalid_field(OFFSET_LOCATION, "the log page offset is not a multiple of 4")
        page = builder(command)
        if offset > len(page):
            raise invalid_field(OFFSET_LOCATION, f"the log page has {len(page)} bytes")
        length = ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
        return page[offset : offset + length]

    def read(self, command: SubmissionEntry) -> None:
        """The page reached the host: without Retain Asynchronous Event its events are cleared."""
        if command.cdw10 >> 15 & 1:
            return
        log = command.cdw10 & 0xFF
        if log == LogId.CHANGED_NAMESPACES:
            self.controller.state.changed_namespaces.clear()
        self.controller.events.log_read(log)

    def record_error(self, *, sqid: int, cid: int, status: int, location: int, lba: int, nsid: int) -> None:
        """An entry of the Error Information log; the oldest makes room."""
        state = self.controller.state
        state.health.errors += 1
        entry = ErrorEntry(state.health.errors, sqid, cid, status, location, lba, nsid)
        state.errors = [entry, *state.errors[: ERROR_LOG_ENTRIES - 1]]

    def _supported(self, _: SubmissionEntry) -> bytes:
        """Supported Log Pages (Base 5.16.1.1)."""
        page = Page(1024)
        for log in self._builders:
            page.put(4 * log, 4, SUPPORTED)
        return bytes(page)

    def _errors(self, _: SubmissionEntry) -> bytes:
        """Error Information, newest first (Base 5.16.1.2, Figure 206)."""
        page = Page(64 * ERROR_LOG_ENTRIES)
        for place, entry in enumerate(self.controller.state.errors):
            at = 64 * place
            page.put(at, 8, entry.count)
            page.put(at + 8, 2, entry.sqid)
            page.put(at + 10, 2, entry.cid)
            page.put(at + 12, 2, entry.status << 1)
            page.put(at + 14, 2, entry.location)
            page.put(at + 16, 8, entry.lba)
            page.put(at + 24, 4, entry.nsid)
        return bytes(page)

    def _smart(self, command: SubmissionEntry) -> bytes:
        """Of the controller only: LPA has no SMART information by namespace."""
        if command.nsid not in (0, ALL_NAMESPACES):
            raise invalid_field(4, "SMART information is kept for the controller as a whole")
        return bytes(self.controller.health.page())

    def _firmware(self, _: SubmissionEntry) -> bytes:
        """Firmware Slot Information (Base 5.16.1.4): slot 1 is active."""
        page = Page(512)
        page.put(0, 1, 1)
        page.text(8, 8, FIRMWARE)
        return bytes(page)

    def _changed_namespaces(self, _: SubmissionEntry) -> bytes:
        """Changed Namespace List (Base 5.16.1.5)."""
        page = Page(4096)
        changed = sorted(self.controller.state.changed_namespaces)
        for place, nsid in enumerate(changed[:1024]):
            page.put(4 * place, 4, nsid)
        return bytes(page)

    def _commands(self, command: SubmissionEntry) -> bytes:
        """Commands Supported and Effects (Base 5.16.1.6, Figure 212)."""
        if command.cdw14 >> 24 != CommandSet.NVM:
            raise invalid_field(CSI_LOCATION, "no such I/O command set")
        page = Page(4096)
        for admin in AdminOpcode:
            page.put(4 * admin, 4, SUPPORTED)
        for opcode in IoOpcode:
            page.put(1024 + 4 * opcode, 4, SUPPORTED | (CONTENT_CHANGES if opcode in WRITERS else 0))
        return bytes(page)

    def _features(self, _: SubmissionEntry) -> bytes:
        """Feature Identifiers Supported and Effects (Base 5.16.1.18)."""
        page = Page(1024)
        for feature in FeatureId:
            scope = NAMESPACE_SCOPE if feature is FeatureId.ERROR_RECOVERY else CONTROLLER_SCOPE
            page.put(4 * feature, 4, SUPPORTED | scope)
        return bytes(page)
