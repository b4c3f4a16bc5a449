"""A machine on the engine `libvirt`: a domain made for one guest, with the console, agent and devices that a
machine on the engine `qemu` has.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from iolane.carriers.control.machine_messages import EventKind, MachineEvent
from iolane.carriers.control.runtime import RunDirectory
from iolane.engines.libvirt.connection import Connection
from iolane.engines.libvirt.console import DomainConsole
from iolane.engines.libvirt.description import DomainDescription, domain_xml
from iolane.engines.libvirt.devices import DomainDevices
from iolane.engines.libvirt.domain import Domain
from iolane.engines.libvirt.elements import reconnects
from iolane.engines.libvirt.emulator import emulator, version_numbers
from iolane.engines.libvirt.events import DomainEvent, DomainEventKind
from iolane.engines.machine import EventFunction
from iolane.engines.outcome import UnplugOutcome
from iolane.engines.qemu.agent import AgentError, AgentLostError, GuestAgent
from iolane.engines.qemu.agent_guest import AgentGuest
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.command_line import MachineDevice
from iolane.engines.qemu.config import MachineConfig
from iolane.engines.qemu.console import Console
from iolane.engines.qemu.events import EventThread, event
from iolane.engines.qemu.initramfs import build_initramfs
from iolane.engines.qemu.kernel import Flavour, GuestKernel, debian_kernel, own_kernel
from iolane.engines.qemu.patience import patient
from iolane.engines.qemu.probe import choose_accelerator
from iolane.engines.qemu.provision import obtain_qemu
from iolane.engines.qemu.vmlinux import uncompressed
from iolane.errors import IolaneError

_numbers = itertools.count(1)
_TOLD = {
    DomainEventKind.SUSPENDED: EventKind.PAUSED,
    DomainEventKind.RESUMED: EventKind.RESUMED,
    DomainEventKind.SHUTDOWN: EventKind.SHUTDOWN,
    DomainEventKind.CRASHED: EventKind.PANICKED,
    DomainEventKind.STOPPED: EventKind.ENDED,
}


class LibvirtMachine(AgentGuest):
    """One guest in a domain of its own, which libvirt forgets when it ends. A context manager: entering
    starts it, leaving cleans everything up.
    """

    def __init__(
        self, config: MachineConfig | None = None, cache: Cache | None = None, *, uri: str | None = None
    ) -> None:
        self.config = config or MachineConfig()
        self._cache = cache or Cache()
        self._connection = Connection(uri)
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._domain: Domain | None = None
        self._console: DomainConsole | None = None
        self._agent: GuestAgent | None = None
        self._events: EventThread | None = None
        self._plugged: dict[str, MachineDevice] = {}
        self._leaving: set[str] = set()
        self._ended = threading.Event()
        self.boot_seconds = 0.0
        self.accelerator_reason = ""
        self.on_event: EventFunction | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait for its agent; on any failure everything is cleaned up again."""
        if self._domain is not None:
            raise IolaneError(f"machine {self.config.name} is started already")
        _refuse(self.config)
        try:
            self._launch(self._stack)
            if self.config.has_agent and not self.config.paused:
                self.wait_agent()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it at once and free all it held. Harmless when repeated."""
        domain, self._domain = self._domain, None
        try:
            if domain is not None:
                domain.destroy()
        finally:
            self._stack.close()
            self._stack = ExitStack()
            self._console, self._agent = None, None

    def abort(self) -> None:
        """End it at once, from any thread; whoever waits for the guest learns of it."""
        domain = self._domain
        if domain is not None:
            domain.destroy()

    def pause(self) -> None:
        """Hold its processors."""
        self.domain.pause()

    def resume(self) -> None:
        """Let them go on."""
        self.domain.resume()

    def ask_powerdown(self) -> None:
        """Ask the guest to power itself off (by its agent, else the power button), and return."""
        if self._agent is not None:
            self._agent.power(reboot=False)
        else:
            self.domain.ask_powerdown()

    def powerdown(self, timeout: float = 30.0) -> None:
        """Have the guest power itself off and wait for the end. The owner's alone, as `stop`."""
        self.ask_powerdown()
        limit = patient(timeout)
        if not self.wait_end(limit):
            raise self._failure(f"the guest did not power off within {limit:g} s")
        self.stop()

    def wait_end(self, timeout: float | None = None) -> bool:
        """Wait until it has ended by itself; False when it has not in time."""
        return self._ended.wait(timeout)

    def reset(self, timeout: float | None = None) -> None:
        """The reset button; waits for the agent of the new boot."""
        self.domain.reset()
        if self._agent is not None:
            self.wait_agent(timeout)

    def wait_agent(self, timeout: float | None = None) -> None:
        """Wait for the guest's agent (after start with `paused`, for instance)."""
        limit = patient(self.config.boot_timeout if timeout is None else timeout)
        started = time.monotonic()
        try:
            self._guest_agent().wait_hello(limit)
        except AgentLostError:
            raise self._failure("the machine ended while it booted") from None
        except AgentError:
            raise self._failure(f"the guest did not come up within {limit:g} s") from None
        self.boot_seconds = time.monotonic() - started

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._domain is not None and not self._ended.is_set()

    @property
    def paused(self) -> bool:
        """Whether its processors stand still."""
        return self.domain.paused

    @property
    def pid(self) -> int:
        """QEMU's process, where libvirt's file that says so can be read; else 0."""
        try:
            return int(Path(f"/run/libvirt/qemu/{self.domain.name}.pid").read_text())
        except (OSError, ValueError):
            return 0

    @property
    def domain(self) -> Domain:
        """The domain. Raises IolaneError where the machine does not run."""
        if self._domain is None:
            raise IolaneError(f"machine {self.config.name} is not running", remedy="start it first")
        return self._domain

    # -- the guest ----------------------------------------------------------------------------------------

    @property
    def console(self) -> Console:
        """The guest's console."""
        if self._console is None:
            raise IolaneError(f"machine {self.config.name} is not running", remedy="start it first")
        return self._console.console

    # -- devices ------------------------------------------------------------------------------------------

    def plug(self, device: MachineDevice) -> MachineDevice:
        """Plug a device in; libvirt chooses the port of what it has an element for."""
        device.check()
        DomainDevices(self.domain, managed=False).plug(device)
        self._plugged[device.id] = device
        return device

    def unplug(self, identity: str, timeout: float = 30.0) -> UnplugOutcome:
        """Ask the guest to let go of a device, and wait for up to `timeout` seconds."""
        outcome = DomainDevices(self.domain).unplug(identity, patient(timeout))
        if outcome is UnplugOutcome.AGREED:
            self._plugged.pop(identity, None)
            self._leaving.discard(identity)
        elif outcome is UnplugOutcome.NO_ANSWER:
            self._leaving.add(identity)
        else:
            self._leaving.discard(identity)
        return outcome

    @property
    def plugged(self) -> list[MachineDevice]:
        """What is plugged in."""
        return list(self._plugged.values())

    @property
    def leaving(self) -> frozenset[str]:
        """Devices that the guest was asked to let go of, and has not yet."""
        return frozenset(self._leaving)

    def why_not_unplug(self, identity: str) -> str | None:
        """Why QEMU would not survive that a device is removed; None where it does."""
        return DomainDevices(self.domain).why_not_unplug(identity)

    # -- inside -------------------------------------------------------------------------------------------

    def _launch(self, stack: ExitStack) -> None:
        config = self.config
        qemu = config.qemu or obtain_qemu(self._cache)
        kernel = self._kernel()
        initrd = config.initrd
        if initrd is None and kernel is not None:
            initrd = build_initramfs(kernel, config.content, self._cache)
        accelerator, self.accelerator_reason = (
            (config.accelerator, "chosen by the caller")
            if config.accelerator is not None
            else choose_accelerator(qemu, self._cache)
        )
        for device in config.devices:
            device.check()
        folder = stack.enter_context(RunDirectory()).path
        agent = folder / "agent.sock" if config.has_agent else None
        connection = stack.enter_context(self._connection)
        if not connection.is_local:
            raise IolaneError(
                f"{connection.uri} is another host, and the devices would be served here",
                remedy="run iolane there",
            )
        description = DomainDescription(
            name=config.name,
            accelerator=accelerator,
            emulator=emulator(self._cache, qemu),
            memory_mib=config.memory_mib,
            cpus=config.cpus,
            ports=config.ports,
            devices=config.devices,
            kernel=kernel.image if kernel else None,
            initrd=initrd,
            append=[*(["iolane.shell"] if config.shell else []), *config.append.split()],
            agent_socket=agent,
            reboot_stops=config.reboot_stops,
            reconnect=reconnects(connection.version, version_numbers(qemu.version)),
        )
        self._events = EventThread(config.name)
        stack.callback(self._events.close)
        self._ended.clear()
        stack.callback(connection.subscribe(self._take))
        domain = self._domain = connection.create(domain_xml(description), paused=True)
        self._console = DomainConsole(domain, self._log_path())
        stack.callback(self._console.close)
        if agent is not None:
            port = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            port.connect(os.fspath(agent))
            self._agent = GuestAgent(port)
        self._plugged = {device.id: device for device in config.devices}
        if not config.paused:
            domain.resume()

    def _kernel(self) -> GuestKernel | None:
        kernel = self.config.kernel
        if isinstance(kernel, Flavour):
            return uncompressed(debian_kernel(kernel, self._cache), self._cache)
        return own_kernel(kernel) if isinstance(kernel, Path) else kernel

    def _log_path(self) -> Path:
        if self.config.console_log is not None:
            return self.config.console_log
        folder = self._cache.root / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{self.config.name}-libvirt-{os.getpid()}-{next(_numbers)}.log"

    def _take(self, told: DomainEvent) -> None:
        """In libvirt's loop, which is not held up."""
        if told.domain not in (self.config.name, ""):
            return
        if told.kind in (DomainEventKind.STOPPED, DomainEventKind.LOST):
            self._ended.set()
        kind = _TOLD.get(told.kind)
        events = self._events
        if kind is None or events is None:
            return
        ours = event(kind)
        events.put(lambda: self._notify(ours))

    def _notify(self, told: MachineEvent) -> None:
        if self.on_event is not None:
            self.on_event(told)

    def _guest_agent(self) -> GuestAgent:
        if self._agent is None:
            raise IolaneError(
                f"machine {self.config.name} has no agent", remedy="leave the initrd to iolane, and start it"
            )
        return self._agent

    def _failure(self, message: str) -> IolaneError:
        shown = self._console.console.tail() if self._console is not None else ""
        return IolaneError(f"{message}\n{shown}" if shown else message)

    @contextlib.contextmanager
    def _agent_errors(self) -> Iterator[None]:
        try:
            yield
        except AgentLostError:
            raise self._failure("the machine has ended") from None


def _refuse(config: MachineConfig) -> None:
    """What only a machine on the engine qemu can have. Raises IolaneError."""
    unknown: dict[str, bool] = {
        "an IOMMU of its own": config.iommu,
        "arguments for QEMU": bool(config.extra_arguments),
        "a guest from another machine": config.incoming,
    }
    for what, wanted in unknown.items():
        if wanted:
            raise IolaneError(f"the engine libvirt has no {what} here", remedy="--engine qemu")
