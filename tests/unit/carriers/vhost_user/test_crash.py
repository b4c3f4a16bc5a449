"""SIGKILL of the back end at full depth: nothing acknowledged is lost, torn, or done again wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.carriers.vhost_user.crash import run


@pytest.mark.timeout(120)
@pytest.mark.parametrize("plane", ["compiled", "python"])
def test_twenty_kills(tmp_path: Path, plane: str) -> None:
    result = run(tmp_path, plane, kills=20, seed=1)
    assert result.kills == 20
    assert result.outstanding_at_kills >= 20 * 32
    assert result.finished > 2000


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plane", ["compiled", "python"])
def test_fifty_kills(tmp_path: Path, plane: str) -> None:
    result = run(tmp_path, plane, kills=50, seed=2, depth=64, blocks=2048)
    assert result.kills == 50
