"""Machines that move between two processes' worth of iolane, back and forth, while they work.

Blocks bear sequence numbers, the TCP stream numbers, and timers tick: nothing may be lost, repeated or torn.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.control import MachineState
from iolane.engines.qemu.credentials import TlsCredentials
from iolane.errors import IolaneError
from iolane.operations.machine import Machine, MachineDescription
from iolane.operations.migration.arriving import GuestMaker
from iolane.operations.migration.preflight import Welcome
from iolane.operations.migration.receiver import Receiver
from iolane.operations.migration.source import SourcePhase
from iolane.operations.migration.uri import Place, parse_place
from tests.guest.travel import MAC, Announcements, Network, Traveller, compile_load
from tests.unit.operations.migration.certificates import make_certificates

pytestmark = [pytest.mark.guest, pytest.mark.timeout(560)]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        network = Network().__enter__()
    except IolaneError as error:
        pytest.skip(f"MIGRATION UNDER NET LOAD IS NOT TESTED: {error}")
    yield network
    network.__exit__(None, None, None)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_load(tmp_path_factory.mktemp("load"))


@pytest.fixture
def traveller(network: Network, load: Path, folder: Path, tmp_path: Path) -> Iterator[Traveller]:
    traveller = Traveller(load, tmp_path / "disk.raw", folder)
    try:
        traveller.make_image()
        traveller.boot()
        yield traveller
    finally:
        traveller.close()


def back_and_forth(traveller: Traveller, times: int) -> None:
    announcements = Announcements()
    try:
        for _ in range(times):
            announcements.forget()
            moved = traveller.move()
            assert moved.passes >= 2, "memory changed while it went over"
            frame = announcements.wait(10)
            assert frame[6:12] == bytes.fromhex(MAC.replace(":", "")), "the network learns where it is"
            traveller.work()
        traveller.finish()
    finally:
        announcements.close()


def test_there_and_back_under_block_and_net_load(traveller: Traveller) -> None:
    back_and_forth(traveller, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_times_under_block_and_net_load(traveller: Traveller) -> None:
    back_and_forth(traveller, 20)


def test_what_would_not_work_is_refused_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """All of it in one guest: the reasons are told before anything moves."""
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    copy = tmp_path / "copy.raw"
    shutil.copy(image, copy)
    name = f"stays-{folder.name[-6:]}"
    description = MachineDescription(name=name, memory_mib=128, devices=[f"block,image={image},id=disk"])

    def asked(machine: Machine, **welcome: object) -> str:
        given = Welcome(**{"name": "other", "folders": None, **welcome})  # type: ignore[arg-type]
        with Receiver(Place(path=folder / "no"), GuestMaker(given)) as receiver:
            moved = machine.migrate(str(receiver.place), dry_run=True)
            assert moved.phase is SourcePhase.KEPT
            return moved.reason

    with Machine(description) as machine:
        machine.plug("rng,id=rng")
        with pytest.raises(IolaneError, match="rng: QEMU would lose its state") as caught:
            machine.migrate(f"unix:{folder / 'no'}")
        assert "--replug" in str(caught.value)
        machine.unplug("rng").require("rng")
        assert asked(machine) == "it would be taken"
        assert "is another image here" in asked(machine, devices={"disk": f"block,image={copy}"})
        assert "no image" in asked(machine, devices={"disk": f"block,image={tmp_path / 'none.raw'}"})
        assert "--folder FOLDER" in asked(machine, folders=[tmp_path / "elsewhere"])
        assert asked(machine, folders=[tmp_path]) == "it would be taken"
        assert "runs here" in asked(machine, name=machine.name)
        assert "has no such device" in asked(machine, devices={"net": "net,passt"})
        machine.check("true")


def test_over_tcp_with_certificates(folder: Path, tmp_path: Path, certificates: Path) -> None:
    """QEMU's stream by its own credentials objects, iolane's talk with the same certificates."""
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    description = MachineDescription(
        name=f"secret-{folder.name[-6:]}", memory_mib=128, devices=[f"block,image={image},id=disk"]
    )
    maker = GuestMaker(Welcome(name="secret-there", folders=[tmp_path]))
    place = parse_place(f"tcp:127.0.0.1:{free_port()}")
    with Machine(description) as machine:
        machine.check("echo before >/tmp/kept")
        with Receiver(place, maker, credentials=TlsCredentials(certificates)) as receiver:
            machine.pause()
            moved = machine.migrate(str(place), tls=certificates)
            assert moved.phase is SourcePhase.MOVED, moved
            arrival = receiver.receive(30)
            assert arrival is not None
            there = arrival.machine.machine  # type: ignore[attr-defined]
            try:
                assert there.state is MachineState.PAUSED, "as its user wanted it"
                there.resume()
                kept = there.check("cat /tmp/kept; dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null")
                assert kept == "before\n"
                tls = there.qemu.qmp.execute("query-migrate-parameters")["tls-creds"]
                assert tls == "migration.tls"
            finally:
                there.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))
