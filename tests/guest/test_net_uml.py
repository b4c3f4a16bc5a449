"""The network device in User Mode Linux, which has a vhost-user front end without a control queue."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.vhost_user import VhostUserServer
from iolane.carriers.vhost_user.choice import PLANES
from iolane.devices.virtio.net import BareNet
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.initramfs import InitramfsContent, build_initramfs
from iolane.engines.uml.machine import UmlConfig, UmlDevice, UmlMachine
from iolane.engines.uml.provision import uml_kernel
from iolane.errors import IolaneError
from iolane.model.workers import Workers
from iolane.testing.host_namespace import NetworkNamespace
from iolane.uapi.virtio import DeviceType

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

SECONDS = 60.0
MB = 1_000_000
HOST, GUEST = "10.75.0.1", "10.75.0.2"
CONTENT = InitramfsContent(modules=("virtio_net",))


@pytest.fixture(params=sorted(PLANES))
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UmlMachine]:
    cache = Cache()
    build_initramfs(uml_kernel(cache), CONTENT, cache)
    try:
        with NetworkNamespace() as namespace, Workers(1) as workers:
            net = BareNet("tap-uml")
            namespace.set_up("tap-uml", address=HOST)
            plane = PLANES[request.param]
            with VhostUserServer(net, tmp_path / "net.sock", workers=workers, plane=plane) as server:
                devices = [UmlDevice(server.path, DeviceType.NET)]
                with UmlMachine(UmlConfig(name="net", devices=devices, content=CONTENT), cache) as machine:
                    machine.check(f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
                    yield machine
            shown = net.describe()
            assert (shown["errors"], shown["dma_faults"]) == (0, 0)
            net.close()
    except IolaneError as error:
        if "namespace" not in str(error):
            raise
        pytest.skip(f"THE NETWORK DEVICE IS NOT TESTED IN USER MODE LINUX: {error}")


@pytest.mark.parametrize("size", [10 * MB, pytest.param(100 * MB, marks=pytest.mark.slow)])
def test_tcp_both_ways(machine: UmlMachine, size: int) -> None:
    data, sums = os.urandom(size), []

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SECONDS)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SECONDS)
            digest = hashlib.md5()
            while part := connection.recv(1 << 18):
                digest.update(part)
            sums.append(digest.hexdigest())

    with socket.create_server((HOST, 0)) as server:
        server.settimeout(SECONDS)
        port = server.getsockname()[1]
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        got = machine.check(f"nc {HOST} {port} </dev/null | md5sum", timeout=120).split()[0]
        assert got == hashlib.md5(data).hexdigest()
        text = f"yes iolane | head -c {size}"
        sent = machine.check(f"{text} | md5sum; {text} | nc {HOST} {port}", timeout=120).split()[0]
        thread.join(SECONDS)
    assert sums == [sent]
