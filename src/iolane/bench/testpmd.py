"""A running testpmd, driven by its commands as a user at a terminal drives it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import tempfile
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from iolane.bench.dpdk import Dpdk
from iolane.bench.process import cpu_ns
from iolane.errors import IolaneError

PROMPT = "testpmd> "
SECONDS = 30.0
CHUNK = 1 << 16


@dataclass(frozen=True)
class PortCounters:
    """What a port has counted since it was there, or since `clear port stats all`."""

    received: int
    received_bytes: int
    sent: int
    sent_bytes: int


class Testpmd:
    """A testpmd with one port, for as long as this is entered. It busies one processor while it forwards.

    Args:
        dpdk: where it is.
        vdev: the port: `net_virtio_user0,path=SOCKET,server=0` is a front end, and
            `net_vhost0,iface=SOCKET` a back end that listens.
        options: further ones of testpmd's.
        cpus: for its main and its busy thread; by default of those that this process may use.
    """

    __test__ = False  # the name is DPDK's

    def __init__(self, dpdk: Dpdk, vdev: str, *options: str, cpus: tuple[int, int] | None = None) -> None:
        allowed = sorted(os.sched_getaffinity(0))
        self.command = dpdk.testpmd(vdev, *options, cpus=cpus or (allowed[0], allowed[-1]))
        self.output = ""
        """All that it has said."""
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal = -1

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start it, and wait until it takes commands: then its port is there.

        Raises:
            IolaneError: it did not start.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="iolane-dpdk-")
        self._terminal, theirs = pty.openpty()
        try:
            _silence(theirs)
            self._process = subprocess.Popen(
                self.command,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
                env={
                    **os.environ,
                    "RUNTIME_DIRECTORY": self._folder.name,
                    "XDG_RUNTIME_DIR": self._folder.name,
                },
            )
        finally:
            os.close(theirs)
        try:
            self._until_prompt("start")
        except BaseException:
            self.kill()
            raise

    def run(self, command: str) -> str:
        """One command, and what it says."""
        os.write(self._terminal, command.encode() + b"\n")
        return self._until_prompt(command)

    def counters(self) -> PortCounters:
        """Of its port."""
        said = self.run("show port stats 0")
        found = [
            re.search(rf"{name}:\s*(\d+)", said)
            for name in ("RX-packets", "RX-bytes", "TX-packets", "TX-bytes")
        ]
        if None in found:
            raise IolaneError(f"testpmd shows no counters: {said[-300:]}")
        return PortCounters(*(int(match[1]) for match in found if match is not None))

    def cpu_ns(self) -> int:
        """Processor time that it has used."""
        return cpu_ns(self.process.pid)

    def quit(self) -> None:
        """End it as its user does."""
        os.write(self._terminal, b"quit\n")
        self._read_until(lambda: False, "quit")
        self.process.wait(SECONDS)
        self._release()

    def kill(self) -> None:
        """End it at once: nothing is said to the other end of its port."""
        if self._process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self._release()

    def _release(self) -> None:
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1
            self._folder.cleanup()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal >= 0:
            self.kill()

    # What it says.

    def _until_prompt(self, command: str) -> str:
        at = len(self.output)
        if not self._read_until(lambda: PROMPT in self.output[at:], command):
            raise IolaneError(f"testpmd ended at {command!r}: {self.output[-500:].strip()}")
        end = self.output.index(PROMPT, at)
        return self.output[at:end]

    def _read_until(self, done: Callable[[], bool], command: str) -> bool:
        """False: it has ended."""
        deadline = time.monotonic() + SECONDS
        while not done():
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise IolaneError(f"testpmd said nothing more at {command!r}: {self.output[-500:].strip()}")
            try:
                data = os.read(self._terminal, CHUNK)
            except OSError:  # EIO: nobody has the other end any more
                return False
            self.output += data.decode(errors="replace").replace("\r", "")
        return True


def _silence(terminal: int) -> None:
    """Commands are not repeated to whoever gives them (termios(3), ECHO)."""
    settings = termios.tcgetattr(terminal)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, settings)
