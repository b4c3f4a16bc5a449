"""A device in a process of its own: CPU-heavy device code then has an interpreter for itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from iolane.devices.registry import carrier_of
from iolane.devices.specification import DeviceSpecification
from iolane.errors import IolaneError

_PATIENCE = 10.0
"""Seconds for a device process to end after SIGTERM."""


class DeviceProcess:
    """`iolane serve` as a child. It ends with its parent, even when that is killed: it holds a pipe's end."""

    def __init__(self, device: DeviceSpecification, name: str, socket: Path) -> None:
        self.name = name
        self.socket = socket
        self._log = socket.with_suffix(".log")
        lifeline, self._lifeline = os.pipe()
        command = [sys.executable, "-m", "iolane", "serve", device.device_text()]
        command += ["--carrier", carrier_of(device)]
        command += ["--socket", str(socket), "--name", name, "--lifeline", str(lifeline), "--json"]
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    pass_fds=(lifeline,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Return when the child listens; raises IolaneError with what it said when it ended instead."""
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._process.wait()
            raise IolaneError(self._last_words())

    def problem(self) -> str | None:
        """What happened, when the child is no longer running."""
        code = self._process.poll()
        if code is None:
            return None
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the process of {self.name} was {how}" if code < 0 else f"the process of {self.name} {how}"

    def stop(self) -> None:
        """End the child and wait for it."""
        self._process.terminate()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").splitlines()
            said = [line.removeprefix("iolane: ") for line in lines if line.startswith("iolane: ")]
            if said:
                return said[-1]
        return f"{self.problem() or f'the process of {self.name} did not start'}; its log is {self._log}"
