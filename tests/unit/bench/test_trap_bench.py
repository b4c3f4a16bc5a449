"""The measurement of traps: that it measures; how much, only with --all."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from iolane.bench.document import machine, put_section
from iolane.bench.native import build
from iolane.bench.trap import CASES, SECTION, TrapBenchResult, run_trap_bench, to_markdown, write_numbers
from iolane.engines.qemu.cache import Cache
from iolane.errors import IolaneError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"), report=lambda _: None)


@pytest.fixture(scope="module")
def result(cache: Cache) -> TrapBenchResult:
    return run_trap_bench(rounds=2, accesses=200, posted=1000, cache=cache)


def test_every_case_is_measured_on_both(result: TrapBenchResult) -> None:
    assert [item.case for item in result.cases] == list(CASES)
    for item in result.cases:
        for figures in (item.bare, item.iolane):
            assert 0 < figures.p50 <= figures.p99
            assert figures.cpu > 0
            assert figures.wall > 0
        assert 0.05 < item.ratio < 1000


def test_it_is_data(result: TrapBenchResult) -> None:
    assert msgspec.json.decode(msgspec.json.encode(result), type=TrapBenchResult) == result
    assert result.command == "iolane bench trap --rounds 2"


def test_the_document_says_command_machine_and_ratios(result: TrapBenchResult, tmp_path: Path) -> None:
    document = tmp_path / "docs/numbers.md"
    put_section(document, "Another", "stays")
    for _ in range(2):
        write_numbers(result, document)
    put_section(document, "A third", "too")
    write_numbers(result, document)
    text = document.read_text()
    assert text.startswith("# Numbers\n")
    assert text.count(f"## {SECTION}\n") == 1
    assert "## Another\n\nstays\n" in text
    assert "## A third\n\ntoo\n" in text
    assert to_markdown(result) in text
    assert result.command in text
    assert machine().split(",")[0] in text
    for item in result.cases:
        assert f"| {item.case.name} |" in text


def test_programs_are_built_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(("trap_client", "bare_server"), cache)
    monkeypatch.setenv("CC", "/nonexistent")
    assert build(("trap_client", "bare_server"), cache) == first


def test_without_a_compiler_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Cache(tmp_path, report=lambda _: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IolaneError, match="apt install gcc"):
        build(("trap_client",), empty)
    monkeypatch.setenv("CC", "/nonexistent/cc")
    with pytest.raises(IolaneError, match="does not start"):
        build(("trap_client",), empty)


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(IolaneError, match="at least 1"):
        run_trap_bench(rounds=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_traps_cost_at_most_1_8_times_c(cache: Cache) -> None:
    """Other work on the machine meets both servers, but not evenly: two tries."""
    found = run_trap_bench(rounds=9, cache=cache)
    if found.over_limit:
        found = run_trap_bench(rounds=15, cache=cache)
    print(to_markdown(found))
    assert found.over_limit == ()
