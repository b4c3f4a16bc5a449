"""A runtime folder and a cache of the test's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def runtime() -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as folder:
        yield Path(folder)


@pytest.fixture
def env(runtime: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(runtime), "IOLANE_DEBUG": "", "COLUMNS": "100", "PATH": os.environ["PATH"]}
