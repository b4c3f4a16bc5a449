"""DPDK's front end, virtio-user, as a client of ours: a testpmd without a guest, and content both ways.

Its memory does not begin at guest address 0, and it sets call descriptors before anything else.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from iolane.backends.net import MemoryNet, open_peer
from iolane.bench.dpdk import Dpdk, check_folder, obtain_dpdk
from iolane.bench.testpmd import Testpmd
from iolane.carriers.vhost_user import VhostUserServer
from iolane.devices.virtio.net import BareNet
from iolane.devices.virtio.net.features import NetFeature
from iolane.engines.qemu.cache import Cache
from iolane.errors import IolaneError
from iolane.model.workers import Workers
from tests.unit.devices.virtio.packet_socket import SocketTap

pytestmark = pytest.mark.timeout(300)

SECONDS = 60.0
SHORT = 14
ROUND = 100
"""Packets on the way at once: fewer than testpmd has buffers for, as it drops what it can't send."""
Network = MemoryNet | SocketTap
KINDS: dict[str, tuple[str, Callable[..., Network]]] = {
    "readable": ("python", MemoryNet),
    "readable in spite of the plane": ("compiled", MemoryNet),
    "compiled": ("compiled", SocketTap),
}
"""Data planes and networks: one that only Python knows, and one that compiled code uses."""
OURS, THEIRS = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")


@pytest.fixture(scope="module")
def dpdk() -> Dpdk:
    try:
        return obtain_dpdk()
    except IolaneError as error:
        pytest.skip(f"DPDK'S FRONT END IS NOT TESTED: {error}")


@pytest.fixture(params=KINDS)
def make_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Network]:
    plane, network = KINDS[request.param]
    monkeypatch.setenv("IOLANE_DATAPLANE", plane)
    return network


@pytest.fixture
def stack(make_network: Callable[..., Network]) -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


def serve(stack: ExitStack, path: Path, net: BareNet) -> VhostUserServer:
    stack.callback(net.close)
    return stack.enter_context(VhostUserServer(net, path, workers=stack.enter_context(Workers(2))))


def port(stack: ExitStack, dpdk: Dpdk, path: Path, mode: str, pairs: int = 1) -> Testpmd:
    """A testpmd whose one port is a front end, and which forwards already."""
    vdev = f"net_virtio_user0,path={path},server=0,queues={pairs}"
    testpmd = Testpmd(dpdk, vdev, "--port-topology=loop", f"--rxq={pairs}", f"--txq={pairs}")
    stack.enter_context(testpmd)
    testpmd.run(f"set fwd {mode}")
    testpmd.run("start")
    return testpmd


def until(done: Callable[[], bool], what: str) -> None:
    """Look until it is so: nobody outside this process tells."""
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def frames(seed: int, count: int = ROUND) -> list[bytes]:
    """No two are the same."""
    chance = random.Random(seed)
    return [
        THEIRS + OURS + b"\x88\xb5" + number.to_bytes(4, "big") + chance.randbytes(chance.randrange(46, 1497))
        for number in range(count)
    ]


def echoed(network: Network, sent: list[bytes]) -> None:
    """What testpmd's `macswap` makes of `sent` has come back."""
    network.feed(*sent)
    until(lambda: len(network.sent) >= len(sent), f"{len(network.sent)} of {len(sent)} came back")
    assert [header for _, header, _ in network.sent] == [bytes(12)] * len(sent)
    assert network.take() == [frame[6:12] + frame[:6] + frame[12:] for frame in sent]


def healthy(net: BareNet) -> dict[str, int | float | str]:
    shown = net.describe()
    assert not [key for key in shown if "rejected" in key], shown
    assert shown["errors"] == shown["dma_faults"] == 0
    assert shown["receive0.rejections"] == shown["transmit0.rejections"] == 0
    return shown


def test_every_byte_goes_to_the_front_end_and_back(
    dpdk: Dpdk, stack: ExitStack, make_network: Callable[..., Network], tmp_path: Path
) -> None:
    network = make_network()
    net = BareNet(backend=network)
    serve(stack, tmp_path / "net", net)
    testpmd = port(stack, dpdk, tmp_path / "net", "macswap")
    rounds = 40
    total = 0
    for seed in range(rounds):
        sent = frames(seed)
        total += sum(map(len, sent))
        echoed(network, sent)
    said = testpmd.counters()
    assert (said.received, said.sent) == (rounds * ROUND, rounds * ROUND)
    assert (said.received_bytes, said.sent_bytes) == (total, total)
    shown = healthy(net)
    assert shown["receive0.packets"] == shown["transmit0.packets"] == rounds * ROUND
    assert shown["receive0.packet_bytes"] == shown["transmit0.packet_bytes"] == total
    if isinstance(network, SocketTap):
        assert shown["receive0.slow"] == shown["transmit0.slow"] == 0


