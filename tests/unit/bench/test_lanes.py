"""What `iolane bench lanes` makes of its measurements, its load program, and its picture."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from iolane.bench.lanes import (
    DiskResult,
    LanesResult,
    LoadResult,
    medians,
    missed,
    picture,
    rows,
    to_markdown,
    write_numbers,
    wrong,
)
from iolane.bench.lanes_in_lab import LOADS, Measured
from iolane.bench.native import build
from iolane.errors import IolaneError
from iolane.lab.lanes import DISKS, LaneDisk, Way, disk


def load(name: str, values: dict[str, float]) -> LoadResult:
    usual = {"rate": 100.0, "p50": 10.0, "p99": 20.0, "cpu": 5.0, "exits": 3.0, "halts": 1.0}
    usual |= {"to_user": 0.0, "interrupts": 1.0}
    return msgspec.convert({"load": name, "traps": None} | usual | values, LoadResult)


def result(
    each: LaneDisk, values: dict[str, float] | None = None, *, checksum: str = "same", wrong: int = 0
) -> DiskResult:
    loads = [load(one.name, values or {}) for one in LOADS]
    return DiskResult(
        id=each.id,
        lane=each.lane,
        device=each.device,
        way=each.way,
        carrier=each.carrier,
        checksum=checksum,
        wrong=wrong,
        loads=loads,
    )


def everything() -> list[DiskResult]:
    return [result(each, {"traps": 0.0}) if each.way is Way.MEDIATED else result(each) for each in DISKS]


def whole(disks: list[DiskResult]) -> LanesResult:
    return LanesResult(
        machine="a machine", command="a command", rounds=1, milliseconds=1, disks=disks, missed=missed(disks)
    )


def test_medians_are_for_one_request() -> None:
    rounds = [
        Measured(
            load="read",
            requests=requests,
            nanoseconds=1_000_000_000,
            p50=2000,
            p99=4000,
            interrupts=requests,
            exits=3 * requests,
            halts=requests,
            to_user=2 * requests,
            traps=2 * requests,
            cpu=5000 * requests,
        )
        for requests in (100, 200, 1000)
    ]
    found = medians("read", rounds)
    assert (found.rate, found.p50, found.p99, found.cpu) == (200.0, 2.0, 4.0, 5.0)
    assert (found.exits, found.halts, found.to_user, found.traps, found.interrupts) == (3, 1, 2, 2, 1)


def test_nothing_is_missed() -> None:
    assert missed(everything()) == []
    assert missed([result(disk("emulated"))]) == []


def test_contents_that_differ() -> None:
    disks = [result(disk("emulated"), checksum="other", wrong=3), result(disk("direct"))]
    first, second = missed(disks)
    assert first == "emulated: 3 blocks hold what was not written"
    assert "does not read the same" in second


@pytest.mark.parametrize(
    ("values", "words", "times"),
    [
        ({"rate": 89.0}, "0.89 of the rate of direct", 1),
        ({"traps": 1.0}, "more traps than direct", len(LOADS)),
        ({"to_user": 2.0}, "more traps than direct", len(LOADS)),
    ],
)
def test_a_mediator_that_costs(values: dict[str, float], words: str, times: int) -> None:
    """The issue: with tracing off traps equal direct passthrough and throughput is at least 0.9 of it."""
    disks = [result(disk("direct")), result(disk("mediated"), {"traps": 0.0} | values)]
    found = missed(disks)
    assert len(found) == times
    assert words in found[0]
    assert wrong(disks) == ([] if "rate" in values else found)


def test_the_table_has_ratios_to_direct_passthrough(tmp_path: Path) -> None:
    disks = [
        result(disk("direct")),
        result(disk("emulated"), {"rate": 25.0, "p50": 40.0, "traps": 2.0, "to_user": 2.0}),
    ]
    direct, emulated = rows(whole(disks), LOADS[0].name)
    assert direct[3:] == ("1.00", "1.00", "1.00", "1.00", "3.00", "1.00", "0.00", "-", "1.00")
    assert emulated[:7] == ("NVMe, iolane", "emulated", "vfio-user", "0.25", "4.00", "1.00", "1.00")
    assert emulated[7:] == ("3.00", "1.00", "2.00", "2.00", "1.00")
    document = tmp_path / "numbers.md"
    write_numbers(whole(disks), document)
    assert "## Lanes" in document.read_text()
    assert (tmp_path / "lanes.svg").exists()
    assert "absolute times would mean little" in " ".join(to_markdown(whole(disks)).split())


def test_the_picture_is_a_drawing_with_a_row_for_each_disk() -> None:
    drawn = ElementTree.fromstring(picture(whole(everything())))
    words = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    for each in DISKS:
        assert each.title in words
    width = float(drawn.get("width", "0"))
    for box in drawn.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(box.get("x", "0")) + float(box.get("width", "0")) <= width


def test_an_unknown_disk() -> None:
    with pytest.raises(IolaneError, match="no lane has the disk 'fast'"):
        disk("fast")


def test_the_load_program_refuses_what_is_no_disk(tmp_path: Path) -> None:
    program = build(["disk_load"], static=True) / "disk_load"
    done = subprocess.run([program, tmp_path / "none", "read", "1", "10"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "No such file" in done.stderr
    assert subprocess.run([program], capture_output=True).returncode == 2
    assert msgspec.json.decode(msgspec.json.encode(whole(everything())), type=LanesResult).missed == []
