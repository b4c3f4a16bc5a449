"""`iolane ps`: the running machines."""

from __future__ import annotations

import time

from iolane.cli.output import Json, print_json, print_table


def ps(json: Json = False) -> int:
    """List the running machines of this user, with their devices.

    \b
    Examples:
      iolane ps
      iolane ps --json
    """
    from iolane.carriers.control import running_machines

    machines = [machine for _, _, machine in running_machines()]
    if json:
        print_json(machines)
        return 0
    if not machines:
        print("no machine is running (see `iolane run`)")
        return 0
    print_table(
        ("name", "state", "up", "memory", "cpus", "pid", "devices", "free ports"),
        [
            (
                machine.name,
                machine.state.value,
                _duration(time.time() - machine.started),
                f"{machine.memory_mib}M",
                machine.cpus,
                machine.pid,
                ", ".join(device.id for device in machine.devices) or "-",
                machine.free_ports,
            )
            for machine in machines
        ],
        numeric=("up", "memory", "cpus", "pid", "free ports"),
    )
    return 0


def _duration(seconds: float) -> str:
    """`42s`, `7m`, `3h`, `2d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"
