"""The hostile front end: mutated messages against our vhost-user server, on both data planes."""

from __future__ import annotations

from pathlib import Path

import pytest

from iolane.carriers.vhost_user import PythonPlane, Rejection
from iolane.carriers.vhost_user.choice import PLANES
from iolane.devices.virtio.block import Block
from tests.hostile.vhost_user_attacks import ATTACKS
from tests.hostile.vhost_user_fuzz import Fuzz
from tests.unit.carriers.vhost_user.sample import Network

pytestmark = pytest.mark.hostile
SEED = 20240701
MESSAGES = 50_000
DISK_MESSAGES = 10_000
LEAST_HITS = 100


def test_every_rejection_is_attacked() -> None:
    assert {attack.rejection for attack in ATTACKS} == {rejection.name for rejection in Rejection}


@pytest.mark.timeout(300)
def test_the_server_survives(tmp_path: Path) -> None:
    """Error replies and closed connections, never a dead server, a leaked descriptor, map or byte."""
    fuzz = Fuzz(Network(), tmp_path, seed=SEED, plane=PythonPlane)
    hits = fuzz.run(MESSAGES)
    assert fuzz.sent >= MESSAGES
    assert {name: count for name, count in hits.items() if count < LEAST_HITS} == {}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plane", sorted(PLANES))
def test_a_disk_survives(tmp_path: Path, plane: str) -> None:
    """The same under rings that a thread of their own serves."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    fuzz = Fuzz(Block(image, queues=2), tmp_path, seed=SEED, plane=PLANES[plane])
    fuzz.run(DISK_MESSAGES)
