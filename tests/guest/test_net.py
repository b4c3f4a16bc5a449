"""The network device in a stock Debian guest: over vhost-user and as a PCI function, one boot, then every
check.

The other ends are taps in a network namespace of this test's own, with the kernel's TCP behind them, and
passt. Everyday runs move a part of the 100 MB that the slow ones move.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from iolane.backends.net import PasstNet
from iolane.backends.net.passt import VARIABLE
from iolane.carriers.vfio_user import VfioUserServer
from iolane.carriers.vhost_user import VhostUserServer
from iolane.carriers.vhost_user.choice import PLANES
from iolane.devices.virtio.net import BareNet, Net, NetFunction
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.engines.qemu.initramfs import InitramfsContent, build_initramfs
from iolane.engines.qemu.kernel import debian_kernel
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.passt import obtain_passt
from iolane.engines.qemu.provision import obtain_qemu
from iolane.errors import IolaneError
from iolane.model.workers import Workers
from iolane.testing.host_namespace import NetworkNamespace

pytestmark = [pytest.mark.guest, pytest.mark.timeout(3000)]

SECONDS = 60.0
PATIENCE = 1200.0
"""For 100 MB on a machine that others use as well: it is against a hang."""
MB = 1_000_000
CONTENT = InitramfsContent(modules=("virtio_pci", "virtio_net", "8021q"))
VHOST, FAST, PCI, PASST, PEER, CABLE = "vhost", "fast", "pci", "passt", "peer", "cable"
"""Over vhost-user one with a capture, whose packets Python sees; those of the other compiled code moves."""
MACS = {VHOST: "52:54:00:00:00:01", PCI: "52:54:00:00:00:02", PASST: "52:54:00:00:00:03"}
MACS |= {PEER: "52:54:00:00:00:04", CABLE: "52:54:00:00:00:05", FAST: "52:54:00:00:00:06"}
NETS = {VHOST: "10.71.0", PCI: "10.72.0", FAST: "10.75.0"}
PAIRS = 2
VLAN = 7


@dataclass
class Guest:
    """The machine, and this process's side of its devices."""

    machine: QemuMachine
    folder: Path
    namespace: NetworkNamespace
    plane: str
    """What serves the rings of the two over vhost-user; those of functions are always read by Python."""
    nets: dict[str, Net] = field(default_factory=dict)
    interfaces: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> None:
        """The interface with the device's address."""
        self.interfaces[name] = self.machine.check(
            f"cd /sys/class/net; for i in *; do grep -q {MACS[name]} $i/address && echo $i; done; true"
        ).strip()

    def counter(self, name: str, key: str) -> int:
        value = self._functions.get(name, self.nets[name]).describe()[key]
        assert isinstance(value, int)
        return value

    _functions: dict[str, NetFunction] = field(default_factory=dict)


def _serve(stack: contextlib.ExitStack, guest: Guest, workers: Workers) -> list[VfioUserDevice]:
    """One tap behind each carrier, and passt behind a third device."""
    folder = guest.folder
    plane = PLANES[guest.plane]
    for name, capture in ((VHOST, folder / f"{VHOST}.pcap"), (FAST, None)):
        bare = BareNet(f"tap-{name}", queues=PAIRS, pcap=capture)
        stack.callback(bare.close)
        stack.enter_context(VhostUserServer(bare, folder / f"{name}.sock", workers=workers, plane=plane))
        guest.nets[name] = bare
    options = {PCI: NetFunction(f"tap-{PCI}", queues=PAIRS, mac=MACS[PCI], pcap=folder / f"{PCI}.pcap")}
    stack.callback(options[PCI].close)
    arguments = ["-a", "10.73.0.2", "-n", "255.255.255.0", "-g", "10.73.0.1", "-4"]
    options[PASST] = NetFunction(backend=PasstNet(arguments=arguments), mac=MACS[PASST])
    stack.callback(options[PASST].close)
    options[PEER] = NetFunction(peer=f"listen:{folder / CABLE}", mac=MACS[PEER])
    stack.callback(options[PEER].close)
    devices = []
    for name, function in options.items():
        server = stack.enter_context(VfioUserServer(function, folder / f"{name}.sock", workers=workers))
        guest.nets[name] = function.virtio
        guest._functions[name] = function
        devices.append(VfioUserDevice(name, server.path))
    for name, net in NETS.items():
        guest.namespace.set_up(f"tap-{name}", address=f"{net}.1")
    return devices


