"""What holds for every test."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("iolane", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("iolane")  # how long an example takes says how busy the machine is, and nothing of us


class ByGuest(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Where several processes share the tests, a file stays whole, since its guest boots once; so does the
    lab, for all of its files.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/lab" if file.startswith("tests/lab/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGuest:
    """The scheduler that is used."""
    return ByGuest(config, log)
