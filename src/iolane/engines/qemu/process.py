"""The QEMU process: started so that it cannot outlive us, its words collected, its end noticed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from iolane.errors import IolaneError

_NOISE = (
    " is deprecated, use ",  # the newer spelling is unknown to QEMU 10.1
    "Could not enable error recovery for the device",  # vfio-user devices have none to enable
)


class QemuProcess:
    """Start it in a thread that lives as long as the machine: it dies with that thread (PR_SET_PDEATHSIG)."""

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        pass_fds: Sequence[int],
        on_line: Callable[[str], None],
    ) -> None:
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=200)
        self._process = subprocess.Popen(
            [*_dying_with_parent(), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            pass_fds=tuple(pass_fds),
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        self._finalizer = weakref.finalize(self, _kill, self._process)
        self._reader = threading.Thread(target=self._read, name="qemu messages", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def messages(self) -> str:
        """What QEMU has said on its standard error."""
        return "\n".join(self._lines)

    def wait(self, timeout: float) -> int | None:
        """Its exit status, or None when it still runs after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def ending(self) -> str:
        """How it ended, in words."""
        self._reader.join(2.0)
        status = self._process.poll()
        if status is None:
            return "QEMU is still running"
        if status < 0:
            return f"QEMU was ended by {signal.Signals(-status).name}"
        return f"QEMU ended with status {status}"

    def signal_end(self) -> None:
        """Ends it without waiting, from any thread."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def kill(self) -> None:
        """Ends it at once; returns when it is gone and its messages are read."""
        self._finalizer()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip()
            if any(noise in line for noise in _NOISE):
                continue
            self._lines.append(line)
            self._on_line(line)


def _dying_with_parent() -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise IolaneError("setpriv is not installed", remedy="apt-get install util-linux")
    return [setpriv, "--pdeathsig", "KILL", "--"]


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
