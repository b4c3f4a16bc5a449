import threading
from pathlib import Path

import pytest

from iolane.engines.qemu.cache import Cache, cache_directory
from iolane.errors import IolaneError


def quiet(message: str) -> None: ...


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("IOLANE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == Path("/home/someone/.cache/iolane")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/iolane")
    monkeypatch.setenv("IOLANE_CACHE", "/own")
    assert cache_directory() == Path("/own")


def test_a_tree_is_made_once_by_one_of_many(tmp_path: Path) -> None:
    cache = Cache(tmp_path, quiet)
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.mkdir()
        (path / "a").write_text("content")

    threads = [threading.Thread(target=cache.tree, args=("some/tree", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (tmp_path / "some" / "tree" / "a").read_text() == "content"
    assert not list((tmp_path / "some").glob(".making-*"))


def test_a_failed_making_leaves_nothing_and_what_a_dead_one_left_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, quiet)
    left = tmp_path / ".making-tree-dead"
    (left / "it").mkdir(parents=True)

    def fail(path: Path) -> None:
        path.mkdir()
        raise IolaneError("no")

    with pytest.raises(IolaneError):
        cache.tree("tree", fail)
    assert not (tmp_path / "tree").exists()
    assert not left.exists()
    assert not list(tmp_path.glob(".making-*"))


def test_an_unwritable_cache_names_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(IolaneError, match="IOLANE_CACHE"):
        Cache(file / "cache", quiet)
