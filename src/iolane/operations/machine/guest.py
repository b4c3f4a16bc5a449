"""The guest of a machine, on the engine that its description names."""

from __future__ import annotations

from collections.abc import Callable

from iolane.engines.libvirt.machine import LibvirtMachine
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.config import MachineConfig
from iolane.engines.qemu.machine import QemuMachine
from iolane.errors import IolaneError
from iolane.operations.machine.description import EngineName, MachineDescription
from iolane.operations.machine.engine import Engine

Guest = QemuMachine | LibvirtMachine


def make_guest(
    description: MachineDescription, config: MachineConfig, cache: Cache, tell: Callable[[str], None]
) -> Guest:
    """The engine's machine, not started; `tell` gets what goes wrong with a device's server."""
    if description.engine is EngineName.LIBVIRT:
        return LibvirtMachine(config, cache, uri=description.connect)
    guest = QemuMachine(config, cache)
    guest.on_dead_server = lambda dead: tell(str(dead))
    return guest


def engine_words(description: MachineDescription, engine: Engine | None) -> str:
    """What runs it; nothing before it was chosen."""
    if engine is None:
        return ""
    return f"libvirt, {engine}" if description.engine is EngineName.LIBVIRT else str(engine)


def require_qemu(guest: Guest, name: str) -> QemuMachine:
    """The same guest, for what the engine qemu alone can do. Raises IolaneError for another."""
    if isinstance(guest, QemuMachine):
        return guest
    raise IolaneError(
        f"machine {name} is a domain of libvirt's, which moves it itself",
        remedy=f"iolane migrate {name} qemu+ssh://HOST/system",
    )
