import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from iolane.engines.outcome import UnplugOutcome
from iolane.engines.qemu.command_line import MachineDevice, VfioUserDevice
from iolane.engines.qemu.descriptors import connected_peers
from iolane.engines.qemu.guard import ServerGuard
from iolane.engines.qemu.qmp import Event, Qmp, QmpError
from iolane.engines.qemu.slots import Slots
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError
from iolane.uapi.virtio import DeviceType


class FakeQmp:
    """Answers as QEMU does."""

    def __init__(self) -> None:
        self.msix = False
        self.refusal: str | None = None
        self.event: Event | None = {"event": "DEVICE_DELETED", "data": {"device": "a"}}
        self.commands: list[tuple[str, dict[str, object]]] = []

    def execute(self, command: str, timeout: float = 30.0, /, **arguments: object) -> Any:
        self.commands.append((command, arguments))
        if command == "qom-list":
            names = ["type", "msix-table[0]" if self.msix else "bar 0[0]"]
            return [{"name": name, "type": "child"} for name in names]
        if self.refusal is not None:
            raise QmpError(f"QEMU refuses {command}: {self.refusal}")
        return {}

    def mark(self) -> int:
        return 0

    def wait_event(self, names: set[str], since: int, timeout: float, accept: Any = None) -> Event | None:
        return self.event


@pytest.fixture(autouse=True)
def _no_threads_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[ServerGuard] = []

    class Recorded(ServerGuard):
        def __init__(self, qemu: int) -> None:
            super().__init__(qemu)
            made.append(self)

    monkeypatch.setattr("iolane.engines.qemu.slots.ServerGuard", Recorded)
    yield
    for guard in made:
        guard.close()


@pytest.fixture
def qmp() -> FakeQmp:
    return FakeQmp()


@pytest.fixture
def listening(tmp_path: Path) -> Path:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return path


def slots(qmp: FakeQmp, *devices: MachineDevice, ports: int = 2) -> Slots:
    return Slots(cast(Qmp, qmp), os.getpid(), ports, devices)


def test_plugging_takes_the_first_free_port(qmp: FakeQmp, listening: Path) -> None:
    given = slots(qmp, VfioUserDevice("a", listening))
    given.plug(VfioUserDevice("b", listening))
    (arguments,) = [arguments for command, arguments in qmp.commands if command == "device_add"]
    assert arguments["bus"] == "port2"
    with pytest.raises(IolaneError, match="all root ports are taken"):
        given.plug(VfioUserDevice("c", listening))


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (VfioUserDevice("a", Path("/tmp")), "plugged in already"),
        (VfioUserDevice("b", Path("/nowhere")), "start its server first"),
        (VfioUserDevice("b", Path("/nowhere"), port="port1"), "root port port1 is taken"),
    ],
)
def test_what_cannot_be_plugged(qmp: FakeQmp, listening: Path, device: VfioUserDevice, words: str) -> None:
    with pytest.raises(IolaneError, match=words):
        slots(qmp, VfioUserDevice("a", listening)).plug(device)
    assert "device_add" not in [command for command, _ in qmp.commands]


def test_virtual_functions_come_and_go_with_the_machine(qmp: FakeQmp, listening: Path) -> None:
    given = slots(qmp, VfioUserDevice("a", listening, virtual=[listening]))
    with pytest.raises(IolaneError, match="its virtual functions would go with it"):
        given.unplug("a", 1.0)
    with pytest.raises(IolaneError, match="made with the machine"):
        given.plug(VfioUserDevice("b", listening, virtual=[listening]))
    with pytest.raises(IolaneError, match=r"nobody listens at .* for device b-vf1"):
        VfioUserDevice("b", listening, virtual=[listening, Path("/nowhere")]).check()
    with pytest.raises(IolaneError, match="room for 7"):
        VfioUserDevice("b", listening, virtual=[listening] * 8).check()
    assert not {"device_add", "device_del"} & {command for command, _ in qmp.commands}


def test_a_plug_that_qemu_refuses_leaves_the_port_free(qmp: FakeQmp, listening: Path) -> None:
    given = slots(qmp, ports=1)
    qmp.refusal = "Failed to connect"
    with pytest.raises(IolaneError, match="is its server listening"):
        given.plug(VfioUserDevice("a", listening))
    qmp.refusal = None
    given.plug(VfioUserDevice("a", listening))


def test_unplugging_waits_for_the_end(qmp: FakeQmp, listening: Path) -> None:
    given = slots(qmp, VfioUserDevice("a", listening))
    assert given.unplug("a", 1.0) is UnplugOutcome.AGREED
    assert qmp.commands[-1] == ("device_del", {"id": "a"})
    assert given.plugged == []
    UnplugOutcome.AGREED.require("a")


def test_unplugging_msix_is_refused_with_the_way_out(qmp: FakeQmp, listening: Path) -> None:
    qmp.msix = True
    with pytest.raises(IolaneError, match=r"refused: it presents MSI-X.*presentation=msi"):
        slots(qmp, VfioUserDevice("a", listening)).unplug("a", 1.0)
    assert "device_del" not in [command for command, _ in qmp.commands]


