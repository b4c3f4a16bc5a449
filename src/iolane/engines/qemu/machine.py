"""A machine on the engine `qemu`: started, spoken with, changed while it runs, and cleaned up after."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from iolane.carriers.control.machine_messages import EventKind, MachineEvent
from iolane.engines.machine import EventFunction
from iolane.engines.outcome import UnplugOutcome
from iolane.engines.qemu.agent import AgentError, AgentLostError, GuestAgent
from iolane.engines.qemu.agent_guest import AgentGuest
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.command_line import Hardware, MachineDevice, VfioUserDevice
from iolane.engines.qemu.config import MachineConfig
from iolane.engines.qemu.console import Console
from iolane.engines.qemu.events import AT_WILL, HANDLED, EventThread, event, translated
from iolane.engines.qemu.initramfs import build_initramfs
from iolane.engines.qemu.kernel import Flavour, GuestKernel, debian_kernel, own_kernel
from iolane.engines.qemu.launch import Running
from iolane.engines.qemu.migration import Migration, migrate
from iolane.engines.qemu.patience import patient
from iolane.engines.qemu.probe import choose_accelerator
from iolane.engines.qemu.provision import obtain_qemu
from iolane.engines.qemu.qmp import Event, Qmp, QmpLostError
from iolane.engines.qemu.slots import DeadServer, Slots
from iolane.engines.qemu.vfio import VfioPciDevice, refuse_discarding, refuse_without_locked_memory
from iolane.engines.qemu.vmlinux import uncompressed
from iolane.errors import IolaneError

LOGS_KEPT = 20
_TELLING = r"Kernel panic|Oops|BUG:|general protection fault|Initramfs unpacking failed"
_numbers = itertools.count(1)


__all__ = ["MachineConfig", "MachineError", "QemuMachine"]


class MachineError(IolaneError):
    """The machine did not come up, or is gone. The message holds the end of its console."""

    def __init__(self, message: str, *, remedy: str | None = None, console: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.console = console


class QemuMachine(AgentGuest):
    """One guest under QEMU. A context manager: entering starts it, leaving cleans everything up."""

    def __init__(self, config: MachineConfig | None = None, cache: Cache | None = None) -> None:
        self.config = config or MachineConfig()
        self._cache = cache or Cache()
        self._lock = threading.RLock()
        self._now: Running | None = None
        self._slots: Slots | None = None
        self._events: EventThread | None = None
        self._paused = False
        self.accelerator_reason = ""
        self.boot_seconds = 0.0
        self.on_dead_server: Callable[[DeadServer], None] | None = None
        """Called (in a thread of the machine) when a device's server has gone while QEMU was connected."""
        self.on_event: EventFunction | None = None
        """Called with each event, in order, in a thread of the machine that may wait."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the machine and waits for its agent. On any failure everything is cleaned up again."""
        if self._now is not None:
            raise IolaneError(f"machine {self.config.name} is started already")
        try:
            self._launch()
            if self.config.has_agent and not self.config.paused and not self.config.incoming:
                self.wait_agent()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the machine at once and frees all it held. Harmless when repeated."""
        running, self._now = self._now, None
        slots, self._slots = self._slots, None
        if running is not None:
            running.close()
        if slots is not None:
            slots.close()
        events, self._events = self._events, None
        if events is not None:
            events.close()

    def abort(self) -> None:
        """Ends QEMU at once, from any thread; whoever waits for the guest learns of it."""
        now = self._now
        if now is not None:
            now.process.signal_end()

    def ask_powerdown(self) -> None:
        """Asks the guest to power itself off (by its agent, else the ACPI power button), and returns."""
        agent = self._running().agent
        if agent is not None:
            agent.power(reboot=False)
        else:
            self.qmp.execute("system_powerdown")

    def powerdown(self, timeout: float = 30.0) -> None:
        """Has the guest power itself off and waits for the end. The owner's alone, as `stop`."""
        self.ask_powerdown()
        limit = patient(timeout)
        if self._running().process.wait(limit) is None:
            raise self._failure(f"the guest did not power off within {limit:g} s")
        self.stop()

    def reset(self, timeout: float | None = None) -> None:
        """The machine's reset button; waits for the agent of the new boot. Refused while a device is dead."""
        self._slots_now().refuse_reset()
        mark = self.qmp.mark()
        self.qmp.execute("set-action", reboot="reset")
        self.qmp.execute("system_reset")
        if self.qmp.wait_event({"RESET"}, mark, patient(10.0)) is None:
            raise self._failure("QEMU did not reset the machine")
        if self.config.has_agent:
            self.wait_agent(timeout)
        if self.config.reboot_stops:
            self.qmp.execute("set-action", reboot="shutdown")

    def wait_agent(self, timeout: float | None = None) -> None:
        """Waits for the guest agent (after start with `paused`, for instance)."""
        limit = patient(self.config.boot_timeout if timeout is None else timeout)
        started = time.monotonic()
        try:
            self._guest_agent().wait_hello(limit)
        except AgentLostError:
            self._settle()
            raise self._failure("the machine ended while it booted") from None
        except AgentError:
            raise self._failure(f"the guest did not come up within {limit:g} s") from None
        self.boot_seconds = time.monotonic() - started

    def pause(self) -> None:
        """Holds the processors."""
        self.qmp.execute("stop")
        self._paused = True

    def resume(self) -> None:
        """Lets the processors run."""
        self.qmp.execute("cont")
        self._paused = False

    @property
    def paused(self) -> bool:
        """Whether the processors stand still."""
        return self._paused

    def wait_end(self, timeout: float | None = None) -> bool:
        """Waits until the machine has ended by itself; False when it has not in time."""
        now = self._now
        return now is None or now.process.wait(timeout if timeout is not None else 1e9) is not None

    @property
    def running(self) -> bool:
        """Whether QEMU runs."""
        return self._now is not None and self._now.process.running

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._running().process.pid

    # -- the guest ----------------------------------------------------------------------------------------

    def refuse_busy(self) -> None:
        """Raise IolaneError while the guest's agent is asked: it answers over a port of this QEMU alone."""
        if not self._lock.acquire(blocking=False):
            raise IolaneError(
                "a command runs in the guest, whose output would be lost",
                remedy="wait for its end, or run it in the guest's background: setsid COMMAND &",
            )
        self._lock.release()

    @property
    def console(self) -> Console:
        """The guest's console."""
        return self._running().console

    @property
    def qmp(self) -> Qmp:
        """QEMU's control connection."""
        return self._running().qmp

    # -- devices ------------------------------------------------------------------------------------------

    def plug(self, device: MachineDevice) -> MachineDevice:
        """Plugs a device (its server listens, its function is held by vfio-pci) into a free root port.
        The device with its port."""
        self._allow(device)
        return self._slots_now().plug(device)

    def unplug(self, identity: str, timeout: float = 30.0) -> UnplugOutcome:
        """Asks the guest to let go of a device, and waits until QEMU has removed it.

        Refused for a device with MSI-X: QEMU would abort (facts: defect 1 of QEMU 11)."""
        return self._slots_now().unplug(identity, timeout)

    @property
    def plugged(self) -> list[MachineDevice]:
        """What is plugged in, with ports; what it begins with until it has begun."""
        slots = self._slots
        return list(self.config.devices) if slots is None else slots.plugged

    @property
    def leaving(self) -> frozenset[str]:
        """The devices that the guest was asked to let go of, and has not yet."""
        slots = self._slots
        return frozenset() if slots is None else slots.leaving

    def why_not_unplug(self, identity: str) -> str | None:
        """Why QEMU would not survive that a device is removed; None where it does."""
        why = None if self._slots is None else self._slots.why_not_unplug(identity)
        return None if why is None else why[0]

    def migrate_to(self, destination: QemuMachine, timeout: float = 120.0) -> Migration:
        """Moves the guest, while it runs, to a machine that was started for it (`incoming`); ends this one.

        Refused while there are vfio-user devices: QEMU would drop their state without a word."""
        self._slots_now().refuse_migration()
        if not destination.config.incoming:
            raise IolaneError(
                f"machine {destination.config.name} does not wait for a guest",
                remedy="start it with incoming=True",
            )
        with self._lock:
            moved = migrate(self.qmp, destination.qmp, timeout)
            self.stop()
        return moved

    def dead_servers(self) -> list[DeadServer]:
        """The devices whose server has gone."""
        return self._slots_now().dead_servers()

    # -- inside -------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        config = self.config
        qemu = config.qemu or obtain_qemu(self._cache)
        kernel = self._kernel()
        accelerator, self.accelerator_reason = (
            (config.accelerator, "chosen by the caller")
            if config.accelerator is not None
            else choose_accelerator(qemu, self._cache)
        )
        initrd = config.initrd
        if initrd is None and kernel is not None:
            initrd = build_initramfs(kernel, config.content, self._cache)
        for device in config.devices:
            device.check()
            self._allow(device)
        hardware = Hardware(
            name=config.name,
            accelerator=accelerator,
            memory_mib=config.memory_mib,
            cpus=config.cpus,
            cpu_model=config.cpu_model,
            iommu=config.iommu,
            board=config.board,
            ports=config.ports,
            devices=config.devices,
            kernel=kernel.image if kernel else None,
            initrd=initrd,
            append=[*(["iolane.shell"] if config.shell else []), *config.append.split()],
            quick=config.quick,
            paused=config.paused,
            incoming=config.incoming,
            reboot_stops=config.reboot_stops,
            extra=config.extra_arguments,
        )
        now = Running(qemu, hardware, self._log_path(), self._on_message, agent=config.has_agent)
        self._now = now
        self._paused = config.paused or config.incoming
        self._events = EventThread(config.name)
        now.qmp.add_listener(self._take, self._lost)
        try:
            now.connect()
        except QmpLostError:
            self._settle()
            raise self._failure("QEMU did not start") from None
        self._slots = Slots(now.qmp, now.process.pid, config.ports, config.devices)

    def _allow(self, device: MachineDevice) -> None:
        """Refuse a device that would not be safe in this machine."""
        if isinstance(device, VfioPciDevice) or (isinstance(device, VfioUserDevice) and device.physical):
            refuse_discarding(self.config.extra_arguments)
            refuse_without_locked_memory(self.config.memory_mib << 20)

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
        logs = sorted(folder.glob("*.log"), key=lambda log: log.stat().st_mtime)
        for old in logs[: max(0, len(logs) - LOGS_KEPT)]:
            old.unlink(missing_ok=True)
        return folder / f"{self.config.name}-{os.getpid()}-{next(_numbers)}.log"

    def _on_message(self, line: str) -> None:
        slots = self._slots
        if slots is None:
            return
        for dead in slots.look_after(line):
            if self.on_dead_server is not None:
                self.on_dead_server(dead)
            self._tell(EventKind.SERVER_LOST, str(dead), device=dead.device.id)

    # -- events, taken in threads that may not wait -------------------------------------------------------

    def _take(self, told: Event) -> None:
        events, name = self._events, told["event"]
        if events is None or name not in HANDLED:
            return
        if name in ("STOP", "RESUME"):
            self._paused = name == "STOP"
        events.put(lambda: self._handle(told), droppable=name in AT_WILL)

    def _lost(self) -> None:
        now = self._now
        if self._events is not None and now is not None:
            self._events.put(lambda: self._notify(event(EventKind.ENDED, self._last_words(now))))

    @staticmethod
    def _last_words(now: Running) -> str:
        """QEMU closes its channels just before it ends."""
        now.process.wait(patient(5.0))
        return now.process.ending()

    def _tell(self, kind: EventKind, text: str, *, device: str) -> None:
        if self._events is not None:
            told = event(kind, text, device=device)
            self._events.put(lambda: self._notify(told))

    def _handle(self, told: Event) -> None:
        """In the event thread."""
        if told["event"] == "DEVICE_DELETED":
            identity, slots = told.get("data", {}).get("device"), self._slots
            if isinstance(identity, str) and slots is not None and slots.deleted(identity):
                self._notify(event(EventKind.UNPLUGGED, "later than it was waited for", device=identity))
            return
        now = self._now
        ours = translated(told, lambda: now.console.lines_with(_TELLING) if now is not None else [])
        if ours is not None:
            self._notify(ours)

    def _notify(self, told: MachineEvent) -> None:
        if self.on_event is not None:
            self.on_event(told)

    def _running(self) -> Running:
        if self._now is None:
            raise IolaneError(f"machine {self.config.name} is not running", remedy="start it first")
        return self._now

    def _slots_now(self) -> Slots:
        self._running()
        slots = self._slots
        if slots is None:
            raise IolaneError(f"machine {self.config.name} is starting", remedy="wait a moment")
        return slots

    def _guest_agent(self) -> GuestAgent:
        agent = self._running().agent
        if agent is None:
            raise IolaneError(
                "this machine has no guest agent", remedy="let iolane make the initramfs, or use the console"
            )
        return agent

    @contextlib.contextmanager
    def _agent_errors(self) -> Iterator[None]:
        try:
            yield
        except AgentError as error:
            if isinstance(error, AgentLostError):
                self._settle()
            raise self._failure(error.message) from error

    def _settle(self) -> None:
        """QEMU closes its channels just before it ends: let it end, and its last words arrive."""
        now = self._running()
        if now.process.wait(patient(5.0)) is not None:
            now.console.wait_end(5.0)

    def _failure(self, what: str) -> MachineError:
        """An error that holds what is known: QEMU's own words, dead servers, the end of the console."""
        now = self._now
        if now is None:
            return MachineError(what)
        parts = [what]
        if not now.process.running:
            parts.append(now.process.ending())
        if messages := now.process.messages():
            parts.append(f"QEMU said: {_shortened(messages)}")
        if "timed out waiting for reply" in messages:
            parts.append(
                "a device server left QEMU without an answer for 5 s: is it stopped, or in a debugger?"
            )
        if self._slots is not None and now.process.running:
            parts += [str(dead) for dead in self._slots.dead_servers()]
        tail = now.console.tail()
        if telling := now.console.lines_with(_TELLING):
            parts.append(f"the kernel said: {' | '.join(telling[:3])}")
        last = " | ".join(tail.splitlines()[-6:])
        parts.append(f"the console ended with: {last}" if tail else "the console is empty")
        remedy = f"the whole console is in {now.console.log}"
        return MachineError("; ".join(parts), remedy=remedy, console=tail)


def _shortened(text: str) -> str:
    return text if len(text) <= 1600 else f"{text[:800]} ... {text[-800:]}"
