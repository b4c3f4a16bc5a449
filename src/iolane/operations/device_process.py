"""A device in a process of its own: CPU-heavy device code then has an interpreter for itself."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from iolane.devices.registry import carrier_of
from iolane.devices.specification import DeviceSpecification
from iolane.errors import IolaneError

_PATIENCE = 10.0
"""Seconds for a device process to end after SIGTERM."""
_LONGEST_LINE = 64 << 10


class Failure(msgspec.Struct, frozen=True):
    """What a device process says on its stdout in place of how to use the device."""

    error: str
    remedy: str | None = None


class DeviceProcess:
    """`iolane serve` as a child. It ends with its parent, even when that is killed: it holds a pipe's end.

    Args:
        device: what it serves.
        name: the device's.
        socket: where.
        options: more options of `iolane serve`.
        environment: variables beside those of this process.
        own_log: what it says goes to a file beside the socket; else to this process's stderr.
    """

    def __init__(
        self,
        device: DeviceSpecification,
        name: str,
        socket: Path,
        *,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        own_log: bool = True,
    ) -> None:
        self.name = name
        self.socket = socket
        self._log = socket.with_suffix(".log") if own_log else None
        self._said = b""
        lifeline, self._lifeline = os.pipe()
        command = [sys.executable, "-m", "iolane", "serve", device.device_text()]
        command += ["--carrier", carrier_of(device)]
        command += ["--socket", str(socket), "--name", name, "--lifeline", str(lifeline), "--json", *options]
        try:
            with contextlib.ExitStack() as stack:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stack.enter_context(self._log.open("wb")) if self._log is not None else None,
                    env={**os.environ, **(environment or {})},
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

    def wait_ready(self, patience: float | None = None, cancel: int | None = None) -> bytes:
        """Return when the child listens, with what it said of how to use the device: JSON.

        Args:
            patience: seconds; None: as long as it takes.
            cancel: a descriptor; when it can be read, nobody waits any more.

        Raises:
            IolaneError: with what it said when it ended instead, or the time is over.
        """
        line = self._line(patience, cancel)
        if line is None:
            raise IolaneError(f"the process of {self.name} was not ready within {patience:g} s")
        if not line:
            self._process.wait()
            raise IolaneError(self._last_words())
        with contextlib.suppress(msgspec.DecodeError):
            failure = msgspec.json.decode(line, type=Failure)
            self._process.wait()
            raise IolaneError(failure.error, remedy=failure.remedy)
        return line

    def _line(self, patience: float | None, cancel: int | None) -> bytes | None:
        """Its first line; empty when it ended without one, None when the time is over."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = None if patience is None else time.monotonic() + patience
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if cancel is not None:
            poll.register(cancel, select.POLLIN)
        while b"\n" not in self._said and len(self._said) < _LONGEST_LINE:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = {found for found, _ in poll.poll(left)}
            if cancel in ready:
                raise IolaneError(f"the process of {self.name} is waited for no more")
            if not ready:
                return None
            part = os.read(descriptor, _LONGEST_LINE)
            if not part:
                return b""
            self._said += part
        return self._said.partition(b"\n")[0]

    def problem(self) -> str | None:
        """What happened, when the child is no longer running."""
        code = self._process.poll()
        if code is None:
            return None
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the process of {self.name} was {how}" if code < 0 else f"the process of {self.name} {how}"

    def kill(self) -> None:
        """End it at once; `stop` has to follow."""
        self._process.kill()

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
        ended = self.problem() or f"the process of {self.name} did not start"
        if self._log is None:
            return ended
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").splitlines()
            said = [line.removeprefix("iolane: ") for line in lines if line.startswith("iolane: ")]
            if said:
                return said[-1]
        return f"{ended}; its log is {self._log}"
