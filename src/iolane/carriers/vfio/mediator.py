"""iolane between a guest and a physical function: a vfio-user server in front of VFIO."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from iolane.carriers.vfio.function import VfioFunction
from iolane.carriers.vfio.interrupt_relay import InterruptRelay
from iolane.carriers.vfio.mediated import MediatedFunction
from iolane.carriers.vfio_user.server import VfioUserServer
from iolane.model.registers import RegisterMap
from iolane.model.trace import Tracer
from iolane.model.trace.recording import Recorder
from iolane.model.workers import Workers


class Mediator:
    """Serves `function` at `path`. A context manager: entering listens, leaving ends it.

    What is mapped straight through is fixed when the guest's hypervisor connects (QEMU asks once, when the
    device is realized): `trap` must name then what is to be traced or hooked later.

    Args:
        function: the hardware, which stays the caller's.
        path: of the socket.
        maps, trap, name: see `MediatedFunction`.
        recorder: records the session; interrupts then take the way through this process.

    Attributes:
        device: the function as it is served.
        tracer: its trace, with hooks that change, delay (they may wait: the guest's CPU waits with them) or
            drop accesses; `device.inject` makes interrupts.
        server: the vfio-user server, once started.
    """

    def __init__(
        self,
        function: VfioFunction,
        path: str | os.PathLike[str],
        *,
        maps: Mapping[int, type[RegisterMap]] | None = None,
        trap: str | None = "*",
        name: str | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.device = MediatedFunction(function, maps=maps, trap=trap, name=name)
        self.tracer = Tracer(self.device)
        self.path = path
        self.server: VfioUserServer | None = None
        self._recorder = recorder
        self._stack = ExitStack()

    def start(self) -> None:
        """Listen. Raises `SocketError`."""
        with ExitStack() as stack:
            stack.callback(self.device.close)
            workers = stack.enter_context(Workers(1))
            server = VfioUserServer(self.device, self.path, workers=workers)
            if self._recorder is not None:
                relay = stack.enter_context(InterruptRelay(self.device))
                self.device.tap_interrupts(relay.tap)
                stack.callback(self.device.tap_interrupts, None)
                stack.callback(self._recorder.attach(self.device, self.tracer))
            stack.enter_context(server)
            self.server = server
            self._stack = stack.pop_all()

    def stop(self) -> None:
        """Throw the guest out and let go of the hardware. Idempotent."""
        self._stack.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
