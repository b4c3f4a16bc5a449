"""The User Mode Linux process and those of its guest: started so that they cannot outlive us."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from queue import SimpleQueue

from iolane.errors import IolaneError


class UmlProcess:
    """Started and waited for in a thread of its own: the kernel dies with that thread (PR_SET_PDEATHSIG)."""

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int]) -> None:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise IolaneError("setpriv is not installed", remedy="apt-get install util-linux")
        self._command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        self._fds = tuple(pass_fds)
        self.output = b""
        """What it said beside the console: why it did not start, for instance."""
        self._ended = threading.Event()
        started: SimpleQueue[subprocess.Popen[bytes] | OSError] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(started,), name="uml", daemon=True)
        self._thread.start()
        process = started.get()
        if isinstance(process, OSError):
            raise IolaneError(f"{command[0]} cannot be started: {process.strerror}") from process
        self._process = process

    def _run(self, started: SimpleQueue[subprocess.Popen[bytes] | OSError]) -> None:
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=self._fds,
                start_new_session=True,  # its guest's processes are of its group, and Ctrl-C is ours
            )
        except OSError as error:
            started.put(error)
            return
        started.put(process)
        self.output = process.communicate()[0]
        self._ended.set()

    @property
    def pid(self) -> int:
        """The process id of the kernel."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait until it has ended by itself; False when it has not in time."""
        return self._ended.wait(timeout)

    def kill(self) -> None:
        """End the kernel and every process of its guest; return when the kernel is gone."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._thread.join()
