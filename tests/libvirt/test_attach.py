"""`iolane attach` and `detach` on a real libvirtd: devices of a domain that is defined, starts, runs and
ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iolane.engines.libvirt.connection import Connection
from iolane.engines.libvirt.console import DomainConsole
from iolane.engines.libvirt.emulator import emulator
from iolane.engines.libvirt.events import DomainEventKind, Watch
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.provision import obtain_qemu
from tests.libvirt.domains import Guest, define, description
from tests.libvirt.host import LibvirtHost

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

NAME = "web"
SERVED = Path("/run/iolane/libvirt") / NAME


@pytest.fixture(scope="module")
def connection(host: LibvirtHost) -> Iterator[Connection]:
    with Connection(host.uri) as connection:
        yield connection


@pytest.fixture(scope="module")
def events(connection: Connection) -> Iterator[Watch]:
    with connection.watch(NAME) as watch:
        yield watch


@pytest.fixture(scope="module")
def images(host: LibvirtHost) -> dict[str, Path]:
    """Seen by the host and by us at the same path."""
    images = {name: host.folder / f"{name}.raw" for name in ("root", "hot", "nvme")}
    for name, path in images.items():
        path.write_bytes(f"{name:8}".encode() * (1 << 16))
    return images


@pytest.fixture(scope="module")
def guest(host: LibvirtHost, connection: Connection, events: Watch) -> Guest:
    """Defined, and with nothing of iolane's yet."""
    cache = Cache()
    qemu = emulator(cache, obtain_qemu(cache))
    agent = Path("/run/agent.sock")
    guest = define(connection, description(NAME, qemu, agent))
    guest.agent_socket = host.folder / "run/agent.sock"
    return guest


def done(host: LibvirtHost, *arguments: str) -> Any:
    """What an iolane on the host says that it has done."""
    result = host.iolane(*arguments, "--json")
    assert result.returncode == 0, result.stderr + host.log[-1000:]
    return json.loads(result.stdout)


def refused(host: LibvirtHost, *arguments: str) -> str:
    result = host.iolane(*arguments)
    assert result.returncode == 1, result.stdout
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def served(host: LibvirtHost) -> list[str]:
    """The sockets that are there for the domain."""
    folder = host.folder / "run" / SERVED.relative_to("/run")
    return sorted(path.name for path in folder.glob("*.sock")) if folder.exists() else []


def test_a_device_for_a_domain_that_does_not_run_is_served_when_it_starts(
    host: LibvirtHost, guest: Guest, images: dict[str, Path], events: Watch
) -> None:
    [said] = done(host, "attach", NAME, f"block,image={images['root']},id=root")
    assert (said["live"], said["persistent"], said["carrier"]) == (False, True, "vhost-user")
    assert served(host) == []
    guest.start()
    assert served(host) == ["root.sock"]
    assert guest.check("head -c 8 /dev/vda") == "root    "
    assert events.wait(lambda event: event.kind is DomainEventKind.STARTED, 10)


def test_it_has_a_console(host: LibvirtHost, guest: Guest, tmp_path: Path) -> None:
    console = DomainConsole(guest.domain, tmp_path / "console.log")
    try:
        console.console.write(b"\necho $((6 * 7))-is-the-answer\n")
        console.console.wait_for("^42-is-the-answer", 60)
    finally:
        console.close()


def test_a_disk_is_plugged_in_and_out(
    host: LibvirtHost, guest: Guest, images: dict[str, Path], events: Watch
) -> None:
    [said] = done(host, "attach", NAME, "--disk", f"{images['hot']},id=hot")
    assert (said["live"], said["persistent"]) == (True, False)
    assert events.wait(lambda event: event.kind is DomainEventKind.DEVICE_ADDED, 10)
    guest.wait_for("test -b /dev/vdb")
    guest.check("printf GUESTWAS | dd of=/dev/vdb bs=8 seek=1 conv=fsync,notrunc")
    assert images["hot"].read_bytes()[:16] == b"hot     GUESTWAS"
    assert done(host, "detach", NAME, "hot")["outcome"] == "agreed"
    assert events.wait(
        lambda event: event.kind is DomainEventKind.DEVICE_REMOVED and event.device == "ua-hot", 10
    )
    assert served(host) == ["root.sock"]
    guest.check("! test -e /dev/vdb")


