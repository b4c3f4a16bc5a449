"""Runs in the lab: a stock Linux guest on QEMU with functions of the lab, and what it does with them; one
JSON object a line.

`python -m tests.lab.guest.in_lab NVME IGB PORT`, the addresses of both and the port of a web server outside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from iolane.engines.qemu.kernel import Flavour
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.vfio import VfioPciDevice
from iolane.errors import IolaneError
from iolane.host.sriov import make_virtual_functions
from iolane.host.taking import Taking, release
from iolane.model.pci import PcieId
from iolane.operations.machine import Machine, MachineDescription

MAC = "52:54:00:22:00:01"
MAP = "iolane.devices.nvme.registers:NvmeRegisters"
WRITTEN = b"written by the guest"
WHERE = 50 << 20
"""Where the guest writes, behind the pattern of the lab's disk."""
COMMAND = 240.0
APPEAR = "i=0; while [ ! -e {0} ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done; test -e {0}"
NIC = "/sys/class/net/eth0"


def say(what: str, **values: Any) -> None:
    print(json.dumps({"what": what, **values}), flush=True)


def driver(address: PcieId) -> str | None:
    link = Path("/sys/bus/pci/devices") / str(address) / "driver"
    return os.path.basename(os.readlink(link)) if link.exists() else None


def main(nvme: PcieId, igb: PcieId, port: int) -> None:
    # A virtual function has a link while its physical function has.
    (interface,) = (Path("/sys/bus/pci/devices") / str(igb) / "net").iterdir()
    subprocess.run(["ifconfig", interface.name, "up"], check=True)
    say("before", nvme=driver(nvme), igb=driver(igb))
    with ExitStack() as stack:
        # Up, it would carry a default route, and other tests find the lab as this one did.
        stack.callback(subprocess.run, ["ifconfig", interface.name, "down"], check=True)
        (function,) = make_virtual_functions(igb, 1, macs=[MAC], owned=True)
        stack.callback(release, [igb])
        with Taking([nvme]):
            refuse_balloon(VfioPciDevice("disk", nvme))
        description = MachineDescription(
            name="guest",
            memory_mib=256,
            kernel=Flavour.GENERIC.value,
            modules=["igbvf"],
            passed=[f"{nvme},id=disk"],
            ports=2,
        )
        with Machine(description) as machine:
            say("up", seconds=machine.boot_seconds, why=machine.engine)
            say("taken", nvme=driver(nvme), function=driver(function), address=str(function))
            use_disk(machine)
            started = time.monotonic()
            nic = machine.plug_passed(f"{function},id=nic")
            say("nic taken", function=driver(function), lane=nic.lane, carrier=nic.carrier, port=nic.port)
            use_network(machine, port)
            machine.unplug("nic", 120.0).require("nic")
            there = machine.run(f"test -e {NIC}").exit_code == 0
            say("nic gone", there=there, function=driver(function))
            machine.unplug("disk", 120.0).require("disk")
            there = machine.run("test -e /dev/nvme0n1").exit_code == 0
            say("disk gone", there=there, nvme=driver(nvme), held=len(machine.report().devices))
            machine.plug_passed(f"{nvme},id=disk")
            machine.check(APPEAR.format("/dev/nvme0n1"), timeout=COMMAND)
            say("disk again", written=read_back(machine), seconds=time.monotonic() - started)
            machine.unplug("disk", 120.0).require("disk")
            mediated = machine.plug_passed(f"{nvme},mediate={MAP},id=disk")
            machine.check(APPEAR.format("/dev/nvme0n1"), timeout=COMMAND)
            written = read_back(machine)
            try:
                refused = f"not: {machine.unplug('disk', 120.0).value}"
            except IolaneError as error:
                refused = str(error)
            say(
                "disk mediated",
                lane=mediated.lane,
                carrier=mediated.carrier,
                written=written,
                refused=refused,
            )
            machine.powerdown()
    say("after", nvme=driver(nvme), igb=driver(igb), function=driver(function))


def refuse_balloon(disk: VfioPciDevice) -> None:
    config = MachineConfig(
        kernel=Flavour.GENERIC, devices=[disk], extra_arguments=["-device", "virtio-balloon-pci"]
    )
    try:
        with QemuMachine(config):
            say("balloon", refused=None)
    except IolaneError as error:
        say("balloon", refused=str(error))


def use_disk(machine: Machine) -> None:
    machine.check(APPEAR.format("/dev/nvme0n1"), timeout=COMMAND)
    serial = machine.check("cat /sys/block/nvme0n1/device/serial").strip()
    checksum = machine.check("md5sum < /dev/nvme0n1", timeout=COMMAND).split()[0]
    interrupts = machine.check("grep -c nvme0q /proc/interrupts").strip()
    say("disk", serial=serial, checksum=checksum, interrupts=int(interrupts))
    machine.check(
        f"dd of=/dev/nvme0n1 bs=4096 seek={WHERE // 4096} conv=sync oflag=direct 2>/dev/null && sync",
        stdin=WRITTEN,
        timeout=COMMAND,
    )
    say("disk written", back=read_back(machine))


def read_back(machine: Machine) -> str:
    block = f"dd if=/dev/nvme0n1 bs=4096 skip={WHERE // 4096} count=1 iflag=direct 2>/dev/null"
    return machine.check(f"{block} | head -c {len(WRITTEN)}", timeout=COMMAND)


def use_network(machine: Machine, port: int) -> None:
    machine.check(APPEAR.format(NIC), timeout=COMMAND)
    found = machine.check(f"cat {NIC}/address; basename $(readlink {NIC}/device/driver)").split()
    machine.check("ifconfig eth0 10.0.2.77 netmask 255.255.255.0 up")
    machine.check(
        f"i=0; until grep -q 1 {NIC}/carrier; do sleep 0.1; i=$((i+1)); [ $i -lt 600 ] || exit 1; done",
        timeout=COMMAND,
    )
    ping = machine.run("ping -c 3 -w 60 10.0.2.2", timeout=COMMAND)
    page = machine.run(f"wget -q -O - http://10.0.2.2:{port}/", timeout=COMMAND)
    say("nic", mac=found[0], driver=found[1], ping=ping.exit_code, output=ping.output, page=page.output)


if __name__ == "__main__":
    main(PcieId.from_string(sys.argv[1]), PcieId.from_string(sys.argv[2]), int(sys.argv[3]))
