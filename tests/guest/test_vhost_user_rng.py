"""The entropy device carried by vhost-user in a stock Debian guest: many reads, several boots, a dead server.

QEMU's vhost-user-rng neither says that the driver is ready nor connects again; the device works all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from iolane.carriers.vhost_user import VhostUserServer
from iolane.carriers.vhost_user.choice import PLANES
from iolane.devices.virtio.rng import Rng
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.slots import DeadServer
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError
from iolane.model.workers import Workers
from iolane.uapi.virtio import DeviceType

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

READS = 40
BYTES = 1024
"""A read; the driver asks for 64 bytes at a time."""
RNG = "/sys/class/misc/hw_random"


@dataclass
class Guest:
    """The machine, and this process's side of its device."""

    machine: QemuMachine
    device: Rng
    serve: Callable[[], VhostUserServer]
    """Starts another server of the device, once the last one was stopped."""
    servers: list[VhostUserServer] = field(default_factory=list)
    dead: list[DeadServer] = field(default_factory=list)

    def read(self, count: int = READS) -> None:
        """Read /dev/hwrng over and over; each time it is other bytes, and they are the device's."""
        before = self.device.counters["bytes_delivered"]
        self.machine.check(f"test $(cat {RNG}/rng_current) = virtio_rng.0")
        sums = self.machine.check(
            f"for i in $(seq {count}); do head -c {BYTES} /dev/hwrng | md5sum; done", timeout=240
        ).splitlines()
        assert len(set(sums)) == count
        assert self.device.counters["bytes_delivered"] - before >= (count - 1) * BYTES

    def plug(self) -> None:
        """Plug the device in as the latest server has it, and wait for its driver."""
        self.machine.plug(front_end(self.servers[-1].path))
        self.machine.check(f"until grep -q virtio_rng {RNG}/rng_available; do sleep 0.1; done")


def front_end(path: Path) -> VhostUserDevice:
    return VhostUserDevice("rng", path, DeviceType.RNG)


@pytest.fixture(scope="module", params=["compiled", pytest.param("python", marks=pytest.mark.slow)])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder, device = tmp_path_factory.mktemp("r"), Rng()
    with contextlib.ExitStack() as stack:
        stack.callback(device.close)
        workers = stack.enter_context(Workers(2))

        def serve() -> VhostUserServer:
            path = folder / str(len(servers))
            server = VhostUserServer(device, path, workers=workers, plane=PLANES[request.param])
            servers.append(server)
            return stack.enter_context(server)

        servers: list[VhostUserServer] = []
        machine = QemuMachine()
        given = Guest(machine, device, serve, servers)
        machine.on_dead_server = given.dead.append
        machine.config = MachineConfig(
            name="rng",
            cpus=2,
            devices=[front_end(serve().path)],
            content=InitramfsContent(modules=("virtio_pci", "virtio-rng")),
            accelerator=Accelerator.TCG,
        )
        with machine:
            yield given
        assert servers[-1].wait_idle(10)
        for server in servers:
            assert not {kind.name for kind, count in server.statistics.rejections.items() if count}
        assert not device.error_count


def test_many_reads(guest: Guest) -> None:
    guest.read()
    assert "virtio0-input" in guest.machine.check("cat /proc/interrupts"), "it has a vector of its own"


@pytest.mark.parametrize("boots", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_further_boots(guest: Guest, boots: int) -> None:
    for _ in range(boots):
        guest.machine.reset()
        guest.read()


def test_a_pause(guest: Guest) -> None:
    for _ in range(3):
        guest.machine.qmp.execute("stop")
        guest.machine.qmp.execute("cont")
        guest.read(5)


def test_the_driver_may_come_and_go(guest: Guest) -> None:
    for _ in range(3):
        guest.machine.check(
            "cd /sys/bus/virtio/drivers/virtio_rng; d=$(ls | grep virtio); echo $d > unbind; echo $d > bind"
        )
        guest.read(5)


def test_a_guest_with_it_does_not_migrate(guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(IolaneError, match="does not migrate"):
        guest.machine.migrate_to(QemuMachine())


def test_it_is_unplugged_and_plugged(guest: Guest) -> None:
    guest.machine.unplug("rng", 30).require("rng")
    assert "virtio_rng" not in guest.machine.check(f"cat {RNG}/rng_available")
    guest.plug()
    guest.read(5)


def test_its_server_goes(guest: Guest) -> None:
    """The device is dead: told of, kept from what QEMU would abort at, and replaced."""
    guest.servers[-1].stop()
    while not guest.dead:  # the test's own limit bounds it
        guest.machine.qmp.execute("query-status")
    with pytest.raises(IolaneError, match="resetting is refused: the server of rng"):
        guest.machine.reset()
    assert [each.device.id for each in guest.dead] == ["rng"]
    guest.machine.unplug("rng", 30).require("rng")
    guest.serve()
    guest.plug()
    guest.read()
