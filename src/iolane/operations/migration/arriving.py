"""A machine of this process that is made for a guest from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iolane.carriers.control import EventKind, MachineName, MachineState
from iolane.devices.virtio.block import Block
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.migration import IncomingMigration, announce
from iolane.engines.qemu.migration_settings import MigrationSettings
from iolane.engines.qemu.qmp import QmpLostError
from iolane.engines.qemu.vhost_user import unreachable
from iolane.errors import IolaneError
from iolane.operations.machine.description import MachineDescription
from iolane.operations.machine.engine import choose_engine
from iolane.operations.machine.machine import Machine
from iolane.operations.migration.beside import bring
from iolane.operations.migration.moved_device import Departed
from iolane.operations.migration.offer import Finding, Offer
from iolane.operations.migration.preflight import Welcome, description_of, findings
from iolane.operations.migration.running_machine import RunningMachine


class ArrivingGuest:
    """One machine, started and standing still."""

    def __init__(self, machine: Machine, offer: Offer, welcome: Welcome) -> None:
        self.machine = machine
        self._offer = offer
        self._welcome = welcome

    def incoming(self, settings: MigrationSettings, on_end: Callable[[bool], object]) -> IncomingMigration:
        """QEMU's side."""
        return IncomingMigration(self.machine.qemu.qmp, settings, on_end)

    def on_lost(self, call: Callable[[], object]) -> None:
        """QEMU has gone."""
        self.machine.qemu.qmp.add_listener(lambda event: None, call)

    def on_decision(self, decide: Callable[[bool], bool]) -> None:
        """The operator's word comes over the machine's control socket."""
        self.machine.moves.decide_arrival = decide

    def take_images(self) -> None:
        """Before anything runs here: the source has let go of them. Whoever serves a device must be there."""
        guest = self.machine.qemu
        if gone := unreachable(guest.qmp, guest.plugged):
            raise IolaneError(
                f"the server of {', '.join(gone)} has gone", remedy="start it again, then migrate"
            )
        for served in self.machine.devices.servers.served:
            if isinstance(served.device, Block):
                served.device.take_image()

    def run(self) -> None:
        """Let it go. Where QEMU goes away meanwhile, it may have run: that is a machine that ended, here."""
        machine = self.machine
        machine.let_go()
        machine.moves.decide_arrival = None  # it is decided
        try:
            if not self._offer.paused:
                machine.guest.resume()
            announce(machine.qemu.qmp)
        except QmpLostError:
            return
        machine.tell_event(EventKind.MIGRATION, "arrived")

    def doubt(self, reason: str) -> None:
        """It stands still."""
        self.machine.hold(f"whether it runs at the source is in doubt: {reason}", MachineState.IN_DOUBT)
        self.machine.tell_event(EventKind.MIGRATION, f"in doubt: {reason}")

    def bring(self, departed: Sequence[Departed]) -> list[str]:
        """Put in what came beside it."""
        return bring(RunningMachine(self.machine), departed, self._offer.later, self._welcome)

    def destroy(self) -> None:
        """End it and give back all it held."""
        self.machine.stop()


class GuestMaker:
    """Makes machines as the operator of this host welcomes them.

    Args:
        welcome: what the operator says.
        cache: where QEMU and kernels are kept.
        tell: gets a line about each step that takes a while.
    """

    def __init__(
        self,
        welcome: Welcome,
        *,
        cache: Cache | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._welcome = welcome
        self._cache = cache or Cache(report=tell)
        self._tell = tell

    def preflight(self, offer: Offer) -> tuple[list[Finding], list[str]]:
        """What keeps it from coming, and what should be known."""
        engine = choose_engine(MachineDescription(), self._cache)
        accelerators = {Accelerator.TCG.value, engine.accelerator.value}
        problems, notes = findings(offer, self._welcome, str(engine.qemu.version), accelerators)
        name = self._name(offer)
        try:
            MachineName(name).close()
        except IolaneError:
            problems.append(Finding(f"a machine '{name}' runs here", "iolane receive --name NAME"))
        return problems, notes

    def make(self, offer: Offer) -> ArrivingGuest:
        """Its devices are served, its QEMU waits."""
        description = description_of(offer, self._welcome, self._name(offer))
        machine = Machine(description, report=self._tell, cache=self._cache, incoming=True)
        machine.start()
        machine.hold("its guest comes from elsewhere", MachineState.INCOMING)
        return ArrivingGuest(machine, offer, self._welcome)

    def _name(self, offer: Offer) -> str:
        return self._welcome.name or offer.name
