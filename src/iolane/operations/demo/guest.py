"""What is asked of the guest in the same way for every device."""

from __future__ import annotations

import re

from iolane.engines.qemu.machine import QemuMachine
from iolane.errors import IolaneError

_FIND = """
for try in $(seq {tries}); do
  for d in /sys/bus/pci/devices/*; do
    [ "$(cat $d/vendor) $(cat $d/device)" = "{vendor:#06x} {device:#06x}" ] || continue
    node=$(find $d/ -name '{node}' | head -n 1)
    [ -n "$node" ] || [ $try = {tries} ] || continue
    echo "address=$(basename $d)"
    [ -e $d/driver ] && echo "driver=$(basename $(readlink $d/driver))"
    for v in $d/virtio*; do [ -e $v/driver ] && echo "driver=$(basename $(readlink $v/driver))"; done
    echo "node=${{node##*/}}"
    exit
  done
  sleep 0.1
done
"""
_TRIES = 100
_REAL = re.compile(r"real\s+(\d+)m ([0-9.]+)s")
RESOLUTION = 0.01
"""Seconds: how finely the guest's shell takes the time."""


class GuestDevice:
    """A device as the guest's sysfs has it; one that was just plugged in is waited for."""

    def __init__(self, machine: QemuMachine, name: str, identity: tuple[int, int], node: str) -> None:
        """Find it by its PCI vendor and device; `node` is a glob for the name of its device node."""
        vendor, device = identity
        script = _FIND.format(vendor=vendor, device=device, node=node, tries=_TRIES)
        pairs = dict(line.split("=", 1) for line in machine.check(script).splitlines() if "=" in line)
        self.address = pairs.get("address", "")
        self.driver = pairs.get("driver", "")
        """Of the virtio device, where it is one, else of the PCI function."""
        self.node = pairs.get("node", "")
        if not self.address:
            raise IolaneError(f"the guest does not see {name}")
        if not self.node:
            raise IolaneError(
                f"no driver of the guest made a {node} of {name} ({self.address})",
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
