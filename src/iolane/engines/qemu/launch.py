"""A running QEMU with its channels: control connection, console, agent. All are socket pairs, so nothing of a
machine is left in the file system."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from iolane.engines.qemu.agent import GuestAgent
from iolane.engines.qemu.command_line import Hardware, command_line
from iolane.engines.qemu.console import Console
from iolane.engines.qemu.process import QemuProcess
from iolane.engines.qemu.provision import Qemu
from iolane.engines.qemu.qmp import Qmp
from iolane.errors import IolaneError


class Running:
    """What belongs to one QEMU process. `close` ends and frees all of it."""

    def __init__(
        self, qemu: Qemu, hardware: Hardware, log: Path, on_message: Callable[[str], None], *, agent: bool
    ) -> None:
        with contextlib.ExitStack() as undo:
            with _channels() as (ours, theirs):
                hardware = replace(
                    hardware,
                    qmp_fd=theirs[0].fileno(),
                    console_fd=theirs[1].fileno(),
                    agent_fd=theirs[2].fileno() if agent else None,
                )
                arguments = [*qemu.command, *command_line(hardware)]
                self.qmp = Qmp(hardware.name)
                undo.callback(self.qmp.close)
                fds = [end.fileno() for end in theirs]
                self.process = self.qmp.in_thread(
                    lambda: QemuProcess(arguments, qemu.environment, fds, on_message)
                )
                undo.callback(self.process.kill)
                control, console, self._agent_port = (end.dup() for end in ours)
            undo.callback(self._agent_port.close)
            self._control = control
            undo.callback(control.close)
            self.console = Console(console, log)
            undo.pop_all()
        self.agent = GuestAgent(self._agent_port) if agent else None

    def connect(self) -> None:
        """Negotiates with QEMU; raises `QmpLostError` when it has not come up."""
        self.qmp.connect(self._control)

    def close(self) -> None:
        """Asks QEMU to quit, makes sure it has, and frees everything."""
        if self.process.running:
            with contextlib.suppress(IolaneError):
                self.qmp.execute("quit", 2.0)
                self.process.wait(2.0)
        self.process.kill()
        self.qmp.close()
        self._control.close()
        self.console.close()
        self._agent_port.close()


@contextlib.contextmanager
def _channels() -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """Three socket pairs: our ends and QEMU's. They are closed behind the block: duplicate what is kept."""
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(3)]
        for ours, theirs in pairs:
            stack.callback(ours.close)
            stack.callback(theirs.close)
        yield [ours for ours, _ in pairs], [theirs for _, theirs in pairs]
