"""What a lab leaves here: nothing; and what a killed one left goes with the next."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from iolane.lab.scratch import PREFIX, YOUNG, remove_abandoned, scratch_folder


def aged(folder: Path) -> Path:
    then = time.time() - 2 * YOUNG
    os.utime(folder, (then, then))
    return folder


def test_only_what_nobody_holds_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    abandoned, young, other = (tmp_path / name for name in (f"{PREFIX}dead", f"{PREFIX}new", "other"))
    for folder in (abandoned, young, other):
        folder.mkdir()
        (folder / "file").touch()
    aged(abandoned)
    aged(other)
    with scratch_folder() as mine:
        aged(mine)
        remove_abandoned(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([mine, young, other])
    assert sorted(tmp_path.iterdir()) == sorted([young, other])


def test_a_link_with_such_a_name_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (target / "file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(target)
    os.utime(tmp_path / f"{PREFIX}link", (0, 0), follow_symlinks=False)
    remove_abandoned(tmp_path)
    assert (target / "file").exists()
