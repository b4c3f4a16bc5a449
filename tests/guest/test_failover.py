"""A network function is unplugged, the machine moves on its stand-in, a function is plugged in over there.

An emulated e1000e plays the passed-through function: a guest in the lab that moves would be a guest in a
guest in a guest, twice. Taking, plugging and giving back a virtual function is tested in the lab,
tests/lab/test_guest.py. The stand-in is iolane's network device, carried by vhost-user, with the
standby feature; the guest's net_failover joins the two by their address, and a TCP connection goes on all
the while.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from pyroute2 import IPRoute

from iolane.engines.qemu.machine import QemuMachine
from iolane.engines.qemu.qmp import Qmp
from iolane.errors import IolaneError
from iolane.model.pci import PcieId
from iolane.operations.machine import Machine, MachineDescription
from iolane.operations.migration.failover import FunctionDevice, GivenFunctions, come_back
from iolane.operations.migration.function_macs import FunctionMacs
from iolane.operations.migration.moved_device import Departed, MovedDevices
from iolane.operations.migration.running_machine import RunningMachine
from iolane.testing.host_namespace import NetworkNamespace
from tests.guest.echoed import Echoed

pytestmark = [pytest.mark.slow, pytest.mark.guest, pytest.mark.timeout(600)]

HOST, GUEST, PORT = "10.74.0.1", "10.74.0.2", 7000
MAC = "52:54:00:00:00:0a"
WAIT = "i=0; until {0}; do sleep 0.2; i=$((i+1)); [ $i -lt 500 ] || exit 1; done"


@dataclass(frozen=True)
class EmulatedNic:
    """QEMU's e1000e in place of a function of this host, on a tap of its own in the bridge."""

    id: str
    tap: str
    port: str | None = None
    bootindex: int | None = None
    remedy: str = ""

    def check(self) -> None:
        pass

    def properties(self, port: str | None) -> dict[str, object]:
        return {
            "driver": "e1000e",
            "id": self.id,
            "bus": port,
            "netdev": f"{self.id}.net",
            "mac": MAC,
            "romfile": "",
        }

    def plug(self, qmp: Qmp, port: str) -> None:
        tap = {"type": "tap", "id": f"{self.id}.net", "ifname": self.tap, "script": "no", "downscript": "no"}
        qmp.execute("netdev_add", **tap)
        join(self.tap)
        qmp.execute("device_add", **self.properties(port))

    def forget(self, qmp: Qmp) -> None:
        qmp.execute("netdev_del", id=f"{self.id}.net")


def join(tap: str) -> None:
    """Put a tap into the bridge."""
    with IPRoute() as route:
        [bridge] = route.link_lookup(ifname="bridge")
        [index] = route.link_lookup(ifname=tap)
        route.link("set", index=index, master=bridge, state="up")


class InTest(RunningMachine):
    """A machine whose function is an emulated one."""

    def put_back(self, identity: str) -> None:
        self.plug_passed(f"tap-{identity}", "port2")

    def plug_passed(self, text: str, port: str | None) -> None:
        plug(self._machine.qemu, EmulatedNic("nic", text, port))


def plug(machine: QemuMachine, nic: EmulatedNic) -> None:
    machine.plug(cast(Any, nic))


class NoMacs(FunctionMacs):
    """QEMU gives the e1000e its address."""

    def give(self, address: PcieId, mac: str) -> None:
        assert mac == MAC

    def take(self, address: PcieId) -> None:
        pass


class Given(GivenFunctions):
    """The function of the other side."""

    def prepare(self, departed: Departed) -> str:
        assert (departed.name, departed.mac) == ("nic", MAC)
        return "tap-there"


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bridge in a network of this thread's own, with a tap for the stand-in on each side."""
    try:
        namespace = NetworkNamespace()
        namespace.__enter__()
    except IolaneError as error:
        pytest.skip(f"FAILOVER IS NOT TESTED: {error}")
    with contextlib.ExitStack() as stack:
        stack.push(namespace.__exit__)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="iolane-test-"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        with IPRoute() as route:
            route.link("add", ifname="bridge", kind="bridge")
        for name in ("tap-a", "tap-b"):
            namespace.make_tap(name)
            join(name)
        namespace.set_up("bridge", address=HOST)
        yield


def described(name: str, tap: str) -> MachineDescription:
    return MachineDescription(
        name=name,
        memory_mib=256,
        kernel="generic",
        devices=[f"net,tap={tap},standby=on,mac={MAC},id=net"],
        modules=["e1000e"],
        ports=4,
    )


def wait_for_function(machine: Machine) -> None:
    """Until net_failover has the function below it, with a link."""
    both = "[ $(cat /sys/class/net/eth0/lower_*/carrier 2>/dev/null | grep -c 1) = 2 ]"
    machine.check(WAIT.format(both), timeout=240)


def carried(machine: Machine) -> dict[str, int]:
    """Bytes that came in by each driver below net_failover."""
    script = (
        "for n in /sys/class/net/eth0/lower_*; do n=${n##*/lower_}; "
        "d=$(readlink /sys/class/net/$n/device/driver); "
        "echo ${d##*/} $(cat /sys/class/net/$n/statistics/rx_bytes); done"
    )
    return {name: int(count) for name, count in (line.split() for line in machine.check(script).splitlines())}


def used(machine: Machine, echoed: Echoed) -> str:
    """The driver that carries the connection, which goes on."""
    before = carried(machine)
    assert echoed.goes_on(), echoed.problem
    after = carried(machine)
    return max(after, key=lambda name: after[name] - before.get(name, 0))


def test_a_connection_goes_on_while_a_function_leaves_the_machine_moves_and_another_comes(
    network: None,
) -> None:
    with Machine(described("source", "tap-a")) as source:
        here = InTest(source)
        nic = FunctionDevice(here, "nic", "port2", PcieId(0, 1, 0, 0), NoMacs())
        here.plug_passed("tap-nic", "port2")
        source.check(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
        wait_for_function(source)
        with Echoed(HOST, PORT) as echoed:
            source.check(f"setsid nc {HOST} {PORT} -e cat >/dev/null 2>&1 </dev/null &")
            assert used(source, echoed) == "e1000e"

            staying = MovedDevices([nic])
            staying.check()
            staying.before()
            assert used(source, echoed) == "virtio_net"
            assert staying.rollback() == [], "the machine stays after all"
            wait_for_function(source)
            assert used(source, echoed) == "e1000e"

            [departed] = staying.before()
            with Machine(described("destination", "tap-b"), incoming=True) as destination:
                source.qemu.migrate_to(destination.qemu)
                assert used(destination, echoed) == "virtio_net"
                come_back(InTest(destination), departed, Given({}))
                wait_for_function(destination)
                assert used(destination, echoed) == "e1000e"
        assert echoed.problem == ""
