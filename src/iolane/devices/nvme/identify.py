"""Identify (Base 5.17): what the controller and its namespaces say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iolane.devices.nvme.health import CRITICAL_TEMPERATURE, WARNING_TEMPERATURE
from iolane.devices.nvme.namespace import Namespace
from iolane.devices.nvme.sgl import SGLS
from iolane.devices.nvme.spec import (
    ALL_NAMESPACES,
    ARBITRATION_BURST,
    ERROR_LOG_ENTRIES,
    EVENT_REQUEST_LIMIT,
    IDENTIFY_SIZE,
    Cns,
    CommandError,
    CommandSet,
    Status,
    invalid_field,
)
from iolane.devices.nvme.structures import Page, SubmissionEntry

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

MODEL = "iolane NVMe"
FIRMWARE = "1"
CONTROLLER_ID = 1
MDTS = 8
"""A command transfers at most 4 KiB << MDTS."""
ABORT_LIMIT = 4
ATTRIBUTE_NOTICES = 1 << 8
"""OAES and Asynchronous Event Configuration: Namespace Attribute Notices."""
LIST_ENTRIES = 1024

CNS_LOCATION, CSI_LOCATION, NSID_LOCATION = 40, 47, 4


class Identify:
    """Builds the structures, one method a CNS value."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self._builders: dict[int, Callable[[SubmissionEntry], Page]] = {
            Cns.NAMESPACE: self._namespace,
            Cns.CONTROLLER: lambda _: self.controller_page(),
            Cns.ACTIVE_NAMESPACES: self._active_list,
            Cns.NAMESPACE_DESCRIPTORS: self._descriptors,
            Cns.COMMAND_SET_NAMESPACE: self._command_set_namespace,
            Cns.COMMAND_SET_CONTROLLER: self._command_set_controller,
            Cns.COMMAND_SET_ACTIVE_NAMESPACES: self._command_set_active_list,
            Cns.INDEPENDENT_NAMESPACE: self._independent_namespace,
            Cns.COMMAND_SETS: self._command_sets,
        }

    def build(self, command: SubmissionEntry) -> bytes:
        """The 4096 bytes that answer the command."""
        builder = self._builders.get(command.cdw10 & 0xFF)
        if builder is None:
            raise invalid_field(CNS_LOCATION, f"CNS {command.cdw10 & 0xFF:#x} is not supported")
        return bytes(builder(command))

    def controller_page(self) -> Page:
        """Identify Controller data structure (Base 5.17.2.1, Figure 275; NVM Command Set 4.1.5.2)."""
        page = Page(IDENTIFY_SIZE)
        self._put_identity(page)
        page.put(77, 1, MDTS)
        page.put(92, 4, ATTRIBUTE_NOTICES)  # OAES
        page.put(96, 4, 1)  # CTRATT: 128-bit Host Identifier
        page.put(111, 1, 1)  # CNTRLTYPE: I/O controller
        page.put(256, 2, 1 << 8)  # OACS: Doorbell Buffer Config
        page.put(258, 1, ABORT_LIMIT - 1)
        page.put(259, 1, EVENT_REQUEST_LIMIT - 1)
        page.put(260, 1, 1 << 1 | 1)  # FRMW: one slot, read-only
        page.put(261, 1, 1 << 1 | 1 << 2 | 1 << 5)  # LPA: effects, extended data, supported log pages
        page.put(262, 1, ERROR_LOG_ENTRIES - 1)
        page.put(266, 2, WARNING_TEMPERATURE)
        page.put(268, 2, CRITICAL_TEMPERATURE)
        page.put(512, 1, 0x66)  # SQES: 64 bytes
        page.put(513, 1, 0x44)  # CQES: 16 bytes
        page.put(516, 4, max(self.controller.namespaces))  # NN
        # ONCS: Compare, Dataset Management, Write Zeroes, Save and Select fields, Timestamp
        page.put(520, 2, 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6)
        page.put(525, 1, 0b111)  # VWC: present, Flush takes all namespaces
        page.put(536, 4, SGLS)
        return page

    def _put_identity(self, page: Page) -> None:
        controller = self.controller
        page.put(0, 2, controller.vendor_id)
        page.put(2, 2, controller.subsystem_vendor_id)
        page.text(4, 20, controller.serial)
        page.text(24, 40, MODEL)
        page.text(64, 8, FIRMWARE)
        page.put(72, 1, ARBITRATION_BURST)  # RAB
        page.put(78, 2, CONTROLLER_ID)
        page.put(80, 4, controller.bar0.VS)
        page.raw(768, f"nqn.2014-08.org.nvmexpress:uuid:{controller.uuid}".encode())

    def _find(self, command: SubmissionEntry) -> Namespace | None:
        """The active namespace; None for a valid identifier of none (Base 3.2.1.5)."""
        if command.nsid == 0 or command.nsid > max(self.controller.namespaces):
            raise CommandError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)
        return self.controller.namespaces.get(command.nsid)

    def _namespace(self, command: SubmissionEntry) -> Page:
        """Identify Namespace data structure (NVM Command Set 4.1.5.1, Figure 97)."""
        page = Page(IDENTIFY_SIZE)
        namespace = self._find(command)
        if namespace is None:
            return page
        page.put(0, 8, namespace.blocks)  # NSZE
        page.put(8, 8, namespace.blocks)  # NCAP
        page.put(16, 8, namespace.blocks)  # NUSE
        if namespace.backend.reads_zeroes_after_discard:
            page.put(
                33, 1, 1 << 3 | 1
            )  # DLFEAT: Write Zeroes may deallocate, deallocated blocks read as zeroes
        page.put(99, 1, self.controller.is_write_protected(namespace))  # NSATTR
        page.put(130, 1, namespace.lba_size.bit_length() - 1)  # LBA format 0: LBADS
        return page

    def _independent_namespace(self, command: SubmissionEntry) -> Page:
        """I/O Command Set Independent Identify Namespace (Base 5.17.2.8, Figure 280)."""
        page = Page(IDENTIFY_SIZE)
        namespace = self._find(command)
        if namespace is not None:
            page.put(8, 1, self.controller.is_write_protected(namespace))  # NSATTR
            page.put(14, 1, 1)  # NSTAT: ready
        return page

    def _active_list(self, command: SubmissionEntry) -> Page:
        """Namespaces after the NSID, in order (Base 5.17.2.2)."""
        if command.nsid >= ALL_NAMESPACES - 1:
            raise CommandError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)
        page = Page(IDENTIFY_SIZE)
        found = [nsid for nsid in sorted(self.controller.namespaces) if nsid > command.nsid]
        for place, nsid in enumerate(found[:LIST_ENTRIES]):
            page.put(4 * place, 4, nsid)
        return page

    def _descriptors(self, command: SubmissionEntry) -> Page:
        """Namespace Identification Descriptors (Base 5.17.2.3, Figure 277): the UUID and the command set."""
        namespace = self._find(command)
        if namespace is None:
            raise invalid_field(NSID_LOCATION, f"namespace {command.nsid} is not active")
        page = Page(IDENTIFY_SIZE)
        page.raw(0, bytes((3, 16, 0, 0)) + namespace.uuid.bytes)
        page.raw(20, bytes((4, 1, 0, 0, CommandSet.NVM)))
        return page

    def _check_command_set(self, command: SubmissionEntry) -> None:
        if command.cdw11 >> 24 != CommandSet.NVM:
            raise invalid_field(CSI_LOCATION, f"command set {command.cdw11 >> 24} is not supported")

    def _command_set_namespace(self, command: SubmissionEntry) -> Page:
        """I/O Command Set specific Identify Namespace (NVM Command Set 4.1.5.3): no protection."""
        self._check_command_set(command)
        self._find(command)
        return Page(IDENTIFY_SIZE)

    def _command_set_controller(self, command: SubmissionEntry) -> Page:
        """I/O Command Set specific Identify Controller (NVM Command Set 4.1.5.4): no limits but MDTS."""
        self._check_command_set(command)
        return Page(IDENTIFY_SIZE)

    def _command_set_active_list(self, command: SubmissionEntry) -> Page:
        self._check_command_set(command)
        return self._active_list(command)

    def _command_sets(self, command: SubmissionEntry) -> Page:
        """Identify I/O Command Set (Base 5.17.2.21): one combination, the NVM Command Set alone."""
        if command.cdw10 >> 16 not in (CONTROLLER_ID, 0xFFFF):
            raise invalid_field(CNS_LOCATION + 2, "no such controller")
        page = Page(IDENTIFY_SIZE)
        page.put(0, 8, 1 << CommandSet.NVM)
        return page
