from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.host.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """An empty machine."""
    return Machine(tmp_path / "host")
