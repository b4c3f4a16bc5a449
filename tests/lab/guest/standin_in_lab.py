"""Runs in the lab: a guest with a virtual function of igb and its stand-in, between which a connection goes
on; one JSON object a line.

`python -m tests.lab.guest.standin_in_lab IGB E1000E`: the addresses of both, which are on one wire. The
host's own end is on a bridge: the e1000e's interface, and the stand-in's tap.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from iolane.engines.qemu.vfio import moves_along
from iolane.host.sriov import make_virtual_functions
from iolane.host.taking import release
from iolane.model.pci import PcieId
from iolane.operations.machine import Machine, MachineDescription
from iolane.operations.migration.failover import FunctionDevice, GivenFunctions, come_back
from iolane.operations.migration.running_machine import RunningMachine
from iolane.operations.passthrough import parse_pass
from tests.guest.echoed import Echoed

MAC = "52:54:00:22:00:01"
HOST, GUEST, PORT = "10.80.0.1", "10.80.0.2", 7000
COMMAND = 240.0
UNPLUG = 180.0


def say(what: str, **values: Any) -> None:
    print(json.dumps({"what": what, **values}), flush=True)


def driver(address: PcieId) -> str | None:
    link = Path("/sys/bus/pci/devices") / str(address) / "driver"
    return os.path.basename(os.readlink(link)) if link.exists() else None


def interface(address: PcieId) -> str:
    [found] = (Path("/sys/bus/pci/devices") / str(address) / "net").iterdir()
    return found.name


def make_bridge(nic: str, tap: str) -> None:
    """The host's end of the wire, and of the stand-in's."""
    with IPRoute() as route:
        route.link("add", ifname=tap, kind="tuntap", mode="tap")
        route.link("add", ifname="bridge", kind="bridge", br_stp_state=0)
        [bridge] = route.link_lookup(ifname="bridge")
        for name in (nic, tap):
            [index] = route.link_lookup(ifname=name)
            route.link("set", index=index, master=bridge, state="up")
        route.addr("add", index=bridge, address=HOST, prefixlen=24)
        route.link("set", index=bridge, state="up")


def lowers(machine: Machine) -> list[str]:
    """The interfaces below net_failover's: driver and whether it has a link."""
    script = (
        "for n in /sys/class/net/eth0/lower_*; do n=${n##*/lower_}; "
        "d=$(readlink /sys/class/net/$n/device/driver); "
        'echo "${d##*/} $(cat /sys/class/net/$n/carrier)"; done'
    )
    return sorted(machine.check(script, timeout=COMMAND).splitlines())


def wait_lowers(machine: Machine, count: int) -> list[str]:
    """Until net_failover has so many below it, all with a link."""
    deadline = time.monotonic() + COMMAND
    while True:
        found = lowers(machine)
        if len(found) == count and all(each.endswith(" 1") for each in found):
            return found
        if time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def main(igb: PcieId, e1000e: PcieId) -> None:
    make_bridge(interface(e1000e), "tap0")
    with IPRoute() as route:  # a virtual function has a link while its physical function has
        [index] = route.link_lookup(ifname=interface(igb))
        route.link("set", index=index, state="up")
    with ExitStack() as stack:
        (function,) = make_virtual_functions(igb, 1, macs=[MAC], owned=True)
        stack.callback(release, [igb])
        description = MachineDescription(
            name="standin",
            memory_mib=256,
            kernel="generic",
            devices=[f"net,tap=tap0,standby=on,mac={MAC},id=net"],
            modules=["igbvf"],
            ports=4,
        )
        with Machine(description) as machine:
            # plugged in now, so that net_failover's interface is eth0 in the guest
            machine.plug_passed(f"{function},id=nic")
            say("up", seconds=machine.boot_seconds, driver=driver(function))
            machine.check(f"ifconfig eth0 {GUEST} netmask 255.255.255.0 up", timeout=COMMAND)
            use(machine, function)
    say("after", igb=driver(igb), function=driver(function))


def use(machine: Machine, function: PcieId) -> None:
    """Leave, stay after all, leave, and come back as a function of the other side would."""
    say("both", lowers=wait_lowers(machine, 2))
    with Echoed(HOST, PORT) as echoed:
        go(machine, function, echoed)
    say("stream", bytes=echoed.back, problem=echoed.problem)


def go(machine: Machine, function: PcieId, echoed: Echoed) -> None:
    machine.check(f"setsid nc {HOST} {PORT} -e cat >/dev/null 2>&1 </dev/null &", timeout=COMMAND)
    say("over the function", on=echoed.goes_on())
    ours = RunningMachine(machine)
    nic = FunctionDevice(ours, "nic", None, function, timeout=UNPLUG)
    nic.check()
    reasons = machine.qemu.qmp.execute("query-migrate").get("blocked-reasons", [])
    say("objections", moves=moves_along(machine.qemu.qmp, function), reasons=reasons)
    departed = nic.before()
    say("left", mac=departed.mac, lowers=lowers(machine), on=echoed.goes_on(), driver=driver(function))
    nic.rollback()
    say("stayed", lowers=wait_lowers(machine, 2), on=echoed.goes_on())
    departed = nic.before()
    ours.end("nic")
    say("given back", driver=driver(function), on=echoed.goes_on())
    given = GivenFunctions({"nic": parse_pass(f"{function},id=nic")})
    given.check("nic")
    come_back(ours, departed, given)
    say("came", lowers=wait_lowers(machine, 2), on=echoed.goes_on(), driver=driver(function))


if __name__ == "__main__":
    main(PcieId.from_string(sys.argv[1]), PcieId.from_string(sys.argv[2]))