def test_a_guest_that_does_not_let_go(qmp: FakeQmp, listening: Path) -> None:
    given = slots(qmp, VfioUserDevice("a", listening))
    qmp.event = None
    assert given.unplug("a", 0.0) is UnplugOutcome.NO_ANSWER
    assert given.leaving == {"a"}
    assert [device.id for device in given.plugged] == ["a"]
    with pytest.raises(IolaneError, match="did not let go of a in time"):
        UnplugOutcome.NO_ANSWER.require("a")
    qmp.refusal = "Device a is already in the process of unplug"
    qmp.event = {"event": "DEVICE_DELETED", "data": {"device": "a"}}
    assert given.unplug("a", 1.0) is UnplugOutcome.AGREED
    with pytest.raises(IolaneError, match="no device a"):
        given.unplug("a", 1.0)


def test_a_guest_that_says_no(qmp: FakeQmp, listening: Path) -> None:
    given = slots(qmp, VfioUserDevice("a", listening))
    qmp.event = {"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": "a"}}
    assert given.unplug("a", 1.0) is UnplugOutcome.REFUSED
    assert [device.id for device in given.plugged] == ["a"]
    assert not given.leaving
    with pytest.raises(IolaneError, match="refuses to let go of a"):
        UnplugOutcome.REFUSED.require("a")


def test_a_guest_that_lets_go_later_or_by_itself(qmp: FakeQmp, listening: Path) -> None:
    given = slots(qmp, VfioUserDevice("a", listening), VfioUserDevice("b", listening))
    qmp.event = None
    assert given.unplug("a", 0.0) is UnplugOutcome.NO_ANSWER
    assert given.deleted("a")
    assert not given.deleted("a"), "told of once"
    assert not given.leaving
    assert given.deleted("b"), "nobody asked: the guest did it"
    assert not given.deleted("something-of-qemu's")
    assert given.plugged == []
    given.plug(VfioUserDevice("c", listening, port="port1"))


def test_migration_is_refused_while_devices_are_plugged_in(qmp: FakeQmp, listening: Path) -> None:
    with pytest.raises(IolaneError, match=r"silently drop the state of a.*unplug"):
        slots(qmp, VfioUserDevice("a", listening)).refuse_migration()
    with pytest.raises(IolaneError, match=r"front end of r does not migrate.*unplug"):
        slots(qmp, VhostUserDevice("r", listening, DeviceType.RNG)).refuse_migration()
    slots(qmp, VhostUserDevice("b", listening, DeviceType.BLOCK)).refuse_migration()
    slots(qmp).refuse_migration()


def test_a_frail_front_end_dies_with_its_server(qmp: FakeQmp, listening: Path) -> None:
    """Nobody is connected to the two: QEMU goes on with the disk when its server comes back."""
    given = slots(
        qmp,
        VhostUserDevice("disk", listening, DeviceType.BLOCK),
        VhostUserDevice("rng", listening, DeviceType.RNG),
    )
    (dead,) = given.look_after("qemu-system-x86_64: Failed to set msg fds.")
    assert dead.device.id == "rng"
    assert "unplug rng, start its server again, plug rng" in str(dead)
    with pytest.raises(IolaneError, match=r"resetting is refused: the server of rng"):
        given.refuse_reset()
    given.unplug("disk", 1.0)
    qmp.event = {"event": "DEVICE_DELETED", "data": {"device": "rng"}}
    given.unplug("rng", 1.0)
    given.refuse_reset()


def test_a_dead_server_is_found_and_told_of_once(qmp: FakeQmp, tmp_path: Path) -> None:
    """Looks at this very process, which is connected to two servers here."""
    paths = [tmp_path / "one.sock", tmp_path / "two.sock"]
    listeners, clients, served = [], [], []
    for path in paths:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        served.append(listener.accept()[0])
        listeners.append(listener)
        clients.append(client)
    given = slots(qmp, VfioUserDevice("one", paths[0]), VfioUserDevice("two", paths[1]))
    assert connected_peers(os.getpid()) >= {str(path) for path in paths}
    assert given.dead_servers() == []
    served[1].close()
    assert given.tells_of_dead_server("qemu-system-x86_64: failed to read header: EOF")
    (dead,) = given.newly_dead()
    assert dead.device.id == "two"
    assert "unplug two, start its server again, plug two" in str(dead)
    assert given.newly_dead() == []
    with pytest.raises(IolaneError, match=r"resetting is refused: the server of two.*unplug two"):
        given.refuse_reset()
    qmp.msix = True
    fixed = slots(qmp, VfioUserDevice("one", paths[0]), VfioUserDevice("two", paths[1]))
    assert "stop the machine, start the server of two again" in str(fixed.dead_servers()[0])
    for opened in (*listeners, *clients, served[0]):
        opened.close()
