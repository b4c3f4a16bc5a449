"""What holds for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("iolane", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("iolane")  # how long an example takes says how busy the machine is, and nothing of us

LAB = Path(__file__).parent / "lab"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests a file stays whole, since its guest boots once, and so does the
    lab.
    """
    for item in items:
        group = "lab" if LAB in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
