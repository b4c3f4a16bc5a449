"""What query-migrate says (QEMU's qapi/migration.json, MigrationInfo), and what follows from it."""

from __future__ import annotations

import pytest

from iolane.engines.qemu.migration_progress import Progress, progress, seconds_left
from iolane.engines.qemu.migration_settings import MigrationSettings
from iolane.errors import IolaneError

ACTIVE = {
    "status": "active",
    "total-time": 1500,
    "expected-downtime": 300,
    "cpu-throttle-percentage": 20,
    "ram": {
        "total": 1000 << 20,
        "remaining": 250 << 20,
        "transferred": 800 << 20,
        "mbps": 800.0,
        "dirty-pages-rate": 1000,
        "page-size": 4096,
        "dirty-sync-count": 3,
    },
}


def test_figures_are_in_bytes_and_seconds() -> None:
    seen = progress(ACTIVE, 0.3)
    assert (seen.seconds, seen.rate, seen.dirty_rate, seen.passes) == (1.5, 1e8, 4096e3, 3)
    assert (seen.downtime, seen.slowed, seen.done) == (0.3, 0.2, 0.75)
    assert seen.estimate == pytest.approx(((250 << 20) - 0.3e8) / (1e8 - 4096e3))


def test_before_it_begins_there_is_no_estimate() -> None:
    assert progress({}, 0.3) == Progress()


def test_what_changes_faster_than_it_is_sent_does_not_end() -> None:
    assert seconds_left(1 << 30, 1e8, 2e8, 0.3) is None


def test_what_fits_into_the_downtime_is_at_its_end() -> None:
    assert seconds_left(1 << 20, 1e8, 2e8, 0.3) == 0.0


def test_after_its_end_nothing_is_estimated() -> None:
    assert progress({**ACTIVE, "status": "completed", "downtime": 12}, 0.3).estimate is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, 2000.1, float("nan")])
def test_a_downtime_that_qemu_would_not_take_is_refused(seconds: float) -> None:
    with pytest.raises(IolaneError, match="downtime"):
        MigrationSettings(downtime=seconds)
