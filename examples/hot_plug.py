"""A disk comes to a running guest, is written to, and goes again: python examples/hot_plug.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

from iolane import Machine, MachineDescription, UnplugOutcome


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "disk.raw"
        image.write_bytes(bytes(8 << 20))
        with Machine(MachineDescription(memory_mib=256), report=print) as machine:
            events = machine.events()
            disk = machine.plug(f"nvme,image={image},id=disk")
            print(f"{disk.id} is at {disk.port}: {disk.note}")
            machine.check("while [ ! -b /dev/nvme0n1 ]; do sleep 0.1; done")
            machine.check("echo written by the guest > /dev/nvme0n1; sync")
            [counted] = machine.devices.reports()
            print(f"{counted.counters['traps']} traps, {counted.counters['interrupts']} interrupts")
            outcome = machine.unplug("disk", timeout=60)
            assert outcome is UnplugOutcome.AGREED
            machine.powerdown()
        for event in events:
            print(f"event: {event.kind} {event.device or ''}".rstrip())
        print(f"on the image: {image.read_bytes()[:20].decode().strip()}")


if __name__ == "__main__":
    main()
