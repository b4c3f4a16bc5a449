"""What is asked of the guest in the same way for every device."""

from __future__ import annotations

import re

from iolane.engines.qemu.machine import QemuMachine
from iolane.errors import IolaneError
from iolane.model.pci import PciDevice

_FIND = """
for d in /sys/bus/pci/devices/*; do
  [ "$(cat $d/vendor) $(cat $d/device)" = "{vendor:#06x} {device:#06x}" ] || continue
  echo "address=$(basename $d)"
  [ -e $d/driver ] && echo "driver=$(basename $(readlink $d/driver))"
  echo "node=$(find $d/ -name '{node}' | head -n 1 | xargs -r basename)"
done
"""
_REAL = re.compile(r"real\s+(\d+)m ([0-9.]+)s")
RESOLUTION = 0.01
"""Seconds: how finely the guest's shell takes the time."""


class GuestDevice:
    """A device as the guest's sysfs has it."""

    def __init__(self, machine: QemuMachine, device: PciDevice, node: str) -> None:
        """Find it by its identification; `node` is a glob for the name of its device node."""
        script = _FIND.format(vendor=device.vendor_id, device=device.device_id, node=node)
        pairs = dict(line.split("=", 1) for line in machine.check(script).splitlines() if "=" in line)
        self.address = pairs.get("address", "")
        self.driver = pairs.get("driver", "")
        self.node = pairs.get("node", "")
        if not self.address:
            raise IolaneError(f"the guest does not see {device.name}")
        if not self.node:
            raise IolaneError(
                f"no driver of the guest made a {node} of {device.name} ({self.address})",
                remedy="the kernel's messages are in the console log",
            )

    @property
    def path(self) -> str:
        """Its node in /dev."""
        return f"/dev/{self.node}"


def timed(machine: QemuMachine, command: str, timeout: float) -> float:
    """Seconds that a command took by the guest's own clock."""
    output = machine.check(f"time {command}", timeout=timeout)
    found = _REAL.search(output)
    if found is None:
        raise IolaneError(f"the guest did not say how long `{command}` took: {output.strip()[-200:]}")
    return max(60 * int(found[1]) + float(found[2]), RESOLUTION)


def checksum(output: str) -> str:
    """The first SHA-256 in what the guest wrote."""
    found = re.search(r"\b[0-9a-f]{64}\b", output)
    return found[0] if found else ""
