"""Controllers with a bug in each, to be caught by the replay of a session with real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from iolane.backends.block import BlockBackend
from iolane.devices.nvme import Nvme
from iolane.devices.nvme.completions import Completions
from iolane.devices.nvme.io import Io
from iolane.devices.nvme.prp import Pieces, resolve_prps
from iolane.devices.nvme.queues import Completion, CompletionQueue
from iolane.devices.nvme.registers import Configuration, page_size
from iolane.devices.nvme.signals import Signals
from iolane.devices.nvme.spec import Status
from iolane.devices.nvme.structures import SubmissionEntry
from iolane.model.registers import Register32
from iolane.model.reset import ResetKind

EXPLAINED = {
    "bar0.VS": "QEMU's controller is of version 1.4",
    "bar0.CAP.MQES": "QEMU has longer queues",
    "bar0.CAP.TO": "QEMU promises to be faster",
    "bar0.CAP.CRMS": "ready modes came with version 2.0",
    "interrupt.INTX[0]": "our controller has no interrupt pin",
    "memory.cq0.STATUS": "admin commands that only QEMU has, see ADMIN_STATUSES",
    "memory.cq0.RESULT": "QEMU has more queues",
}
"""Where QEMU's controller is not as ours, and why both are right."""
ADMIN_STATUSES = {
    ("0x0", "0xb"): "Identify: QEMU has 256 namespace ids, most of them inactive; for us they are invalid",
    ("0x0", "0x2"): "Set Features: QEMU has Host Behavior Support",
    ("0x2", "0x1"): "Security Receive: QEMU has it, without the protocol that Linux asks for",
}
"""Status Codes of admin commands, recorded and replayed. I/O commands have no such differences."""


class WrongReset(Nvme):
    """CAP.CQR has the wrong reset value."""

    def _make_parts(self) -> None:
        super()._make_parts()
        self.bar0.CAP = self.bar0.CAP.replace(CQR=0)

    def reset_registers(self, kind: ResetKind) -> None:
        super().reset_registers(kind)
        self.bar0.CAP = self.bar0.CAP.replace(CQR=0)


class NeverReady(Nvme):
    """CSTS.RDY does not follow when CC.EN is set."""

    def _enable(self, configuration: Configuration) -> None:
        super()._enable(configuration)
        self.bar0.CSTS = self.bar0.CSTS.replace(RDY=0)


class StaysReady(Nvme):
    """CSTS.RDY does not follow when CC.EN is cleared."""

    def _reset_done(self) -> None:
        super()._reset_done()
        self.bar0.CSTS = self.bar0.CSTS.replace(RDY=1)


class WrongStride(Nvme):
    """Doorbells are 8 bytes apart, while CAP.DSTRD says 4."""

    def ring(self, index: int, value: Register32) -> None:
        if index % 2 == 0:
            super().ring(index // 2, value)


class OtherStatus(Completions):
    """I/O that succeeds completes with Write Fault."""

    def post(
        self, sqid: int, cid: int, status: Status = Status.SUCCESS, result: int = 0, *, more: bool = False
    ) -> None:
        failed = sqid and status is Status.SUCCESS
        super().post(sqid, cid, Status.WRITE_FAULT if failed else status, result, more=more)


class WrongStatus(Nvme):
    """I/O that succeeds completes with Write Fault."""

    def _make_parts(self) -> None:
        super()._make_parts()
        self.completions = OtherStatus(self)


class NoPhase(Completions):
    """The Phase Tag is the same in every lap of a queue."""

    def _write(self, queue: CompletionQueue, completion: Completion) -> None:
        queue.phase = 1
        super()._write(queue, completion)


class LostPhase(Nvme):
    """The Phase Tag does not change when a queue wraps."""

    def _make_parts(self) -> None:
        super()._make_parts()
        self.completions = NoPhase(self)


class OtherIdentifier(Completions):
    """Completions of I/O name other commands."""

    def post(
        self, sqid: int, cid: int, status: Status = Status.SUCCESS, result: int = 0, *, more: bool = False
    ) -> None:
        super().post(sqid, cid ^ 0x8000 if sqid else cid, status, result, more=more)


class WrongIdentifier(Nvme):
    """Completions of I/O name a command that they are not of."""

    def _make_parts(self) -> None:
        super()._make_parts()
        self.completions = OtherIdentifier(self)


class Mute(Signals):
    """Completions of I/O are not told of."""

    def mark(self, queue: CompletionQueue) -> None:
        if not queue.qid:
            super().mark(queue)


class Silent(Nvme):
    """I/O queues raise no interrupt."""

    def _make_parts(self) -> None:
        super()._make_parts()
        self.signals = Mute(self)


class OnlyPrps(Io):
    """PSDT is not looked at."""

    def _pieces(self, entry: SubmissionEntry, length: int) -> Pieces:
        page = page_size(self.controller.bar0.CC)
        return resolve_prps(self.controller.dma, entry.prp1, entry.prp2, length, page)


class NoLists(Nvme):
    """Takes the descriptor of a scatter gather list for PRPs."""

    def _make_parts(self) -> None:
        super()._make_parts()
        self.io = OnlyPrps(self)


class Broken(NamedTuple):
    """A model, and the first difference that its bug makes in a session."""

    model: Callable[..., Nvme]
    place: str

    def make(self, backend: BlockBackend) -> Nvme:
        return self.model(backend=backend)

    def __str__(self) -> str:
        return getattr(self.model, "__name__", "")


BROKEN = [
    Broken(WrongReset, "bar0.CAP.CQR"),
    Broken(NeverReady, "bar0.CSTS.RDY"),
    Broken(StaysReady, "bar0.CSTS.RDY"),
    Broken(WrongStride, "memory.cq0.P"),
    Broken(WrongStatus, "memory.cq1.STATUS.SC"),
    Broken(LostPhase, "memory.cq0.P"),
    Broken(WrongIdentifier, "memory.cq1"),
    Broken(Silent, "interrupt.MSIX[1]"),
    Broken(NoLists, "memory.cq1.STATUS.SC"),
]
