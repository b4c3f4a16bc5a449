"""The measurement of packets: that it measures what it says, beside testpmd and without it."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from iolane.backends.net.memory import MemoryNet
from iolane.bench import net
from iolane.bench.native import build
from iolane.bench.net import (
    CASES,
    ECHO,
    RECEIVE,
    SECTION,
    SEND,
    Case,
    NetBenchResult,
    run_net_bench,
    to_markdown,
    write_numbers,
)
from iolane.carriers.vhost_user import VhostUserServer
from iolane.devices.virtio.net import BareNet
from iolane.engines.qemu.cache import Cache
from iolane.errors import IolaneError
from iolane.model.workers import Workers

pytestmark = pytest.mark.timeout(300)
LATE = 1.5
"""Seconds: longer than a measurement."""
FEW = (Case(SEND, 64, 32), Case(RECEIVE, 1500, 32), Case(ECHO, 64, 1), Case(ECHO, 1500, 128))


def check(result: NetBenchResult) -> None:
    assert [item.case for item in result.cases] == list(FEW)
    for item in result.cases:
        for figures in (item.iolane, item.testpmd):
            if figures is None:
                continue
            assert figures.rate > 0
            assert figures.cpu > 0
            if item.case.way == ECHO:
                assert 0 < figures.p50 <= figures.p99
            else:
                assert figures.p50 == figures.p99 == figures.lost == 0
        assert item.iolane.lost == 0
    assert msgspec.json.decode(msgspec.json.encode(result), type=NetBenchResult) == result


def test_both_are_measured(tmp_path: Path) -> None:
    result = run_net_bench(rounds=1, milliseconds=300, cases=FEW)
    if result.dpdk is None:
        pytest.skip(f"NOT MEASURED BESIDE TESTPMD: {result.without}")
    check(result)
    assert all(item.ratio_rate and item.ratio_cpu for item in result.cases)
    document = tmp_path / "numbers.md"
    write_numbers(result, document)
    text = document.read_text()
    assert f"## {SECTION}\n" in text
    assert result.command in text
    assert result.dpdk in text
    for item in result.cases:
        assert f"| {item.case.name} |" in text


def test_without_testpmd_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(cache: Cache | None = None) -> None:
        raise IolaneError("no archive here")

    monkeypatch.setattr(net, "obtain_dpdk", nothing)
    told: list[str] = []
    result = run_net_bench(rounds=1, milliseconds=300, cases=FEW, report=told.append)
    check(result)
    assert told[0] == "without testpmd: no archive here"
    assert (result.dpdk, result.without) == (None, "no archive here")
    assert all(item.testpmd is None and item.ratio_rate is None for item in result.cases)
    assert "nobody: no archive here" in to_markdown(result)


class Unreliable(MemoryNet):
    """A network that gives back what it gets: a few packets late, a few not at all."""

    def __init__(self, *, late: int, lost: int) -> None:
        super().__init__()
        self._late, self._lost = late, lost
        self.timers: list[threading.Timer] = []
        self._coming: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._network = threading.Thread(target=self._give_back)
        self._network.start()

    def _give_back(self) -> None:
        """As a network does: not while the device is sending."""
        while (packet := self._coming.get()) is not None:
            self.feed(packet)

    def end(self) -> None:
        self._coming.put(None)
        self._network.join()

    def send(self, queue: int, header: bytes, frame: Sequence[memoryview | bytes]) -> bool:
        packet = b"".join(frame)
        if self._lost:
            self._lost -= 1
        elif self._late:
            self._late -= 1
            self.timers.append(threading.Timer(LATE, lambda: self.feed(packet)))
            self.timers[-1].start()
        else:
            self._coming.put(packet)
        return True


@pytest.mark.parametrize(("late", "lost"), [(5, 0), (0, 3)])
def test_late_packets_are_not_lost_ones(tmp_path: Path, late: int, lost: int) -> None:
    """They come a second after the measurement; those that were lost are counted, and others sent instead."""
    network = Unreliable(late=late, lost=lost)
    device = BareNet(backend=network)
    client = build((net.CLIENT,)) / net.CLIENT
    processor = min(os.sched_getaffinity(0))
    with Workers(1) as workers, VhostUserServer(device, tmp_path / "s", workers=workers) as server:
        command = [client, server.path, "echo", "64", "8", "500", str(processor)]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=True)
        for timer in network.timers:
            timer.join()
        network.end()
    device.close()
    assert len(network.timers) == late
    packets, _, _, _, total, counted = map(int, done.stdout.split())
    assert 0 < packets < total
    assert counted == lost


def test_the_table_has_both_sizes_and_every_way() -> None:
    assert {case.length for case in CASES} == {64, 1500}
    assert {case.way for case in CASES} == {SEND, RECEIVE, ECHO}
    assert len({case.name for case in CASES}) == len(CASES)


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(IolaneError, match="at least 1"):
        run_net_bench(rounds=0)