def test_an_emulated_device_is_plugged_in_and_out(
    host: LibvirtHost, guest: Guest, images: dict[str, Path], events: Watch
) -> None:
    """As it can be unplugged again: with MSI in place of MSI-X."""
    [said] = done(host, "attach", NAME, f"nvme,image={images['nvme']},id=scratch")
    assert said["carrier"] == "vfio-user"
    assert "MSI" in said["notes"][0]
    guest.wait_for("test -b /dev/nvme0n1")
    assert guest.check("head -c 8 /dev/nvme0n1") == "nvme    "
    assert done(host, "detach", NAME, "scratch")["outcome"] == "agreed"
    assert events.wait(lambda event: event.name == "DEVICE_DELETED" and event.device == "scratch", 10)
    guest.wait_for("! test -e /dev/nvme0n1")


def test_what_libvirt_refuses_leaves_nothing(
    host: LibvirtHost, guest: Guest, images: dict[str, Path]
) -> None:
    before = guest.domain.document()
    assert "has a device root already" in refused(
        host, "attach", NAME, f"block,image={images['hot']},id=root"
    )
    assert "there is no image" in refused(host, "attach", NAME, "block,image=/nowhere.raw")
    two = refused(host, "attach", NAME, f"block,image={images['hot']},id=one", "block,image=/nowhere.raw")
    assert "nowhere" in two
    assert served(host) == ["root.sock"]
    assert guest.domain.document() == before


def test_wrong_names_are_told(host: LibvirtHost, guest: Guest) -> None:
    assert "has no domain 'nobody'" in refused(host, "attach", "nobody", "edu")
    assert "there are: root" in refused(host, "detach", NAME, "nobody")
    assert "is another host" in refused(
        host, "attach", NAME, "edu", "--connect", "qemu+tcp://127.0.0.1/system"
    )


def test_a_domain_whose_memory_is_its_own_is_told_what_to_add(
    host: LibvirtHost, connection: Connection
) -> None:
    connection.define(
        "<domain type='qemu'><name>private</name><memory unit='MiB'>64</memory><os><type>hvm</type></os>"
        "<devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>"
    )
    said = refused(host, "attach", "private", "edu")
    assert "does not share it" in said
    assert "<access mode='shared'/>" in said
    connection.domain("private").undefine()


def test_its_servers_end_with_it(host: LibvirtHost, guest: Guest, events: Watch) -> None:
    guest.domain.destroy()
    assert events.wait(lambda event: event.kind is DomainEventKind.STOPPED, 10)
    assert served(host) == []


def test_a_device_that_can_not_be_served_keeps_the_domain_from_starting(
    host: LibvirtHost, guest: Guest, images: dict[str, Path]
) -> None:
    images["root"].rename(images["root"].with_suffix(".away"))
    started = host.run("virsh", "start", NAME)
    assert started.returncode != 0
    assert "root.raw" in started.stderr
    assert served(host) == []
    images["root"].with_suffix(".away").rename(images["root"])


def test_it_is_detached_for_good(host: LibvirtHost, guest: Guest) -> None:
    [added] = done(host, "attach", NAME, "edu,id=edu0")
    assert added["live"] is False
    assert "vfio-user-pci" in guest.domain.document(inactive=True)
    assert done(host, "detach", NAME, "edu0")["outcome"] is None
    assert done(host, "detach", NAME, "root")["outcome"] is None
    document = guest.domain.document(inactive=True)
    assert "vfio-user" not in document
    assert "vhostuser" not in document
    assert guest.domain.attached(inactive=True) == []
    guest.domain.undefine()


def test_a_machine_of_its_own(host: LibvirtHost, images: dict[str, Path]) -> None:
    """`iolane run`, with libvirt as its engine."""
    disk = ("--disk", str(images["hot"]))
    done = host.iolane("run", "--engine", "libvirt", *disk, "--", "head -c 8 /dev/vda", timeout=200)
    assert (done.returncode, done.stdout) == (0, "hot     "), done.stderr
    assert host.check("virsh list --all --name").strip() == ""