def test_two_queue_pairs(
    dpdk: Dpdk, stack: ExitStack, make_network: Callable[..., Network], tmp_path: Path
) -> None:
    """MQ: what comes in one pair goes out in the same."""
    network = make_network(queues=2)
    net = BareNet(backend=network, queues=2)
    serve(stack, tmp_path / "net", net)
    testpmd = port(stack, dpdk, tmp_path / "net", "macswap", pairs=2)
    assert net.negotiated(NetFeature.MQ)
    until(lambda: network.used == 2, "both pairs are in use")
    sent = {queue: frames(queue) for queue in range(2)}
    for queue, packets in sent.items():
        network.feed(*packets, queue=queue)
    until(lambda: len(network.sent) >= 2 * ROUND, f"{len(network.sent)} came back")
    for queue, packets in sent.items():
        came = [frame for number, _, frame in network.sent if number == queue]
        assert came == [frame[6:12] + frame[:6] + frame[12:] for frame in packets]
    assert testpmd.counters().received == testpmd.counters().sent == 2 * ROUND
    assert net.describe()["transmit1.packets"] == ROUND
    healthy(net)


def test_stop_start_and_another_front_end(
    dpdk: Dpdk, stack: ExitStack, make_network: Callable[..., Network], tmp_path: Path
) -> None:
    """The port stops and starts; its process ends, and is killed amidst packets: the next one goes on."""
    network = make_network()
    net = BareNet(backend=network)
    server = serve(stack, tmp_path / "net", net)
    first = port(stack, dpdk, tmp_path / "net", "macswap")
    echoed(network, frames(1))
    for seed in (2, 3):
        for command in ("stop", "port stop 0", "port start 0", "start"):
            first.run(command)
        echoed(network, frames(seed))
    assert healthy(net)["status"] == 15
    first.quit()
    assert "Bye..." in first.output
    until(lambda: not server.connected, "the front end that has ended is gone")
    gone = healthy(net)
    assert (gone["status"], gone["dma_maps"], gone["receive0.in_flight"]) == (0, 0, 0)

    second = port(stack, dpdk, tmp_path / "net", "txonly")
    until(lambda: len(network.sent) > 1000, "packets of the second")
    second.kill()
    until(lambda: not server.connected, "the front end that was killed is gone")
    assert healthy(net)["dma_maps"] == 0
    network.take()

    port(stack, dpdk, tmp_path / "net", "macswap")
    echoed(network, frames(4))
    healthy(net)


def test_a_generator_s_packets_are_all_counted(
    dpdk: Dpdk, stack: ExitStack, make_network: Callable[..., Network], tmp_path: Path
) -> None:
    """As fast as it can: what it says that it has sent is what has come, byte by byte."""
    network = make_network()
    if isinstance(network, MemoryNet):
        network.capacity = 1 << 22
    net = BareNet(backend=network)
    serve(stack, tmp_path / "net", net)
    testpmd = port(stack, dpdk, tmp_path / "net", "txonly")
    until(lambda: len(network.sent) > 20_000, "packets")
    testpmd.run("stop")
    said = testpmd.counters()
    until(lambda: len(network.sent) == said.sent, f"{len(network.sent)} of {said.sent} have come")
    mac = bytes.fromhex(testpmd.output.split("Port 0: ")[1][:17].replace(":", ""))
    kinds = {frame for _, _, frame in network.sent}
    assert {frame[:14] for frame in kinds} == {bytes.fromhex("020000000000") + mac + b"\x08\x00"}
    assert {frame[26:34] for frame in kinds} == {bytes([198, 18, 0, 1, 198, 18, 0, 2])}
    assert {len(frame) for frame in kinds} == {64}
    assert healthy(net)["transmit0.packet_bytes"] == said.sent_bytes == 64 * said.sent


def test_from_one_testpmd_to_another(dpdk: Dpdk, stack: ExitStack, tmp_path: Path) -> None:
    """Two of our devices at the two ends of a socket, a testpmd behind each."""
    ends = [
        BareNet(backend=open_peer(f"{kind}:{tmp_path / 'wire'}"), name=kind) for kind in ("listen", "unix")
    ]
    for end in ends:
        serve(stack, tmp_path / end.name, end)
    until(lambda: all(end.link_up for end in ends), "the link")
    sink = port(stack, dpdk, tmp_path / "unix", "rxonly")
    source = port(stack, dpdk, tmp_path / "listen", "txonly")
    until(lambda: int(ends[1].describe()["receive0.packets"]) > 5000, "packets")
    source.run("stop")
    said = source.counters()
    until(lambda: ends[1].describe()["receive0.packets"] == said.sent, f"all {said.sent} packets")
    until(lambda: sink.counters().received == said.sent, "the sink has seen them")
    assert sink.counters().received_bytes == said.sent_bytes
    for end in ends:
        healthy(end)


def test_without_an_archive_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IolaneError, match=r"apt-get is needed|archive"):
        obtain_dpdk(Cache(tmp_path / "cache", lambda line: None))
    assert not list((tmp_path / "cache/dpdk").iterdir())


def test_a_cache_that_dpdk_does_not_trust_is_refused_with_the_remedy(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(IolaneError, match="everybody may write") as refused:
        check_folder(open_to_all / "cache")
    assert "IOLANE_CACHE" in str(refused.value)
