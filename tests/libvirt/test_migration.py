"""A domain with a disk and a network of iolane's moves between two libvirtds, each in namespaces of its own,
while the guest works on both. Each host's libvirt has its own iolane serve the devices. libvirt and QEMU are
of one release (trixie-backports): Debian 12's libvirt 9.0 does not know how to migrate a QEMU 11, and its
QEMU 7.2 does not survive a vhost-user network device without KVM.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from iolane.engines.libvirt.connection import Connection
from iolane.errors import IolaneError
from iolane.operations.libvirt import migration as libvirt_migration
from iolane.operations.libvirt.migration import DomainMigration, MigrationRequest, migrate_domain
from tests.libvirt.domains import SYSTEM_QEMU, Guest, define, description
from tests.libvirt.host import BRIDGE, LibvirtHost, connect
from tests.libvirt.provision import Libvirt, obtain_later

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "mover"
GUEST, PORT = "10.77.0.100", "7000"
SIZE = 16 << 20
RIGHT = "failed 0, wrong when read 0, wrong pages 0, wrong blocks 0"
LOAD = Path(__file__).parent.parent / "guest/load.c"
PEER = Path(__file__).with_name("echo_peer.py")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's load, compiled."""
    program = tmp_path_factory.mktemp("load") / "load"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-s", "-o", program, LOAD], check=True)
    return program


@pytest.fixture(scope="module")
def hosts(libvirt: Libvirt, hook: str, folder: Path) -> Iterator[tuple[LibvirtHost, LibvirtHost]]:
    """Two hosts, a cable between them, and a tap in each one's bridge."""
    later = obtain_later(libvirt)
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(LibvirtHost(later, folder / name, number, hook))
            for number, name in enumerate(("one", "two"), 1)
        )
        connect(one, two)
        for host in (one, two):
            host.check(
                "ip tuntap add dev tap0 mode tap vnet_hdr && "
                f"ip link set tap0 master {BRIDGE} && ip link set tap0 up"
            )
        yield one, two


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    """What both hosts reach, as a file server would have it."""
    path = folder / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture(autouse=True)
def hook_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook is on the hosts, and not here where the client runs."""
    monkeypatch.setattr(libvirt_migration, "require_installed", lambda: None)


@pytest.fixture(scope="module")
def guest(hosts: tuple[LibvirtHost, LibvirtHost], image: Path, load: Path) -> Iterator[Guest]:
    """Running on the first host."""
    one, _ = hosts
    with Connection(one.uri) as connection:
        guest = define(connection, description(NAME, SYSTEM_QEMU, Path("/run/agent.sock"), programs=[load]))
        guest.agent_socket = one.folder / "run/agent.sock"
        attached = one.iolane("attach", NAME, f"block,image={image},id=disk0", "--net", "tap=tap0,id=net0")
        assert attached.returncode == 0, attached.stderr
        guest.start()
        yield guest


def served(host: LibvirtHost) -> list[str]:
    return sorted(path.name for path in (host.folder / f"run/iolane/libvirt/{NAME}").glob("*.sock"))


def work_on(guest: Guest, what: str, amount: int) -> None:
    """Until the load has done this much more."""
    file = f"/tmp/{what}.count"
    guest.check(
        f"until [ -e {file} ]; do sleep 0.05; done; before=$(cat {file});"
        f" until [ $(($(cat {file}) - before)) -ge {amount} ]; do sleep 0.05; done",
    )


def move(guest: Guest, source: LibvirtHost, destination: LibvirtHost) -> DomainMigration:
    """To the other host; the guest's agent is then spoken with there."""
    request = MigrationRequest(
        domain=NAME,
        uri=source.uri,
        destination=destination.uri,
        data=f"tcp://{destination.address}",
        timeout=180,
    )
    moved = migrate_domain(request)
    assert moved is not None
    guest.agent_socket = destination.folder / "run/agent.sock"
    guest.connect()
    return moved


