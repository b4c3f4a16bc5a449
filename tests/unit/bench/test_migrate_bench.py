"""The measurement of moves: what it says of its figures, and that it moves guests."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from iolane.bench.migrate import (
    OURS,
    QEMUS,
    Case,
    CaseResult,
    Figures,
    MigrateBenchResult,
    medians,
    on_host,
    run_migrate_bench,
)
from iolane.bench.migrate_document import LAZY_SECTION, SECTION, rows, to_markdown, write_numbers
from iolane.errors import IolaneError

CASE = Case(256, 64)


def figures(total: float, downtime: float) -> Figures:
    return Figures(
        total=total,
        downtime=downtime,
        qemu_downtime=downtime / 2,
        silence=downtime * 2,
        transferred=total * (100 << 20),
        passes=3,
    )


def result(total: float, downtime: float) -> MigrateBenchResult:
    ours, theirs = figures(2 * total, 0.1 * downtime), figures(2, 0.1)
    case = CaseResult(CASE, {OURS: ours, QEMUS: theirs}, [0.5, total, 2.0], [0.5, downtime, 2.0])
    other = CaseResult(Case(1024, 0), {OURS: ours, QEMUS: theirs}, [0.5, 1.0, 2.0], [0.5, 1.0, 2.0])
    return MigrateBenchResult("iolane bench migrate --rounds 5", "a machine", "11.0.0", 5, (case, other))


def test_medians_are_of_each_figure() -> None:
    found = medians([figures(1, 0.3), figures(3, 0.1), figures(2, 0.2)])
    assert found == figures(2, 0.2)
    assert found.bandwidth == 100 << 20


@pytest.mark.parametrize(
    ("total", "downtime", "missed"),
    [
        (1.0, 1.1, []),
        (1.2, 1.0, ["256 MiB, 64 MiB/s changed: total time 1.20 (0.50 to 2.00), should be at most 1.1"]),
        (0.5, 1.11, ["256 MiB, 64 MiB/s changed: downtime 1.11 (0.50 to 2.00), should be at most 1.1"]),
    ],
)
def test_a_missed_target_is_named(total: float, downtime: float, missed: list[str]) -> None:
    found = result(total, downtime)
    assert found.missed == missed
    assert all(line in to_markdown(found) for line in missed)


def test_the_table(tmp_path: Path) -> None:
    ours, theirs, *_, whole = rows(result(1.05, 1.0))
    assert ours[1:] == (
        "iolane",
        "2.10",
        "100",
        "50",
        "200",
        "100",
        "3",
        "1.05 (0.50 to 2.00)",
        "1.00 (0.50 to 2.00)",
    )
    assert theirs[1:] == ("QEMU", "2.00", "100", "50", "200", "100", "3", "", "")
    assert whole[:2] == ("all of them", "iolane")
    assert whole[-2:] == ("1.02 (0.50 to 2.00)", "1.00 (0.50 to 2.00)")
    write_numbers(result(1.0, 1.0), tmp_path / "numbers.md")
    text = (tmp_path / "numbers.md").read_text()
    assert f"## {SECTION}\n" in text
    assert "iolane bench migrate --rounds 5" in text
    write_numbers(msgspec.structs.replace(result(1.0, 1.0), lazy=True), tmp_path / "numbers.md")
    text = (tmp_path / "numbers.md").read_text()
    assert f"## {SECTION}\n" in text, "beside the other"
    assert f"## {LAZY_SECTION}\n" in text


def test_all_guests_together_are_judged_too() -> None:
    found = result(1.0, 1.0)
    slow = msgspec.structs.replace(found.cases[0], downtimes=[1.2, 1.2, 1.2])
    missed = msgspec.structs.replace(found, cases=(slow, slow)).missed
    assert missed[-1] == "all of them: downtime 1.20 (1.20 to 1.20), should be at most 1.1"


def test_what_was_left_out_is_named() -> None:
    found = msgspec.structs.replace(result(1.0, 1.0), left_out=(Case(4096, 64),))
    assert "Left out for want of memory: 4096 MiB, 64 MiB/s changed." in to_markdown(found)


def test_guests_that_do_not_fit() -> None:
    said: list[str] = []
    with pytest.raises(IolaneError, match="no guest fits"):
        run_migrate_bench(rounds=1, cases=(Case(1 << 30, 0),), report=said.append)
    assert len(said) == 1
    assert "left out, it takes" in said[0]


def test_two_hosts_share_no_processor() -> None:
    before = os.sched_getaffinity(0)
    seen = []
    for number in range(3):
        with on_host(number):
            seen.append(os.sched_getaffinity(0))
    assert seen[0] == seen[2]
    assert seen[0] | seen[1] == before == os.sched_getaffinity(0)
    assert len(before) == 1 or not seen[0] & seen[1]


def test_no_rounds() -> None:
    with pytest.raises(IolaneError, match="at least one round"):
        run_migrate_bench(rounds=0)


@pytest.mark.slow
@pytest.mark.guest
@pytest.mark.timeout(600)
def test_both_move() -> None:
    said: list[str] = []
    found = run_migrate_bench(rounds=2, cases=(Case(192, 32),), report=said.append)
    [case] = found.cases
    assert set(case.figures) == {OURS, QEMUS}
    assert len(said) == 4
    for each in case.figures.values():
        assert 0 < each.downtime < each.total
        assert each.silence > 0
        assert each.transferred > 96 << 20, "what is full is no more than it was"
        assert each.passes >= 2
    assert msgspec.json.decode(msgspec.json.encode(found), type=MigrateBenchResult) == found
