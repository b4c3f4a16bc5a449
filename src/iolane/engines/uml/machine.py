"""A machine on the engine `uml`: started, spoken with, and cleaned up after."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from iolane.engines.qemu.agent import AgentError, AgentLostError, CommandResult, GuestAgent
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.console import Console
from iolane.engines.qemu.initramfs import InitramfsContent, build_initramfs
from iolane.engines.uml.process import UmlProcess
from iolane.engines.uml.provision import uml_kernel
from iolane.errors import IolaneError
from iolane.uapi.virtio import DeviceType


class UmlError(IolaneError):
    """The machine did not come up, or is gone."""


@dataclass(frozen=True)
class UmlDevice:
    """A vhost-user server that the kernel connects to as it boots; it must be listening by then."""

    socket: Path
    kind: DeviceType

    @property
    def parameter(self) -> str:
        """Of the kernel: virtio_uml.device=SOCKET:VIRTIO-ID."""
        path = str(self.socket.absolute())
        if any(character in path for character in ' :"'):
            raise IolaneError(f"socket path {path} has a character that User Mode Linux does not take")
        return f"virtio_uml.device={path}:{int(self.kind)}"


@dataclass(frozen=True)
class UmlConfig:
    """What a machine is to be."""

    name: str = "iolane"
    memory_mib: int = 128
    devices: Sequence[UmlDevice] = ()
    content: InitramfsContent = field(default_factory=InitramfsContent)
    """What the initramfs holds beside busybox and the agent."""
    append: str = ""
    """More kernel parameters."""
    boot_timeout: float = 60.0


class UmlMachine:
    """One guest. A context manager: entering starts it, leaving cleans everything up."""

    def __init__(self, config: UmlConfig | None = None, cache: Cache | None = None) -> None:
        self.config = config or UmlConfig()
        self._cache = cache or Cache()
        self._lock = threading.RLock()
        self._undo = contextlib.ExitStack()
        self._process: UmlProcess | None = None
        self._agent: GuestAgent | None = None
        self._console: Console | None = None
        self.boot_seconds = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Life.

    def start(self) -> None:
        """Start the machine and wait for its agent. On any failure everything is cleaned up again."""
        if self._process is not None:
            raise IolaneError(f"machine {self.config.name} is started already")
        kernel = uml_kernel(self._cache)
        initrd = build_initramfs(kernel, self.config.content, self._cache)
        try:
            self._launch(kernel.image, initrd)
            self._wait_agent()
        except BaseException:
            self.stop()
            raise

    def _launch(self, image: Path, initrd: Path) -> None:
        folder = Path(tempfile.mkdtemp(prefix="iolane-uml-"))
        self._undo.callback(shutil.rmtree, folder, ignore_errors=True)
        console, theirs_console = socket.socketpair()
        agent, theirs_agent = socket.socketpair()
        self._undo.callback(agent.close)
        with theirs_console, theirs_agent:
            fds = [theirs_console.fileno(), theirs_agent.fileno()]
            command = [str(image), *self._parameters(folder, initrd, *fds)]
            self._console = Console(console, folder / "console.log")
            self._undo.callback(self._console.close)
            self._process = UmlProcess(command, fds)
            self._undo.callback(self._process.kill)
        self._agent = GuestAgent(agent)

    def _parameters(self, folder: Path, initrd: Path, console: int, agent: int) -> list[str]:
        config = self.config
        return [
            f"mem={config.memory_mib}M",
            f"initrd={initrd}",
            f"uml_dir={folder}",
            f"umid={config.name}",
            *("con=null", f"con0=fd:{console},fd:{console}", "ssl=null", f"ssl1=fd:{agent},fd:{agent}"),
            *("quiet", "panic=-1", "random.trust_cpu=on"),
            *(device.parameter for device in config.devices),
            *config.append.split(),
        ]

    def _wait_agent(self) -> None:
        started = time.monotonic()
        assert self._agent is not None
        try:
            self._agent.wait_hello(self.config.boot_timeout)
        except AgentLostError:
            raise self._failure("the machine ended while it booted") from None
        except AgentError:
            raise self._failure(f"the guest did not come up in {self.config.boot_timeout:g} s") from None
        self.boot_seconds = time.monotonic() - started

    def stop(self) -> None:
        """End the machine at once and free all it held. Harmless when repeated."""
        self._undo.close()
        self._process = self._agent = self._console = None

    def powerdown(self, timeout: float = 30.0) -> None:
        """Have the guest power itself off, and wait for the end."""
        self._running_agent().power(reboot=False)
        assert self._process is not None
        if not self._process.wait(timeout):
            raise self._failure(f"the guest did not power off within {timeout:g} s")
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the kernel runs."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """The kernel's process id."""
        self._running_agent()
        assert self._process is not None
        return self._process.pid

    # The guest.

    def run(
        self, command: str | Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0
    ) -> CommandResult:
        """Run a shell command in the guest: exit code, output, and whether it ran out of time."""
        agent = self._running_agent()
        try:
            with self._lock:
                return agent.run(command, stdin=stdin, timeout=timeout)
        except AgentError as error:
            raise self._failure(error.message) from error

    def check(self, command: str | Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> str:
        """The output of a command that must succeed."""
        return self.run(command, stdin=stdin, timeout=timeout).check().output

    def push(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        with self._lock:
            self._running_agent().push(path, data, mode)

    def pull(self, path: str) -> bytes:
        """Read a file of the guest."""
        with self._lock:
            return self._running_agent().pull(path)

    @property
    def console(self) -> Console:
        """The guest's console."""
        if self._console is None:
            raise UmlError(f"machine {self.config.name} is not running", remedy="start it first")
        return self._console

    def _running_agent(self) -> GuestAgent:
        if self._agent is None:
            raise UmlError(f"machine {self.config.name} is not running", remedy="start it first")
        return self._agent

    def _failure(self, what: str) -> UmlError:
        """An error that holds what is known: the kernel's own words, the end of the console."""
        parts = [what]
        if self._process is not None and not self._process.running and self._process.output:
            parts.append(f"the kernel said: {self._process.output.decode(errors='replace').strip()[-800:]}")
        tail = self._console.tail(8) if self._console is not None else ""
        parts.append(f"the console ended with: {' | '.join(tail.splitlines())}" if tail else "no console")
        if os.geteuid() and not os.access("/dev/shm", os.W_OK):
            parts.append("/dev/shm cannot be written, where the guest's memory goes")
        return UmlError("; ".join(parts))
