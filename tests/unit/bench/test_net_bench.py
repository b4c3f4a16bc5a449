"""The measurement of packets: that it measures what it says, beside testpmd and without it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from iolane.bench import net
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
from iolane.engines.qemu.cache import Cache
from iolane.errors import IolaneError

pytestmark = pytest.mark.timeout(300)
FEW = (Case(SEND, 64, 32), Case(RECEIVE, 1500, 32), Case(ECHO, 64, 1), Case(ECHO, 1500, 128))
STALLED_NS = 200_000_000
"""As in net_client.c: on a machine that is busy with others an echo may take longer."""


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
        late = item.iolane.p99 > STALLED_NS
        assert item.iolane.lost == 0 or late, "the client counts what is late as lost"
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


def test_the_table_has_both_sizes_and_every_way() -> None:
    assert {case.length for case in CASES} == {64, 1500}
    assert {case.way for case in CASES} == {SEND, RECEIVE, ECHO}
    assert len({case.name for case in CASES}) == len(CASES)


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(IolaneError, match="at least 1"):
        run_net_bench(rounds=0)
