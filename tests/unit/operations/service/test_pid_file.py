"""The lock says who serves; the number is for people and scripts."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from iolane.errors import IolaneError
from iolane.operations.service.pid_file import PidFile


def test_it_has_the_number_and_goes_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o644
    assert not path.exists()


def test_a_second_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with PidFile(path):
        with pytest.raises(IolaneError, match=f"process {os.getpid()} serves already"), PidFile(path):
            pass
        assert path.read_text() == f"{os.getpid()}\n"
    with PidFile(path):
        pass


@pytest.mark.parametrize("content", ["1\n", "", "no number", "9" * 100])
def test_what_a_dead_one_left_does_not_hinder(tmp_path: Path, content: str) -> None:
    """Whatever process has that number now."""
    path = tmp_path / "pid"
    path.write_text(content)
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_file_that_another_put_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with PidFile(path):
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"


def test_no_two_of_many_at_once(tmp_path: Path) -> None:
    path, holders, most = tmp_path / "pid", [0], [0]

    def hold() -> None:
        for _ in range(200):
            try:
                with PidFile(path):
                    holders[0] += 1
                    most[0] = max(most[0], holders[0])
                    holders[0] -= 1
            except IolaneError:
                continue

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not path.exists()


def test_what_it_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(IolaneError, match="no such file or directory") as caught:
        PidFile(tmp_path / "no/pid").__enter__()
    assert caught.value.remedy == f"mkdir -p {tmp_path}/no"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IolaneError, match="is a directory"):
        PidFile(tmp_path / "folder").__enter__()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IolaneError, match="too many levels of symbolic links"):
        PidFile(tmp_path / "link").__enter__()
    assert not (tmp_path / "elsewhere").exists()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(IolaneError, match="is no file"):
        PidFile(tmp_path / "fifo").__enter__()