@pytest.fixture(scope="module", params=["compiled", pytest.param("python", marks=pytest.mark.slow)])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("net")
    cache = Cache()
    obtain_qemu(cache)
    build_initramfs(debian_kernel(cache=cache), CONTENT, cache)
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv(VARIABLE, str(obtain_passt(cache)))
        try:
            namespace = stack.enter_context(NetworkNamespace())
        except IolaneError as error:
            pytest.skip(f"THE NETWORK DEVICE IS NOT TESTED IN A GUEST: {error}")
        namespace.make_tap("uplink")
        namespace.set_up("uplink", address="192.0.2.2")
        namespace.add_default_route("192.0.2.1")
        machine = QemuMachine(cache=cache)
        guest = Guest(machine, folder, namespace, request.param)
        devices = _serve(stack, guest, stack.enter_context(Workers(2)))
        qemu = [
            *("-netdev", f"stream,id=cable,server=off,addr.type=unix,addr.path={folder / CABLE}"),
            *("-device", f"virtio-net-pci,netdev=cable,bus=port7,mac={MACS[CABLE]}"),
        ]
        for name, port in ((VHOST, "port8"), (FAST, "port9")):
            qemu += ["-chardev", f"socket,id={name}.socket,path={folder / f'{name}.sock'}"]
            qemu += ["-netdev", f"vhost-user,id={name}.net,chardev={name}.socket,queues={PAIRS}"]
            options = f"bus={port},mac={MACS[name]},mq=on,vectors=6,id={name}"
            qemu += ["-device", f"virtio-net-pci,netdev={name}.net,{options}"]
        machine.config = MachineConfig(
            name="net", cpus=2, devices=devices, content=CONTENT, extra_arguments=qemu, ports=9
        )
        stack.enter_context(machine)
        for name in MACS:
            guest.find(name)
        for name, net in NETS.items():
            machine.check(f"ip addr add {net}.2/24 dev {guest.interfaces[name]}")
            machine.check(f"ip link set {guest.interfaces[name]} up")
        yield guest


@pytest.fixture(autouse=True)
def nothing_went_wrong(guest: Guest) -> Iterator[None]:
    yield
    for name in guest.nets:
        shown = guest._functions[name].describe() if name in guest._functions else guest.nets[name].describe()
        assert shown["errors"] == 0, name
        assert shown["dma_faults"] == 0, name
        assert not [key for key in shown if key.startswith(("rejected_", "transmit_rejected_"))], name


# TCP both ways.


