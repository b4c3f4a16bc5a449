"""`iolane.Machine`: a guest with devices of any lane, one interface whatever the engine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from iolane.carriers.control import (
    ControlServer,
    EventKind,
    MachineEvent,
    MachineName,
    MachineReport,
    MachineState,
    PluggedDevice,
)
from iolane.engines.outcome import UnplugOutcome
from iolane.engines.qemu.agent import CommandResult, OutputFunction
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.console import Console
from iolane.engines.qemu.machine import QemuMachine
from iolane.errors import IolaneError
from iolane.operations.interruption import INTERRUPTION
from iolane.operations.machine.control import MachineControl
from iolane.operations.machine.description import MachineDescription
from iolane.operations.machine.devices import Held, MachineDevices
from iolane.operations.machine.engine import Engine, choose_engine, machine_config, provide_passt
from iolane.operations.machine.events import EventQueue, MachineEvents
from iolane.operations.machine.guest import Guest, engine_words, make_guest, require_qemu
from iolane.operations.machine.move_options import MoveOptions
from iolane.operations.machine.report import machine_report, plugged_device
from iolane.operations.watching import iommu_watched

if TYPE_CHECKING:
    from iolane.engines.qemu.migration_progress import Progress
    from iolane.operations.migration.move import Moved
    from iolane.operations.migration.moves import Moves

POWERDOWN_LIMIT = 30.0
"""Seconds for a guest to power itself off."""
OUTCOMES = {
    UnplugOutcome.AGREED: EventKind.UNPLUGGED,
    UnplugOutcome.REFUSED: EventKind.UNPLUG_REFUSED,
    UnplugOutcome.NO_ANSWER: EventKind.UNPLUG_UNANSWERED,
}


class Machine:
    """One guest with its devices, its control socket and its name. A context manager: entering starts it,
    leaving ends it and cleans everything up.

    Args:
        description: what it is to be; by default Debian's cloud kernel and no device.
        report: gets a line about each step that takes a while, and about what goes wrong by itself.
        cache: where guests and QEMU are kept.
        shell: a shell on the console.
        before_boot: called when its devices are there, before the engine is chosen; may refuse.
        paused: begin with the processors held.
        incoming: wait for the guest of another machine.

    Methods may be called from any thread, but `start` and `stop` are the owner's.
    """

    def __init__(
        self,
        description: MachineDescription | None = None,
        *,
        report: Callable[[str], None] | None = None,
        cache: Cache | None = None,
        shell: bool = False,
        before_boot: Callable[[], None] | None = None,
        paused: bool = False,
        incoming: bool = False,
    ) -> None:
        self.description = description or MachineDescription()
        self.tell: Callable[[str], None] = report or (lambda line: None)
        self._cache = cache
        self._shell, self._begin_paused, self._incoming = shell, paused, incoming
        self._before_boot = before_boot
        self._stack = ExitStack()
        self._changing = threading.RLock()
        """Held while devices come and go, for as long as a guest may take."""
        self._holding = threading.Lock()
        self._events = MachineEvents()
        self._phase: MachineState | None = None
        self._name: str | None = self.description.name
        self._started = 0.0
        self._engine: Engine | None = None
        self._guest: Guest | None = None
        self._devices: MachineDevices | None = None
        self._watched = False
        self._moves: Moves | None = None
        self._held_for = ""
        self._held_by: threading.Thread | None = None
        self.stopped_by: str | None = None
        """Who has asked for the end, where somebody has."""
        self.moved_to: str | None = None
        """Where it runs now, when it has left this process for another."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Life.

    def start(self) -> None:
        """Serve its devices, start it, wait until it is up. On any failure everything is cleaned up again.

        Raises:
            IolaneError: it can't be what it is to be, a running machine has its name, or it did not come up.
        """
        if self._guest is not None:
            raise IolaneError(f"machine {self.name} is started already")
        self.description.check()
        self._phase = MachineState.STARTING
        self._started = time.time()
        self._events.begin()
        try:
            self._start(self._stack)
        except BaseException:
            self.stop()
            raise
        self._phase = MachineState.INCOMING if self._incoming else None
        self._events.tell(EventKind.STARTED)

    def _start(self, stack: ExitStack) -> None:
        cache = self._cache or Cache(report=self.tell)
        with INTERRUPTION.held():
            self._name = stack.enter_context(contextlib.closing(MachineName(self.description.name))).name
        control = ControlServer([], machine=MachineControl(self))
        devices = MachineDevices(self.description, self._name, control)
        provide_passt(devices.specifications, cache)
        self._devices = stack.enter_context(devices)
        devices.check_boot()
        if not self._incoming:  # the source has them, until the guest is here
            devices.refuse_images_in_use()
        with INTERRUPTION.held():
            stack.enter_context(control)
        if self._before_boot is not None:
            self._before_boot()
        engine = self._engine = choose_engine(self.description, cache)
        waiting = self._begin_paused or self._incoming
        config = machine_config(self.description, self._name, engine, devices, cache)
        config = replace(config, shell=self._shell, paused=waiting, incoming=self._incoming)
        guest = make_guest(self.description, config, cache, self.tell)
        guest.on_event = self._on_event
        names = ", ".join(device.id for device in devices.devices) or "no device"
        self.tell(f"booting with {names} on {self.engine}")
        self._guest = guest
        self._watch()
        stack.enter_context(guest)
        if guest.config.has_agent and not waiting:
            self.tell(f"up after {guest.boot_seconds:.1f} s")

    def stop(self) -> None:
        """End it at once and give back all it held. Harmless when repeated."""
        if self._moves is not None:
            self._moves.close()
        with INTERRUPTION.held():
            self._stack.close()
            self._watched = False
            self._phase = None
            self._guest = None
            self._devices = None
        self._events.tell(EventKind.ENDED)

    def powerdown(self, timeout: float = POWERDOWN_LIMIT) -> None:
        """Have the guest power itself off: what was written is on the disks, drivers have let go. Returns
        when it has; its owner still frees it by `stop`.

        Raises:
            IolaneError: not within `timeout` seconds; the machine goes on.
        """
        guest = self.guest
        if guest.paused:
            raise IolaneError(
                f"machine {self.name} is paused: its guest can't power itself off",
                remedy=f"iolane resume {self.name}, or iolane stop --force {self.name}",
            )
        guest.ask_powerdown()
        if not guest.wait_end(timeout):
            raise IolaneError(
                f"the guest of {self.name} did not power off within {timeout:g} s",
                remedy=f"iolane stop --force {self.name}",
            )

    def abort(self) -> None:
        """End the guest at once, from any thread. Its owner still frees the machine by `stop`."""
        self.guest.abort()
        self.guest.wait_end(10.0)

    def hold(self, why: str, phase: MachineState) -> None:
        """From now on only this thread lets its guest go on or stand still, or changes its devices; others
        are refused with `why` and see `phase`. What others are about is waited for.
        """
        with self._changing, self._holding:
            self._held_for, self._held_by, self._phase = why, threading.current_thread(), phase

    def let_go(self) -> None:
        """Anybody may, again."""
        with self._changing, self._holding:
            self._held_by = self._phase = None

    def _refuse_held(self) -> None:
        if self._held_by is not None and self._held_by is not threading.current_thread():
            raise IolaneError(
                f"machine {self.name} is left alone: {self._held_for}",
                remedy=f"iolane migrate --cancel {self.name}, or --resolve where it is in doubt",
            )

    def pause(self) -> None:
        """Hold the processors, then the devices: when it returns, nothing of the machine moves."""
        self._refuse_held()
        with self._holding:
            self.guest.pause()
            self.devices.pause()

    def resume(self) -> None:
        """Let devices and processors go on."""
        self._refuse_held()
        with self._holding:
            self.devices.resume()
            self.guest.resume()

    def reset(self, timeout: float | None = None) -> None:
        """The reset button; waits until the guest is up again."""
        self._refuse_held()
        self.guest.reset(timeout)

    def wait_end(self, timeout: float | None = None) -> bool:
        """Wait until it has ended by itself or by another's wish; False when it has not in time."""
        return self.guest.wait_end(timeout)

    # What it is.

    @property
    def name(self) -> str:
        """Its name; no other running machine of the user has it."""
        return self._name or "machine"

    @property
    def guest(self) -> Guest:
        """The machine on its engine. Raises IolaneError where it does not run."""
        if self._guest is None:
            raise IolaneError(f"machine {self.name} is not running", remedy="start it first")
        return self._guest

    @property
    def qemu(self) -> QemuMachine:
        """The same, for what the engine qemu alone can do. Raises IolaneError on another."""
        return require_qemu(self.guest, self.name)

    @property
    def devices(self) -> MachineDevices:
        """Its devices, with their servers."""
        if self._devices is None:
            raise IolaneError(f"machine {self.name} is not running", remedy="start it first")
        return self._devices

    @property
    def engine(self) -> str:
        """What runs it, in words."""
        return engine_words(self.description, self._engine)

    @property
    def state(self) -> MachineState:
        """What it does now."""
        guest = self._guest
        if self._phase is not None:
            return self._phase
        if guest is None or not guest.running:
            return MachineState.ENDED
        return MachineState.PAUSED if guest.paused else MachineState.RUNNING

    def set_phase(self, phase: MachineState | None) -> None:
        """Say what it does while it neither runs nor is paused: it migrates, for instance. None: over."""
        self._phase = phase

    @property
    def boot_seconds(self) -> float:
        """How long the guest took to come up."""
        return self.guest.boot_seconds

    def report(self) -> MachineReport:
        """The machine as it is now."""
        guest = self._guest
        return machine_report(
            self.name,
            self.state,
            self.engine,
            self._started,
            self.description,
            [] if self._devices is None else self._devices.held,
            guest if guest is not None and guest.running else None,
            self._events.latest,
        )

    def described(self) -> MachineDescription:
        """What it is now, with all that came and went and every device at its port: the like of it can be
        made of that.
        """
        devices, passed = self.devices.described(self.guest.plugged)
        return msgspec.structs.replace(
            self.description,
            name=self.name,
            devices=devices,
            passed=passed,
            ports=self.description.port_count,
        )

    def events(self) -> EventQueue:
        """What happens to it from now on: `for event in machine.events():` until it has ended."""
        return EventQueue(self._events)

    def follow(self, take: Callable[[MachineEvent | None], None]) -> Callable[[], None]:
        """The same by calls that must not wait; None comes last. Returns the call that ends it."""
        return self._events.follow(take)

    def tell_event(self, kind: EventKind, text: str, *, device: str | None = None) -> None:
        """Something happened to it that its engine does not know of."""
        self._events.tell(kind, text, device=device)

    # To another host.

    @property
    def moves(self) -> Moves:
        """Its moves to other hosts: begun, watched, cancelled, resolved."""
        with self._holding:
            if self._moves is None:
                from iolane.operations.migration.moves import Moves

                self._moves = Moves(self)
            return self._moves

    def migrate(
        self,
        uri: str,
        *,
        downtime: float | None = None,
        bandwidth: int = 0,
        tls: Path | None = None,
        replug: bool = False,
        dry_run: bool = False,
        on_progress: Callable[[Progress], object] = lambda progress: None,
    ) -> Moved:
        """Move it, while it runs, to where `iolane receive URI` waits; returns when that is decided.

        Args:
            uri: `unix:PATH` or `tcp:HOST:PORT`.
            downtime: seconds that the guest may stand still at the end.
            bandwidth: bytes a second at most; 0: as many as go.
            tls: a directory with certificates: everything is encrypted, and both sides prove who they are.
            replug: unplug what does not move with it, and plug it in there.
            dry_run: only ask whether it could.
            on_progress: gets how far it is, several times a second.

        Raises:
            IolaneError: it could not begin. How it went otherwise is in what is returned.
        """
        options = MoveOptions(downtime, bandwidth, tls, replug=replug, dry_run=dry_run)
        return self.moves.migrate(uri, options, on_progress)

    # The guest.

    @property
    def console(self) -> Console:
        """The guest's console."""
        return self.guest.console

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = 60.0,
        on_output: OutputFunction | None = None,
    ) -> CommandResult:
        """Run a shell command in the guest: exit code, output, and whether it ran out of time."""
        self._refuse_held()
        return self.guest.run(command, stdin=stdin, timeout=timeout, on_output=on_output)

    def check(self, command: str | Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0) -> str:
        """The output of a command that must succeed."""
        self._refuse_held()
        return self.guest.check(command, stdin=stdin, timeout=timeout)

    def push(self, path: str, data: bytes | Path, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        self._refuse_held()
        self.guest.push(path, data, mode)

    def pull(self, path: str) -> bytes:
        """Read a file of the guest."""
        self._refuse_held()
        return self.guest.pull(path)

    # Devices that come and go.

    def plug(self, device: str, *, folder: Path | None = None, port: str | None = None) -> PluggedDevice:
        """Make a device and plug it in: `NAME[,key=value...]`.

        What QEMU carries by vfio-user gets an interrupt presentation with which it can be unplugged again,
        unless `presentation=` says otherwise.

        Args:
            folder: what relative paths in it are relative to; by default the present one.
            port: the root port; by default the first free one.

        Raises:
            IolaneError: it can't be made, or the engine does not take it; then nothing is left of it.
        """
        self._refuse_held()
        with self._changing:
            held, note = self.devices.add(device, folder=folder, port=port)
            return self._plug(held, note)

    def plug_passed(self, function: str, *, port: str | None = None) -> PluggedDevice:
        """Take a function of the host from its driver and plug it in: `ADDRESS[,key=value...]`."""
        self._refuse_held()
        with self._changing:
            held = self.devices.add_passed(function, port=port)
            self._watch()
            return self._plug(held, None)

    def _plug(self, held: Held, note: str | None) -> PluggedDevice:
        try:
            self.guest.plug(held.device)
        except BaseException:
            self.devices.remove(held.device.id)
            raise
        plugged = msgspec.structs.replace(plugged_device(held, self.guest), note=note or "")
        self._events.tell(EventKind.PLUGGED, plugged.note, device=held.device.id)
        return plugged

    def unplug(self, identity: str, timeout: float = 30.0) -> UnplugOutcome:
        """Ask the guest to let go of a device, and wait for up to `timeout` seconds. Where it agrees, the
        device's server ends, or the function gets its driver again; where it does so later, too.

        Raises:
            IolaneError: there is no such device, or the engine would not survive it.
        """
        self._refuse_held()
        with self._changing:
            outcome = self.guest.unplug(identity, timeout)
            if outcome is UnplugOutcome.AGREED:
                self.devices.remove(identity)
            self._events.tell(OUTCOMES[outcome], device=identity)
            return outcome

    # Inside.

    def _on_event(self, event: MachineEvent) -> None:
        """In the engine's event thread."""
        from iolane.operations.migration.running_machine import keep_state

        if event.kind is EventKind.UNPLUGGED and event.device is not None:
            with self._changing:
                if self._devices is not None:
                    kept = keep_state(self, event.device)
                    self._devices.remove(event.device)
                    event = msgspec.structs.replace(event, text=kept or event.text)
        self._events.pass_on(event)

    def _watch(self) -> None:
        """The IOMMU is watched where functions are passed."""
        functions = self.devices.addresses
        if not functions or self._watched:
            return
        self._watched = True
        stop = self.description.stop_on_fault
        self._stack.enter_context(
            iommu_watched(self.guest, self.name, functions, self.tell, stop_on_fault=stop)
        )
