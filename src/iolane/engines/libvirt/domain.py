"""A domain: its life, its devices, QEMU's monitor behind it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from iolane.engines.libvirt import metadata
from iolane.engines.libvirt.binding import libvirt, libvirt_qemu
from iolane.engines.libvirt.events import DomainEvent, DomainEventKind, Watch
from iolane.engines.libvirt.failure import LibvirtError, libvirt_errors
from iolane.engines.libvirt.metadata import Attached, attached_text, read_attached
from iolane.engines.outcome import UnplugOutcome
from iolane.errors import IolaneError

if TYPE_CHECKING:
    from iolane.engines.libvirt.connection import Connection

ALREADY = ("already in the process of unplug", "in the process of unplug")
"""An unplug that was asked for before and has not been answered."""


class MonitorError(IolaneError):
    """QEMU refused a command of its monitor."""


class Domain:
    """One domain of one connection."""

    def __init__(self, connection: Connection, handle: Any) -> None:
        self.connection = connection
        self.handle = handle
        self.name: str = handle.name()
        self.uuid: str = handle.UUIDString()

    # -- life ---------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended; a paused one runs."""
        with libvirt_errors(self.name):
            return bool(self.handle.isActive())

    @property
    def persistent(self) -> bool:
        """Whether libvirt knows it when it does not run."""
        with libvirt_errors(self.name):
            return bool(self.handle.isPersistent())

    @property
    def paused(self) -> bool:
        """Whether its processors stand still."""
        with libvirt_errors(self.name):
            return bool(self.handle.state()[0] == libvirt().VIR_DOMAIN_PAUSED)

    @property
    def qemu_id(self) -> int:
        """libvirt's number of the running domain."""
        with libvirt_errors(self.name):
            return int(self.handle.ID())

    def document(self, *, inactive: bool = False) -> str:
        """Its XML: as it is, or as it will be when it starts the next time."""
        flags = libvirt().VIR_DOMAIN_XML_INACTIVE if inactive else 0
        with libvirt_errors(self.name):
            return str(self.handle.XMLDesc(flags))

    def secure_document(self) -> str:
        """Its XML for defining it again, with what libvirt shows to nobody else."""
        binding = libvirt()
        with libvirt_errors(self.name):
            return str(self.handle.XMLDesc(binding.VIR_DOMAIN_XML_INACTIVE | binding.VIR_DOMAIN_XML_SECURE))

    def start(self, *, paused: bool = False) -> None:
        """Start it."""
        flags = libvirt().VIR_DOMAIN_START_PAUSED if paused else 0
        with libvirt_errors(f"{self.name} can't be started"):
            self.handle.createWithFlags(flags)

    def pause(self) -> None:
        """Hold its processors."""
        with libvirt_errors(f"{self.name} can't be paused"):
            self.handle.suspend()

    def resume(self) -> None:
        """Let them go on."""
        with libvirt_errors(f"{self.name} can't be resumed"):
            self.handle.resume()

    def ask_powerdown(self) -> None:
        """Press its power button."""
        with libvirt_errors(f"{self.name} can't be shut down"):
            self.handle.shutdownFlags(libvirt().VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def reset(self) -> None:
        """Press its reset button."""
        with libvirt_errors(f"{self.name} can't be reset"):
            self.handle.reset()

    def destroy(self) -> None:
        """End it at once. Harmless where it has ended."""
        try:
            with libvirt_errors(f"{self.name} can't be ended"):
                self.handle.destroy()
        except LibvirtError as error:
            binding = libvirt()
            if error.code not in (binding.VIR_ERR_OPERATION_INVALID, binding.VIR_ERR_NO_DOMAIN):
                raise

    def undefine(self) -> None:
        """Have libvirt forget it."""
        with libvirt_errors(f"{self.name} can't be undefined"):
            self.handle.undefine()

    # -- devices ------------------------------------------------------------------------------------------

    def attach(self, element: str, *, live: bool, config: bool) -> None:
        """Add a device: to the running domain, to what it will be when it starts again, or to both."""
        with libvirt_errors(f"{self.name} can't have the device"):
            self.handle.attachDeviceFlags(element, _affect(live, config))

    def detach_config(self, name: str) -> None:
        """Take the device with this alias out of what the domain will be when it starts again."""
        with libvirt_errors(f"{self.name} can't be without {name}"):
            self.handle.detachDeviceAlias(name, _affect(False, True))

    def detach(self, name: str, timeout: float) -> UnplugOutcome:
        """Ask the guest to let go of the device with this alias, and wait for up to `timeout` seconds."""

        def ends(event: DomainEvent) -> bool:
            return event.device == name and event.kind in (
                DomainEventKind.DEVICE_REMOVED,
                DomainEventKind.DEVICE_REMOVAL_FAILED,
            )

        with self.watch() as watch:
            try:
                with libvirt_errors(f"{self.name} can't be without {name}"):
                    self.handle.detachDeviceAlias(name, _affect(True, False))
            except LibvirtError as error:
                if not any(words in error.message for words in ALREADY):
                    raise
            event = watch.wait(ends, timeout)
        if event is None:
            return UnplugOutcome.NO_ANSWER
        removed = event.kind is DomainEventKind.DEVICE_REMOVED
        return UnplugOutcome.AGREED if removed else UnplugOutcome.REFUSED

    def watch(self) -> Watch:
        """Collects what happens to it."""
        return self.connection.watch(self.name)

    # -- QEMU's monitor -----------------------------------------------------------------------------------

    def monitor(self, command: str, **arguments: object) -> Any:
        """A command for QEMU itself (QEMU's QMP); libvirt does not know what it does, and marks the domain as
        tainted. Raises MonitorError where QEMU refuses it."""
        request = json.dumps(
            {"execute": command, "arguments": arguments} if arguments else {"execute": command}
        )
        with libvirt_errors(f"{self.name}: QEMU's {command}"):
            answer = json.loads(libvirt_qemu().qemuMonitorCommand(self.handle, request, 0))
        if "error" in answer:
            raise MonitorError(f"{self.name}: QEMU refuses {command}: {answer['error'].get('desc', '?')}")
        return answer.get("return")

    def monitor_delete(self, identity: str, timeout: float) -> UnplugOutcome:
        """Ask the guest to let go of a device that QEMU got by its monitor, and wait."""

        def ends(event: DomainEvent) -> bool:
            told = event.kind is DomainEventKind.MONITOR and event.device == identity
            return told and event.name in ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")

        with self.watch() as watch:
            try:
                self.monitor("device_del", id=identity)
            except MonitorError as error:
                if not any(words in error.message for words in ALREADY):
                    raise
            event = watch.wait(ends, timeout)
        if event is None:
            return UnplugOutcome.NO_ANSWER
        return UnplugOutcome.AGREED if event.name == "DEVICE_DELETED" else UnplugOutcome.REFUSED

    # -- iolane's metadata --------------------------------------------------------------------------------

    def attached(self, *, inactive: bool = False) -> list[Attached]:
        """The devices that iolane serves for it."""
        return read_attached(self.document(inactive=inactive))

    def set_attached(self, devices: list[Attached], *, live: bool, config: bool) -> None:
        """Remember which devices iolane serves for it."""
        binding = libvirt()
        text = attached_text(devices) if devices else None
        key = metadata.KEY if devices else None
        with libvirt_errors(f"{self.name}: iolane's metadata"):
            try:
                self.handle.setMetadata(
                    binding.VIR_DOMAIN_METADATA_ELEMENT,
                    text,
                    key,
                    metadata.NAMESPACE,
                    _affect(live, config),
                )
            except binding.libvirtError as error:
                if devices or error.get_error_code() != binding.VIR_ERR_NO_DOMAIN_METADATA:
                    raise


def _affect(live: bool, config: bool) -> int:
    binding = libvirt()
    flags = binding.VIR_DOMAIN_AFFECT_LIVE if live else 0
    return int(flags | (binding.VIR_DOMAIN_AFFECT_CONFIG if config else 0))