def _source(connection: socket.socket, size: int) -> str:
    """Send random bytes; their checksum."""
    digest = hashlib.md5()
    block = os.urandom(MB)
    for number in range(size // MB):
        data = number.to_bytes(8, "big") + block[8:]
        digest.update(data)
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def _sink(connection: socket.socket) -> str:
    digest = hashlib.md5()
    while data := connection.recv(1 << 18):
        digest.update(data)
    return digest.hexdigest()


@contextlib.contextmanager
def listening(address: str, serve: Callable[[socket.socket], str]) -> Iterator[tuple[int, list[str]]]:
    """A TCP server for one connection: its port, and what `serve` says of it."""
    found: list[str] = []
    with socket.create_server((address, 0)) as server:
        server.settimeout(SECONDS)

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(SECONDS)
                found.append(serve(connection))

        thread = threading.Thread(target=run)
        thread.start()
        yield server.getsockname()[1], found
        thread.join(2 * SECONDS)


def _exchange(guest: Guest, name: str, size: int) -> float:
    """Bytes from the host to the guest, then from the guest to the host; seconds of both."""
    address, machine = f"{NETS[name]}.1", guest.machine
    started = time.monotonic()
    with listening(address, lambda connection: _source(connection, size)) as (port, sent):
        got = machine.check(f"nc {address} {port} </dev/null | md5sum", timeout=PATIENCE).split()[0]
    assert sent == [got]
    wanted = machine.check(f"head -c {size} /dev/urandom > /tmp/out; md5sum < /tmp/out", timeout=PATIENCE)
    with listening(address, _sink) as (port, received):
        machine.check(f"nc {address} {port} < /tmp/out", timeout=PATIENCE)
    assert received == [wanted.split()[0]]
    machine.check("rm /tmp/out")
    return time.monotonic() - started


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [20 * MB, pytest.param(100 * MB, marks=pytest.mark.slow)])
def test_tcp_both_ways(guest: Guest, name: str, size: int) -> None:
    received = guest.counter(name, "receive0.packet_bytes") + guest.counter(name, "receive1.packet_bytes")
    seconds = _exchange(guest, name, size)
    received = (
        guest.counter(name, "receive0.packet_bytes") + guest.counter(name, "receive1.packet_bytes") - received
    )
    print(f"{name}: {2 * size / seconds / MB:.1f} MB/s both ways together")
    assert received > size


@pytest.mark.parametrize("name", NETS)
def test_offloads_and_queues_are_in_use(guest: Guest, name: str) -> None:
    """Segments are larger than packets on a wire, both ways; both queue pairs are there and were used."""
    _exchange(guest, name, 8 * MB)  # the connections before are small
    net = guest.nets[name]
    assert int(net.host_offloads) == 0xF
    assert int(net.guest_offloads) == 0xF
    assert net.pairs == PAIRS
    for way in ("receive", "transmit"):
        packets = sum(guest.counter(name, f"{way}{pair}.packets") for pair in range(PAIRS))
        size = sum(guest.counter(name, f"{way}{pair}.packet_bytes") for pair in range(PAIRS))
        assert size / packets > 1514, way
    if name == FAST and guest.plane == "compiled":
        fast = [
            guest.counter(name, f"{way}{pair}.slow")
            for way in ("receive", "transmit")
            for pair in range(PAIRS)
        ]
        assert sum(fast) == 0, "the stock driver sends nothing that is not plain"
    queues = guest.machine.check(f"ls -d /sys/class/net/{guest.interfaces[name]}/queues/rx-*").split()
    assert len(queues) == PAIRS


# The link, filters, addresses: here over virtio-pci, by vhost-user they are QEMU's.


def _carrier(guest: Guest, name: str, wanted: int) -> None:
    path = f"/sys/class/net/{guest.interfaces[name]}/carrier"
    guest.machine.check(
        f"for i in 1 2 3 4 5 6 7 8 9 10; do [ $(cat {path}) = {wanted} ] && exit 0; sleep 0.2; done; exit 1"
    )


def _pings(guest: Guest, address: str) -> bool:
    """Whether one of a few is answered: Linux sends nothing for up to a second after a link has come up."""
    attempt = f"ping -c 1 -W 2 {address} && exit 0; sleep 0.5"
    return guest.machine.run(f"for i in 1 2 3; do {attempt}; done; exit 1").exit_code == 0


def test_qemu_has_nothing_to_complain_of(guest: Guest) -> None:
    now = guest.machine._now
    assert now is not None
    assert "warning" not in now.process.messages()


def test_the_link_goes_down_and_up(guest: Guest) -> None:
    net = guest.nets[PCI]
    assert _pings(guest, f"{NETS[PCI]}.1")
    net.set_link(False)
    _carrier(guest, PCI, 0)
    assert not _pings(guest, f"{NETS[PCI]}.1")
    net.set_link(True)
    _carrier(guest, PCI, 1)
    assert _pings(guest, f"{NETS[PCI]}.1")


