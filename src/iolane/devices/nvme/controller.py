"""The NVMe controller: a PCI function with the parts of this package behind its registers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from pathlib import Path

from iolane.backends.block import BlockBackend
from iolane.backends.file import FileBackend
from iolane.devices.nvme.accounts import Accounts
from iolane.devices.nvme.admin import Admin
from iolane.devices.nvme.arbitration import Arbiter
from iolane.devices.nvme.commands import NO_LOCATION, Commands
from iolane.devices.nvme.completions import Completions
from iolane.devices.nvme.events import AsyncEvents
from iolane.devices.nvme.features import Features
from iolane.devices.nvme.health import Health
from iolane.devices.nvme.identify import ATTRIBUTE_NOTICES, Identify
from iolane.devices.nvme.io import Io
from iolane.devices.nvme.log_pages import LogPages
from iolane.devices.nvme.namespace import Namespace
from iolane.devices.nvme.queue_management import Queues
from iolane.devices.nvme.queues import CompletionQueue, SubmissionQueue
from iolane.devices.nvme.registers import (
    BAR_SIZE,
    MAX_PAGE_SHIFT,
    Configuration,
    NvmeRegisters,
    page_size,
)
from iolane.devices.nvme.shadow import ShadowDoorbells
from iolane.devices.nvme.signals import Signals
from iolane.devices.nvme.spec import (
    CommandSetSelected,
    ErrorEvent,
    EventType,
    LogId,
    NoticeEvent,
    ShutdownStatus,
    Status,
)
from iolane.devices.nvme.state import NvmeState, check_state
from iolane.errors import IolaneError
from iolane.model.pci import Bar, BarKind, Intx, Msix, PciDevice, Presentation
from iolane.model.registers import Register32
from iolane.model.reset import ResetKind

MAX_QUEUE_PAIRS = 16
_NAMESPACE_UUIDS = uuid.UUID("6ab6f3a5-6a3c-5a6e-9d0f-0f6b6f0c4e10")
_log = logging.getLogger("iolane.nvme")


class Nvme(PciDevice):
    """An NVMe 2.0 controller with one namespace for each disk image.

    Args:
        image: raw file or block device of namespace 1.
        namespaces: images of further namespaces.
        backend: the back end of namespace 1 instead of an image.
        backends: back ends of further namespaces.
        read_only: open the images read-only; the namespaces are write protected.
        serial: the serial number, up to 20 characters.
        lba_size: bytes of a logical block, 512 or 4096.
        queues: I/O queue pairs, up to 16.
        presentation: which interrupts the guest sees.
    """

    # Not QEMU's 1b36:0010: Linux works around what that one once lacked (NVME_QUIRK_IDENTIFY_CNS and others).
    vendor_id, device_id, class_code = 0x1234, 0x0010, 0x010802
    subsystem_vendor_id, subsystem_id = 0x1234, 0x0010
    revision_id = 1

    bar0 = Bar(NvmeRegisters, size=BAR_SIZE, kind=BarKind.MEM64)
    msix = Msix(vectors=MAX_QUEUE_PAIRS + 1)
    intx = Intx()

    State = NvmeState
    state: NvmeState

    def __init__(
        self,
        image: Path | None = None,
        *,
        namespaces: Sequence[Path] = (),
        backend: BlockBackend | None = None,
        backends: Sequence[BlockBackend] = (),
        read_only: bool = False,
        serial: str = "IOLANE0001",
        lba_size: int = 512,
        queues: int = 8,
        presentation: Presentation | str = Presentation.AUTO,
        name: str | None = None,
    ) -> None:
        if not 1 <= queues <= MAX_QUEUE_PAIRS:
            raise IolaneError(f"an NVMe controller has 1 to {MAX_QUEUE_PAIRS} queues, not {queues}")
        if not serial.isascii() or not serial.isprintable() or not 0 < len(serial) <= 20:
            raise IolaneError(f"the serial number '{serial}' is not 1 to 20 printable ASCII characters")
        self.serial = serial
        self.uuid = uuid.uuid5(_NAMESPACE_UUIDS, serial)
        self.queue_pairs = queues
        self.namespaces: dict[int, Namespace] = {}
        self.running = False
        """Commands are fetched and completed."""
        self.ending = False
        """A reset or a shutdown waits for commands."""
        self._resetting = False
        self._flushing = False
        super().__init__(presentation=presentation, name=name)
        self._make_parts()
        images = [*([image] if image is not None else []), *namespaces]
        self._open(images, [*([backend] if backend is not None else []), *backends], read_only, lba_size)

    def _make_parts(self) -> None:
        self.accounts = Accounts(self)
        self.arbiter = Arbiter(self)
        self.commands = Commands(self)
        self.completions = Completions(self)
        self.events = AsyncEvents(self)
        self.features = Features(self)
        self.health = Health(self)
        self.identify = Identify(self)
        self.log_pages = LogPages(self)
        self.queues = Queues(self)
        self.shadow = ShadowDoorbells(self)
        self.signals = Signals(self)
        self.io = Io(self)
        self.admin = Admin(self)

    def _open(self, images: list[Path], backends: list[BlockBackend], read_only: bool, lba_size: int) -> None:
        if not images and not backends:
            raise IolaneError("an NVMe controller needs a disk", remedy="add image=disk.raw")
        opened: list[BlockBackend] = []
        try:
            for path in images:
                opened.append(FileBackend(path, read_only=read_only))
            for nsid, backend in enumerate([*opened, *backends], 1):
                identity = uuid.uuid5(self.uuid, str(nsid))
                self.namespaces[nsid] = Namespace(nsid, backend, lba_size, identity)
        except BaseException:
            for backend in opened:
                backend.close()
            raise

    # Registers.

    def _look_at_status(self) -> None:
        """CSTS or CC changed: commands run with RDY, without CFS, and while EN is not cleared."""
        status = self.bar0.CSTS
        self.running = bool(status.RDY and not status.CFS and self.bar0.CC.EN)

    @bar0.on_write(NvmeRegisters.CC)
    def configure(self, configuration: Configuration) -> None:
        """CC.EN enables and resets the controller, CC.SHN shuts it down (Base 3.1.3.5)."""
        status = self.bar0.CSTS
        if configuration.EN and not status.RDY and not status.CFS:
            self._enable(configuration)
        elif not configuration.EN and (status.RDY or status.CFS):
            self._controller_reset()
        self._look_at_status()
        if configuration.SHN and self.bar0.CSTS.SHST == ShutdownStatus.NORMAL_OPERATION:
            self._shut_down()

    @bar0.on_write(NvmeRegisters.INTMS)
    def mask_interrupts(self, bits: Register32) -> None:
        """Interrupt Mask Set (Base 3.1.3.3)."""
        self._set_interrupt_mask(self.state.interrupt_mask | int(bits))

    @bar0.on_write(NvmeRegisters.INTMC)
    def unmask_interrupts(self, bits: Register32) -> None:
        """Interrupt Mask Clear (Base 3.1.3.4)."""
        self._set_interrupt_mask(self.state.interrupt_mask & ~int(bits))

    def _set_interrupt_mask(self, mask: int) -> None:
        self.bar0.INTMS = self.bar0.INTMC = mask
        self.signals.set_mask(mask)

    @bar0.on_write(NvmeRegisters.DOORBELL)
    def ring(self, index: int, value: Register32) -> None:
        """Doorbells (PCIe Transport 3.1.2): submission queue y has 2y, completion queue y has 2y + 1."""
        if not self.running:
            return
        qid = index >> 1
        if index & 1:
            completion = self.state.completion.get(qid)
            if completion is None:
                self.report_doorbell(ErrorEvent.INVALID_DOORBELL_REGISTER)
            else:
                self._ring_completion(completion, value)
            return
        submission = self.state.submission.get(qid)
        if submission is None:
            self.report_doorbell(ErrorEvent.INVALID_DOORBELL_REGISTER)
        else:
            self._ring_submission(submission, value)

    def _ring_submission(self, queue: SubmissionQueue, tail: int) -> None:
        if self.shadow.covers(queue.qid):
            if tail >= queue.size:
                self.report_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE)
                return
        elif queue.accepts(tail):
            queue.tail = int(tail)
            self.shadow.rung(2 * queue.qid, tail)
        else:
            self.report_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE)
            return
        self.arbiter.ring(queue.qid)

    def _ring_completion(self, queue: CompletionQueue, head: int) -> None:
        if self.shadow.covers(queue.qid):
            if head >= queue.size:
                self.report_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE)
                return
            self.shadow.refresh_head(queue)
        elif queue.accepts(head):
            queue.head = int(head)
            self.shadow.rung(2 * queue.qid + 1, head)
        else:
            self.report_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE)
            return
        self.completions.consumed(queue)

    def report_doorbell(self, event: ErrorEvent) -> None:
        """A doorbell of no queue, or an impossible value (Base 5.2.1, Figure 146)."""
        self.counters.add("invalid_doorbells")
        self.log_pages.record_error(
            sqid=0xFFFF, cid=0xFFFF, status=Status.SUCCESS, location=NO_LOCATION, lba=0, nsid=0
        )
        self.events.report(EventType.ERROR, event, LogId.ERROR_INFORMATION)

    # Life.

    def _enable(self, configuration: Configuration) -> None:
        """CC.EN goes to 1 (Base 3.5.1). What can't be is fatal, which is all the specification offers."""
        attributes = self.bar0.AQA
        page = page_size(configuration)
        if not attributes.ASQS or not attributes.ACQS:
            self.fail("an admin queue has at least 2 entries")
        elif configuration.MPS > MAX_PAGE_SHIFT or configuration.AMS:
            self.fail(f"CC {configuration!r} asks for what CAP does not offer")
        elif configuration.CSS not in (CommandSetSelected.NVM, CommandSetSelected.ALL):
            self.fail(f"CC.CSS {configuration.CSS} is not supported")
        elif (self.bar0.ASQ | self.bar0.ACQ) & (page - 1):
            self.fail("an admin queue does not start at a page's start")
        else:
            state = self.state
            state.submission[0] = SubmissionQueue(0, int(self.bar0.ASQ), attributes.ASQS + 1, 0)
            state.completion[0] = CompletionQueue(0, int(self.bar0.ACQ), attributes.ACQS + 1, 0, True)
            self.bar0.CSTS = self.bar0.CSTS.replace(RDY=1, SHST=ShutdownStatus.NORMAL_OPERATION)

    def _controller_reset(self) -> None:
        """CC.EN goes to 0 (Base 3.7.2): CSTS.RDY follows when no command touches the guest's memory."""
        self.running = False
        self.queues.deleting.clear()
        self.commands.abandon()
        self._forget()
        self.bar0.CSTS = self.bar0.CSTS.replace(SHST=ShutdownStatus.NORMAL_OPERATION)
        self._resetting = self.ending = True
        self.look_whether_idle()

    def look_whether_idle(self) -> None:
        """A reset or a shutdown that waits for commands goes on when there are none."""
        if not self.commands.idle:
            return
        self.ending = False
        if self._resetting:
            self._resetting = False
            self._reset_done()
        if self.bar0.CSTS.SHST == ShutdownStatus.OCCURRING and not self._flushing:
            self._flushing = True
            self.tasks.run(self.flush_all, lambda _: self._shut(), self._shut_badly)

    def _reset_done(self) -> None:
        self.bar0.CSTS = self.bar0.CSTS.replace(RDY=0, CFS=0)
        if self.bar0.CC.EN:
            self._enable(self.bar0.CC)
        self._look_at_status()

    def _forget(self) -> None:
        """What every controller level reset takes away: queues, events, features, masks (Base 3.7.2)."""
        self.arbiter.reset()
        self.queues.reset()
        self.shadow.reset()
        self.events.reset()
        self.features.reset()
        self.signals.reset()
        self.state.unsent.clear()
        self.state.changed_namespaces.clear()
        self.state.health.reported_warnings = 0
        self.state.interrupt_mask = 0
        self.bar0.INTMS = self.bar0.INTMC = 0

    def _shut_down(self) -> None:
        """CC.SHN (Base 3.6): everything is made safe before CSTS.SHST says complete."""
        self.bar0.CSTS = self.bar0.CSTS.replace(SHST=ShutdownStatus.OCCURRING)
        self.ending = True
        self.look_whether_idle()

    def _shut(self) -> None:
        self._flushing = False
        if self.bar0.CSTS.SHST == ShutdownStatus.OCCURRING:
            self.bar0.CSTS = self.bar0.CSTS.replace(SHST=ShutdownStatus.COMPLETE)

    def _shut_badly(self, error: BaseException) -> None:
        _log.error("%s: flushing at shutdown failed: %s", self.name, error)
        self.state.health.media_errors += 1
        self._shut()

    def flush_all(self) -> None:
        """Make every namespace safe from loss of power. Runs without the device's lock."""
        for namespace in self.namespaces.values():
            if not namespace.backend.read_only:
                namespace.backend.flush()

    def fail(self, reason: str) -> None:
        """Controller Fatal Status (Base 3.1.3.6, 9.5): only a reset helps. A guest can cause it for ever."""
        if self.bar0.CSTS.CFS:
            return
        self.bar0.CSTS = self.bar0.CSTS.replace(CFS=1)
        self._look_at_status()
        self.accounts.fatal = reason
        self.counters.add("fatal_errors")
        count = self.counters["fatal_errors"]
        if not count & (count - 1):
            _log.warning("%s: controller fatal status, time %d: %s", self.name, count, reason)

    def reset_state(self) -> None:
        """Health and the error log survive resets."""
        health, errors = self.state.health, self.state.errors
        protected = self.state.write_protected
        super().reset_state()
        self.state.health, self.state.errors, self.state.write_protected = health, errors, protected

    def reset_registers(self, kind: ResetKind) -> None:
        """A conventional reset without a shutdown before it counts as an unsafe one (Base 5.16.1.3)."""
        if kind is ResetKind.CONVENTIONAL and self.bar0.CSTS.RDY:
            if self.bar0.CSTS.SHST != ShutdownStatus.COMPLETE:
                self.state.health.unsafe_shutdowns += 1
            self.state.health.power_cycles += 1
        super().reset_registers(kind)

    def on_reset(self, kind: ResetKind) -> None:
        """Conventional reset and FLR: the device has been drained."""
        self.counters.add("function_resets")
        self._look_at_status()
        self.ending = self._resetting = False
        self.commands.reset()
        self._forget()

    def on_resume(self) -> None:
        """Fetch what was submitted meanwhile; without memory (nobody is connected) at the next doorbell."""
        self.arbiter.hold_all()
        if self.dma.maps:
            self.arbiter.wake()

    def on_pause(self) -> None:
        """Completions that were held back for coalescing go out now."""
        self.signals.send_held()

    def on_save(self) -> None:
        """Bring the counters of time up to now."""
        self.health.account()

    def on_load(self) -> None:
        """The loaded queues are checked as if the guest had made them."""
        check_state(self.state, self.queue_pairs)
        self.ending = self._resetting = False
        self.commands.reset()
        self.queues.deleting.clear()
        self.arbiter.reset()
        self.health.restart_clock()
        self._look_at_status()
        if self.bar0.CSTS.SHST == ShutdownStatus.OCCURRING:
            self.bar0.CSTS = self.bar0.CSTS.replace(SHST=ShutdownStatus.COMPLETE)
        self.signals.update_pin()

    # The host's side.

    def is_write_protected(self, namespace: Namespace) -> bool:
        """Whether the guest may not write the namespace."""
        return namespace.backend.read_only or namespace.nsid in self.state.write_protected

    def set_write_protected(self, nsid: int, protected: bool) -> None:
        """Protect a namespace from the guest's writes or no longer, and tell the guest (Base 5.2.1)."""
        with self.lock:
            if nsid not in self.namespaces:
                raise IolaneError(f"{self.name} has no namespace {nsid}")
            state = self.state
            before = nsid in state.write_protected
            if protected == before:
                return
            if protected:
                state.write_protected.append(nsid)
            else:
                state.write_protected.remove(nsid)
            self._namespace_changed(nsid)

    def _namespace_changed(self, nsid: int) -> None:
        if nsid not in self.state.changed_namespaces:
            self.state.changed_namespaces.append(nsid)
        if self.features.values.async_events & ATTRIBUTE_NOTICES:
            self.events.report(
                EventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogId.CHANGED_NAMESPACES
            )

    def statistics(self) -> dict[str, int | float | str]:
        """Commands, bytes and latencies, in all and by queue."""
        return self.accounts.snapshot()

    def close(self) -> None:
        """Finish what is in flight and close the images."""
        super().close()
        for namespace in self.namespaces.values():
            namespace.backend.close()
