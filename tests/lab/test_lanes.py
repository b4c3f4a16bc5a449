"""One guest with the same disk in several lanes: what `iolane lab demo` shows, what `bench lanes` counts.

Each boots a lab of its own, whose disks have the same content.
"""

from __future__ import annotations

import pytest

from iolane.bench.lanes import run_lanes_bench, wrong
from iolane.bench.lanes_in_lab import LOADS
from iolane.lab.demo import run_lab_demo
from iolane.lab.demo_in_lab import Check, LaneSeen
from tests.lab.conftest import tell

pytestmark = [pytest.mark.slow, pytest.mark.guest, pytest.mark.timeout(1500)]


def test_demo() -> None:
    """Every claim holds. Registers of the emulated disk trap, those of the passed one don't."""
    shown: list[Check | LaneSeen] = []
    result = run_lab_demo(tell, shown.append)
    assert result.ok, [check for check in result.checks if not check.ok]
    assert len(shown) == len(result.checks) + len(result.lanes)
    lanes = {each.lane: each for each in result.lanes}
    print(result.lanes)
    assert [lanes[name].driver for name in ("emulated", "paravirtual", "passthrough")] == [
        "nvme",
        "virtio_blk",
        "nvme",
    ]
    emulated, paravirtual, passed = (lanes[name] for name in ("emulated", "paravirtual", "passthrough"))
    assert emulated.to_iolane is not None
    assert 0.5 < emulated.to_iolane < 3.0  # two doorbells, less with shadow doorbells
    assert paravirtual.to_iolane is not None
    assert 0.5 < paravirtual.to_iolane < 1.5  # a kick
    assert passed.to_iolane is None
    assert passed.to_qemu < 0.2
    for each in result.lanes:
        assert 0.5 < each.interrupts < 1.5


def test_a_mediator_that_traces_nothing_costs_nothing() -> None:
    """With tracing off, traps equal those of direct passthrough. The rate is for `bench lanes --check`."""
    result = run_lanes_bench(rounds=3, milliseconds=1500, disks=["direct", "mediated"], report=tell)
    direct, mediated = result.disks
    assert direct.checksum == mediated.checksum
    for load in LOADS:
        print(load.name, direct.load(load.name), mediated.load(load.name))
    assert wrong(result.disks) == []
