"""A machine as reports show it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from iolane.carriers.control import MachineEvent, MachineReport, MachineState, PluggedDevice
from iolane.engines.machine import EngineMachine
from iolane.operations.machine.description import MachineDescription
from iolane.operations.machine.devices import Held


def machine_report(
    name: str,
    state: MachineState,
    engine: str,
    started: float,
    description: MachineDescription,
    held: Sequence[Held],
    guest: EngineMachine | None,
    events: list[MachineEvent],
) -> MachineReport:
    """`guest` is None before the engine has it and after it has ended."""
    devices = [plugged_device(each, guest) for each in held]
    return MachineReport(
        name=name,
        pid=os.getpid(),
        state=state,
        engine=engine,
        memory_mib=description.memory_mib,
        cpus=description.cpus,
        started=started,
        ports=description.port_count,
        free_ports=description.port_count - len(devices),
        engine_pid=None if guest is None else guest.pid,
        devices=devices,
        events=events,
    )


def plugged_device(held: Held, guest: EngineMachine | None) -> PluggedDevice:
    """One device."""
    identity = held.device.id
    ports = {} if guest is None else {each.id: each.port for each in guest.plugged}
    refused = guest.why_not_unplug(identity) if guest is not None and identity in ports else None
    return PluggedDevice(
        id=identity,
        what=held.description.text,
        lane=held.lane,
        carrier=held.carrier,
        port=ports.get(identity, held.device.port),
        endpoint=None if held.endpoint is None else str(held.endpoint),
        hot=held.hot,
        leaving=guest is not None and identity in guest.leaving,
        unplug_refused=refused,
    )
