"""The hostile client: mutated traffic against our server, and against copies of it with planted bugs."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import iolane.carriers.vfio_user as vfio_user
from iolane.carriers.vfio_user import Rejection
from tests.hostile.vfio_user_attacks import ATTACKS
from tests.hostile.vfio_user_fuzz import Fuzz
from tests.hostile.vfio_user_link import Found

pytestmark = pytest.mark.hostile
SEED = 20240607
MESSAGES = 50_000
PLANTED_MESSAGES = 6_000
LEAST_HITS = 100
MAPS_LIMIT = 40


@pytest.fixture(autouse=True)
def few_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of DMA maps is full after 40, so that its limit can be met often."""
    monkeypatch.setattr("iolane.model.dma.space.MAPS_LIMIT", MAPS_LIMIT)


def test_every_rejection_is_attacked() -> None:
    assert {item.rejection for item in ATTACKS if item.rejection} == {
        rejection.name for rejection in Rejection
    }


@pytest.mark.timeout(300)
def test_the_server_survives(tmp_path: Path) -> None:
    """Error replies and closed connections, never a dead server, a leaked descriptor, map or byte."""
    fuzz = Fuzz(vfio_user, tmp_path / "s", seed=SEED)
    fuzz.run(MESSAGES)
    assert sum(fuzz.sent.values()) >= MESSAGES
    assert 0.45 <= fuzz.sent[True] / sum(fuzz.sent.values()) <= 0.55
    assert {name: hits for name, hits in fuzz.hits.items() if hits < LEAST_HITS} == {}


PLANTED = {
    "bounds": (
        "trap_loop.py",
        "offset + count <= region.size",
        "offset <= region.size",
        "accepted|asked for",
    ),
    "descriptors": ("connection.py", "            request.close()\n", "            pass\n", "descriptors"),
    "maps": ("connection.py", "            self._device.disconnect()\n", "            pass\n", "is left"),
    "size": ("trap_loop.py", "if size > MAX_MESSAGE_SIZE:", "if size > 1 << 40:", "hangs"),
    "straddle": (
        "dma.py",
        "raise RefusedError(Rejection.DMA_STRADDLE, str(error)) from None",
        "pass",
        "dma_straddle: accepted",
    ),
}
"""Bug -> file, what stands there, what is put there, what the campaign says."""


ATTACKERS = ("anon_inode:[eventfd]", "/memfd:ram", "/dev/null", "pipe:")


def attackers_fds() -> set[int]:
    """Descriptors of the kinds that attacks send."""
    gc.collect()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(ATTACKERS):
                found.add(int(name))
    return found


@pytest.fixture
def leaky() -> Iterator[None]:
    """Closes what a bug has leaked."""
    before = attackers_fds()
    yield
    for fd in attackers_fds() - before:
        os.close(fd)


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Path]:
    """A folder on the import path for copies of the package, which are forgotten afterwards."""
    folder = tmp_path / "copies"
    folder.mkdir()
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.startswith("planted_")]:
        del sys.modules[name]


@pytest.mark.usefixtures("leaky")
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str, copies: Path, tmp_path: Path) -> None:
    """The same campaign finds it."""
    file, right, wrong, symptom = PLANTED[bug]
    name = f"planted_{bug}"
    assert vfio_user.__file__ is not None
    shutil.copytree(
        Path(vfio_user.__file__).parent, copies / name, ignore=shutil.ignore_patterns("__pycache__")
    )
    for path in (copies / name).glob("*.py"):
        text = path.read_text().replace("iolane.carriers.vfio_user", name)
        if path.name == file:
            assert right in text
            text = text.replace(right, wrong)
        path.write_text(text)
    importlib.invalidate_caches()
    fuzz = Fuzz(importlib.import_module(name), tmp_path / "s", seed=SEED, timeout=2.0)
    with pytest.raises(Found, match=symptom):
        fuzz.run(PLANTED_MESSAGES)
