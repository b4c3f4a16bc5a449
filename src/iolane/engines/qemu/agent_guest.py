"""What every machine can have done in its guest, where the guest has iolane's agent."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from iolane.engines.qemu.agent import CommandResult, GuestAgent, OutputFunction
from iolane.engines.qemu.patience import patient


class AgentGuest(ABC):
    """A guest that is asked by its agent, one thing at a time, from any thread."""

    _lock: threading.RLock

    @abstractmethod
    def _guest_agent(self) -> GuestAgent:
        """Its agent. Raises IolaneError where it has none."""

    @abstractmethod
    def _agent_errors(self) -> AbstractContextManager[None]:
        """Turns what goes wrong with the agent into what went wrong with the machine."""

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = 60.0,
        merge: bool = False,
        on_output: OutputFunction | None = None,
    ) -> CommandResult:
        """Runs a shell command in the guest: exit code, output, and whether it ran out of time."""
        with self._agent_errors(), self._lock:
            return self._guest_agent().run(
                command, stdin=stdin, timeout=timeout, merge=merge, on_output=on_output
            )

    def check(self, command: str | Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> str:
        """The output of a command that must succeed."""
        return self.run(command, stdin=stdin, timeout=timeout).check().output

    def push(self, path: str, data: bytes | Path, mode: int = 0o644, timeout: float = 120.0) -> None:
        """Writes a file in the guest."""
        content = data.read_bytes() if isinstance(data, Path) else data
        with self._agent_errors(), self._lock:
            self._guest_agent().push(path, content, mode, patient(timeout))

    def pull(self, path: str, timeout: float = 120.0) -> bytes:
        """Reads a file of the guest."""
        with self._agent_errors(), self._lock:
            return self._guest_agent().pull(path, patient(timeout))
