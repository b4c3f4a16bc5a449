"""Processes that are measured: started, ready, and the processor time that they have used."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from iolane.errors import IolaneError

CPUCLOCK_SCHED = 2


def cpu_ns(process: int) -> int:
    """Processor time that a process has used, all its threads (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns((~process) << 3 | CPUCLOCK_SCHED)


class ServerProcess:
    """A server that takes its socket's path as the last word, says `ready` and serves until it is stopped.

    Args:
        command: the words before that.
        socket: where it listens.
        environment: beside what this process has.
    """

    def __init__(
        self, command: Sequence[str], socket: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.socket = socket
        self.process = subprocess.Popen(
            [*command, str(socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def wait_ready(self) -> None:
        """Wait for its `ready`. Raises IolaneError: it has ended instead."""
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "ready":
            raise IolaneError(f"the server to be measured did not start (exit code {self.process.wait()})")

    def cpu_ns(self) -> int:
        """Processor time so far."""
        return cpu_ns(self.process.pid)

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