@pytest.mark.parametrize("name", [VHOST, FAST])
def test_the_link_over_vhost_user_is_the_front_end_s(guest: Guest, name: str) -> None:
    guest.machine.qmp.execute("set_link", name=name, up=False)
    _carrier(guest, name, 0)
    guest.machine.qmp.execute("set_link", name=name, up=True)
    _carrier(guest, name, 1)
    assert _pings(guest, f"{NETS[name]}.1")


def _send_raw(interface: str, frame: bytes, count: int = 20) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        for _ in range(count):
            raw.send(frame)


def _frame(target: str, tag: bytes = b"") -> bytes:
    """A frame of a type that nobody uses."""
    return (
        bytes.fromhex(target.replace(":", "")) + bytes.fromhex("020000000099") + tag + b"\x88\xb5" + bytes(46)
    )


def _delivered(guest: Guest, frame: bytes) -> int:
    """How many of the frames the device gives to the guest; the capture knows them."""
    before = sum(1 for data in captured(guest.folder / f"{PCI}.pcap") if data == frame)
    _send_raw(f"tap-{PCI}", frame)
    assert _pings(guest, f"{NETS[PCI]}.1")  # what was before it has passed
    return sum(1 for data in captured(guest.folder / f"{PCI}.pcap") if data == frame) - before


def test_addresses_are_filtered(guest: Guest) -> None:
    interface, other = guest.interfaces[PCI], _frame("02:00:00:00:00:77")
    assert _delivered(guest, other) == 0
    assert _delivered(guest, _frame(MACS[PCI])) == 20
    guest.machine.check(f"ip link set {interface} promisc on")
    assert _delivered(guest, other) == 20
    guest.machine.check(f"ip link set {interface} promisc off")
    assert _delivered(guest, other) == 0
    group = _frame("01:00:5e:01:02:03")
    assert _delivered(guest, group) == 0
    guest.machine.check(f"ifconfig {interface} allmulti")
    assert _delivered(guest, group) == 20
    assert guest.counter(PCI, "receive_filtered_address") >= 60


def test_another_address_of_the_guest(guest: Guest) -> None:
    interface = guest.interfaces[PCI]
    guest.machine.check(f"ip link set {interface} down; ip link set {interface} address 02:00:00:00:00:55")
    guest.machine.check(f"ip link set {interface} up")
    assert guest.nets[PCI].mac.hex(":") == "02:00:00:00:00:55"
    assert _pings(guest, f"{NETS[PCI]}.1")
    guest.machine.check(f"ip link set {interface} down; ip link set {interface} address {MACS[PCI]}")
    guest.machine.check(f"ip link set {interface} up")
    assert _pings(guest, f"{NETS[PCI]}.1")


def test_vlans_are_filtered(guest: Guest) -> None:
    interface = guest.interfaces[PCI]
    tagged = _frame(MACS[PCI], b"\x81\x00" + VLAN.to_bytes(2, "big"))
    assert _delivered(guest, tagged) == 0
    guest.machine.check(f"vconfig add {interface} {VLAN}")
    assert _delivered(guest, tagged) == 20
    guest.machine.check(f"vconfig rem {interface}.{VLAN}")
    assert _delivered(guest, tagged) == 0


def test_the_guest_is_asked_to_announce_itself(guest: Guest) -> None:
    """5.1.6.5.4: it does so by gratuitous ARP, and acknowledges."""
    net, function = guest.nets[PCI], guest._functions[PCI]
    before = len(_gratuitous(guest))
    with function.lock:
        net._announce_once()
    deadline = time.monotonic() + SECONDS
    while net._announce or len(_gratuitous(guest)) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _gratuitous(guest: Guest) -> list[bytes]:
    own = socket.inet_aton(f"{NETS[PCI]}.2")
    return [
        data
        for data in captured(guest.folder / f"{PCI}.pcap")
        if data[12:14] == b"\x08\x06" and data[28:32] == own and data[38:42] == own
    ]


