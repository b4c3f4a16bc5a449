"""Machines whose guest is a number of bytes, which go over the real stream."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence

from iolane.engines.qemu.migration_progress import Progress
from iolane.engines.qemu.migration_settings import MigrationSettings
from iolane.errors import IolaneError
from iolane.operations.migration.moved_device import Departed
from iolane.operations.migration.offer import Finding, Offer, OfferedDevice

OFFER = Offer(
    name="web",
    engine="11.1.3",
    accelerator="tcg",
    memory_mib=64,
    cpus=1,
    ports=4,
    devices=[OfferedDevice(id="disk", text="block,image=/x.raw")],
)
PIECE = bytes(1 << 14)
PIECES = 32
LAST = b"the last of it"


class FakeOutgoing:
    """Sends pieces, stands still, sends the last."""

    def __init__(self, machine: FakeSource, on_end: Callable[[bool], object]) -> None:
        self.stopped_at: float | None = None
        self._machine, self._on_end = machine, on_end
        self._sent = 0
        self._cancelled = False
        self._stream: socket.socket | None = None
        self._thread = threading.Thread(target=self._send, daemon=True)

    def start(self, stream: socket.socket) -> None:
        if self._machine.refuses:
            stream.close()
            raise IolaneError(self._machine.refuses)
        self._stream = stream
        self._thread.start()

    def _send(self) -> None:
        assert self._stream is not None
        complete = False
        try:
            for _ in range(PIECES):
                self._machine.may_send.acquire()
                self._stream.sendall(PIECE)
                self._sent += len(PIECE)
            self._machine.runs = False
            self.stopped_at = time.monotonic()
            self._machine.may_send.acquire()
            if not self._cancelled:
                self._stream.sendall(LAST)
                complete = True
        except OSError:
            pass
        self._stream.close()
        if not complete:
            self._machine.runs = self._machine.alive
        self._on_end(complete)

    def progress(self) -> Progress:
        return Progress(status="active", transferred=self._sent, total=PIECES * len(PIECE))

    def cancel(self) -> None:
        self._cancelled = True
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)
        for _ in range(PIECES + 1):
            self._machine.may_send.release()

    def reason(self) -> str:
        return "the stream broke"

    def close(self) -> None:
        self._on_end = lambda complete: None


class FakeSource:
    """Runs from the beginning."""

    def __init__(self, offer: Offer = OFFER, *, pieces: int = 10_000) -> None:
        self.runs = self.alive = True
        self.may_send = threading.Semaphore(pieces)
        self.held = False
        self.refuses = ""
        self.doubts = ""
        self.gone_to = ""
        self.leaving = threading.Event()
        self._offer = offer

    def offer(self) -> Offer:
        return self._offer

    def outgoing(self, settings: MigrationSettings, on_end: Callable[[bool], object]) -> FakeOutgoing:
        self.leaving.set()
        return FakeOutgoing(self, on_end)

    def begin(self) -> None:
        self.held = True

    def go_on(self) -> None:
        self.runs, self.held = True, False

    def doubt(self, reason: str) -> None:
        self.doubts = reason

    def end(self, place: str) -> None:
        assert not self.runs
        self.alive, self.gone_to = False, place


class FakeIncoming:
    """Takes what comes."""

    def __init__(self, machine: FakeDestination, on_end: Callable[[bool], object]) -> None:
        self._machine, self._on_end = machine, on_end
        self._stream: socket.socket | None = None

    def start(self, stream: socket.socket) -> None:
        self._stream = stream
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        assert self._stream is not None
        data = bytearray()
        with contextlib.suppress(OSError):
            while piece := self._stream.recv(1 << 16):
                data += piece
        self._stream.close()
        complete = data == PIECE * PIECES + LAST and not self._machine.can_not_take
        self._on_end(complete)

    def reason(self) -> str:
        return "the state does not fit"

    def close(self) -> None:
        self._on_end = lambda complete: None


class FakeDestination:
    """Stands still until it is let go."""

    def __init__(self) -> None:
        self.runs = self.destroyed = False
        self.can_not_take = False
        self.image_in_use = False
        self.doubts = ""
        self.brought: list[str] = []
        self.engine_ends: Callable[[], object] = lambda: None
        self.before_run: Callable[[], object] = lambda: None

    def incoming(self, settings: MigrationSettings, on_end: Callable[[bool], object]) -> FakeIncoming:
        return FakeIncoming(self, on_end)

    def on_lost(self, call: Callable[[], object]) -> None:
        self.engine_ends = call

    def on_decision(self, decide: Callable[[bool], bool]) -> None:
        self.decide = decide

    def take_images(self) -> None:
        self.before_run()
        if self.image_in_use:
            raise IolaneError("the image is in use")

    def run(self) -> None:
        assert not self.destroyed
        self.runs = True

    def doubt(self, reason: str) -> None:
        self.doubts = reason

    def bring(self, departed: Sequence[Departed]) -> list[str]:
        self.brought = [each.name for each in departed]
        return []

    def destroy(self) -> None:
        assert not self.runs
        self.destroyed = True


class FakeMaker:
    """Makes one machine that is prepared by the test, or refuses."""

    def __init__(self) -> None:
        self.machine = FakeDestination()
        self.findings: list[Finding] = []
        self.fails = ""
        self.made = 0

    def preflight(self, offer: Offer) -> tuple[list[Finding], list[str]]:
        return self.findings, ["a note"]

    def make(self, offer: Offer) -> FakeDestination:
        if self.fails:
            raise IolaneError(self.fails)
        self.made += 1
        if self.made > 1:
            self.machine = FakeDestination()
        return self.machine