def test_a_server_that_dies_is_started_anew_and_qemu_connects_again(
    hosts: tuple[LibvirtHost, LibvirtHost], guest: Guest
) -> None:
    one, _ = hosts
    folder = f"/run/iolane/libvirt/{NAME}"
    serving = f"pid=$(cat {folder}/disk0.pid); cat /proc/$pid/task/$pid/children"
    before = one.check(f"{serving}; kill -9 $({serving})").split()
    guest.check("dd if=/dev/zero of=/dev/vda bs=4096 count=64 oflag=direct")
    assert one.check(serving).split() != before


def test_it_moves_there_and_back_under_load(
    hosts: tuple[LibvirtHost, LibvirtHost], guest: Guest, image: Path
) -> None:
    one, two = hosts
    peer = subprocess.Popen(
        one.command([sys.executable, str(PEER), one.address, PORT]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "listening\n"
        guest.check(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
        guest.check("setsid load disk /dev/vda >/dev/null 2>&1 </dev/null &")
        guest.check(f"setsid load echo {one.address} {PORT} >/dev/null 2>&1 </dev/null &")
        assert served(one) == ["disk0.sock", "net0.sock"]
        places = [one, two, one, two]
        for source, destination in itertools.pairwise(places):
            work_on(guest, "disk", 500)
            work_on(guest, "echo", 1 << 19)
            move(guest, source, destination)
            assert served(source) == []
            assert served(destination) == ["disk0.sock", "net0.sock"]
            assert NAME not in source.check("virsh list --all --name")
            assert NAME in destination.check("virsh list --name")
        work_on(guest, "disk", 500)
        work_on(guest, "echo", 1 << 19)
        verdict = "until [ -e /tmp/{0}.verdict ]; do sleep 0.05; done; cat /tmp/{0}.verdict"
        assert guest.check("touch /tmp/stop; " + verdict.format("disk")).strip() == RIGHT
        said, _ = peer.communicate("")
        sent, received, wrong = map(int, re.findall(r"\d+", said))
        assert (received, wrong) == (sent, 0)
        assert guest.check(verdict.format("echo")) == f"{sent} bytes\n"
    finally:
        peer.kill()
        peer.wait()
    seen = guest.check("echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda")
    assert re.findall(r"[0-9a-f]{64}", seen) == [hashlib.sha256(image.read_bytes()).hexdigest()]


def test_it_moves_by_the_command_line(hosts: tuple[LibvirtHost, LibvirtHost], guest: Guest) -> None:
    """`iolane migrate` on the host where it runs; memory goes to the other host's name."""
    source, destination = sorted(hosts, key=lambda host: NAME not in host.check("virsh list --name"))
    looked = source.iolane("migrate", NAME, destination.uri, "--dry-run")
    assert (looked.returncode, looked.stdout) == (0, f"{NAME} would move\n"), looked.stderr
    done = source.iolane("migrate", NAME, destination.uri, "--downtime", "1000", timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"{NAME} runs at {destination.uri} now" in done.stdout
    assert (served(source), served(destination)) == ([], ["disk0.sock", "net0.sock"])
    guest.agent_socket = destination.folder / "run/agent.sock"
    guest.connect()
    guest.check("dd if=/dev/vda of=/dev/null bs=4096 count=8")


def test_it_stays_where_the_destination_can_not_serve_it(
    hosts: tuple[LibvirtHost, LibvirtHost], guest: Guest
) -> None:
    """The network of the host that it is to go to has gone."""
    two, one = sorted(hosts, key=lambda host: NAME not in host.check("virsh list --name"))
    one.check("ip link del tap0 && ip tuntap add dev tap0 mode tun")  # of another kind
    with pytest.raises(IolaneError, match="the source has it running, the destination not at all"):
        move(guest, two, one)
    assert served(one) == []
    assert served(two) == ["disk0.sock", "net0.sock"]
    guest.check("dd if=/dev/urandom of=/dev/vda bs=4096 count=8 conv=fsync")