@pytest.mark.parametrize("name", [PCI, FAST])
def test_the_driver_can_come_back(guest: Guest, name: str) -> None:
    """Unbind and bind: reset, negotiation and queues anew."""
    device = guest.machine.check(
        f"basename $(readlink /sys/class/net/{guest.interfaces[name]}/device)"
    ).strip()
    driver = "/sys/bus/virtio/drivers/virtio_net"
    guest.machine.check(f"cd {driver} && echo {device} > unbind && echo {device} > bind")
    guest.find(name)
    interface = guest.interfaces[name]
    guest.machine.check(f"ip addr add {NETS[name]}.2/24 dev {interface}; ip link set {interface} up")
    assert _pings(guest, f"{NETS[name]}.1")


# passt, cables, and captures.


def test_passt_gives_an_address_and_a_way_to_the_host(guest: Guest) -> None:
    """DHCP, then TCP to the host's loopback at the gateway's address."""
    interface, machine = guest.interfaces[PASST], guest.machine
    script = "/tmp/udhcpc"
    machine.push(script, b"#!/bin/sh\n[ $1 = bound ] && ip addr add $ip/24 dev $interface\nexit 0\n", 0o755)
    machine.check(f"ip link set {interface} up; udhcpc -i {interface} -s {script} -n -q -t 5")
    assert "10.73.0.2/24" in machine.check(f"ip addr show {interface}")
    with listening("127.0.0.1", lambda connection: _source(connection, 3 * MB)) as (port, sent):
        # The guest's side stays open: the passt of Debian 12 stalls when it is closed before the host's.
        command = f"mkfifo /tmp/open; nc 10.73.0.1 {port} 0<>/tmp/open | md5sum"
        got = machine.check(command, timeout=120).split()[0]
    assert sent == [got]


def test_a_cable_to_a_network_device_of_qemu_s_own(guest: Guest) -> None:
    """`-netdev stream`: the guest asks on one interface, and answers on the other."""
    machine, ours, theirs = guest.machine, guest.interfaces[PEER], guest.interfaces[CABLE]
    machine.check(f"ip addr add 10.74.0.1/24 dev {ours}; ip link set {ours} up; ip link set {theirs} up")
    _carrier(guest, PEER, 1)
    seen = machine.run(f"arping -D -c 3 -w 10 -f -I {theirs} 10.74.0.1").output
    assert MACS[PEER] in seen.lower(), seen
    shown = guest._functions[PEER].describe()
    assert shown["network_connected"] == 1
    assert isinstance(shown["receive0.packets"], int)
    assert shown["receive0.packets"] > 0


def captured(path: Path) -> Iterator[bytes]:
    """The frames of a capture, which may still be growing."""
    data = path.read_bytes()
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    at = 24
    while at + 16 <= len(data):
        _, _, length, whole = struct.unpack_from("<IIII", data, at)
        assert length == whole
        yield data[at + 16 : at + 16 + length]
        at += 16 + length


@pytest.mark.parametrize("name", [VHOST, PCI])
def test_the_capture_holds_what_passed(guest: Guest, name: str) -> None:
    """A text in a TCP stream each way, in frames between the two addresses."""
    address = f"{NETS[name]}.1"
    words = [os.urandom(16).hex() for _ in range(2)]

    def serve(connection: socket.socket) -> str:
        connection.sendall(words[0].encode())
        return connection.recv(1000).decode().strip()

    with listening(address, serve) as (port, said):
        guest.machine.check(f"(echo {shlex.quote(words[1])}; sleep 1) | nc {address} {port}")
    assert said == [words[1]]
    frames = list(captured(guest.folder / f"{name}.pcap"))
    mac = bytes.fromhex(MACS[name].replace(":", ""))
    assert any(words[0].encode() in frame and frame[:6] == mac for frame in frames)
    assert any(words[1].encode() in frame and frame[6:12] == mac for frame in frames)
