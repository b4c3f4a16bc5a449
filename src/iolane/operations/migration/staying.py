"""At the source: which devices of a machine do not move with it, and how each leaves it."""

from __future__ import annotations

from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.operations.machine.devices import PASSTHROUGH
from iolane.operations.machine.machine import Machine
from iolane.operations.migration.failover import FunctionDevice
from iolane.operations.migration.leaving import anchored_text, moves_itself
from iolane.operations.migration.moved_device import MovedDevice, MovedDevices
from iolane.operations.migration.replug import ReplugDevice
from iolane.operations.migration.running_machine import RunningMachine
from iolane.operations.passthrough import parse_pass


def staying(machine: Machine) -> MovedDevices:
    """What the engine has by vfio-user, and passed functions; these leave last, and come back first."""
    ours = RunningMachine(machine)
    ports = {device.id: device.port for device in machine.guest.plugged}
    emulated: list[MovedDevice] = []
    functions: list[MovedDevice] = []
    for held in machine.devices.held:
        identity = held.device.id
        if moves_itself(machine, held):
            continue
        if held.lane == PASSTHROUGH:
            address = parse_pass(held.description.text).address
            functions.append(FunctionDevice(ours, identity, ports.get(identity), address))
        elif isinstance(held.device, VfioUserDevice):
            emulated.append(ReplugDevice(ours, identity, anchored_text(held), ports.get(identity)))
    return MovedDevices([*emulated, *functions])
