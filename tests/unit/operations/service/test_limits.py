"""Limits of a server, each seen to hold in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from iolane.errors import IolaneError
from iolane.operations.service.limits import parse_size


def child(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    given = "import os, resource\nfrom iolane.operations.service.limits import *\n" + code
    return subprocess.run([sys.executable, "-c", given], cwd=folder, capture_output=True, text=True)


GUEST = """
import mmap
fd = os.memfd_create("guest")
os.ftruncate(fd, 1 << 20)
guest = mmap.mmap(fd, 1 << 20)
for place in range(0, 1 << 20, 4096):
    guest[place : place + 16] = bytes.fromhex("6f6c616e652d67756573742d6d656d21")
"""
MARK = bytes.fromhex("6f6c616e652d67756573742d6d656d21")


def cores(folder: Path) -> list[Path]:
    return list(folder.glob("core*"))


def test_no_core_dump(tmp_path: Path) -> None:
    done = child(f"keep_private()\n{GUEST}\nos.abort()", tmp_path)
    assert done.returncode == -6
    assert cores(tmp_path) == []


@pytest.mark.skipif(
    Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core"
    or resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY,
    reason="core dumps of this host don't go to a file of the process's folder",
)
@pytest.mark.parametrize("private", [False, True])
def test_no_guest_memory_in_a_core_dump_that_is_made_all_the_same(tmp_path: Path, private: bool) -> None:
    allowed = "resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)"
    if private:
        allowed = (
            "import iolane.operations.service.limits as limits\n"
            "limits.NO_CORE = resource.RLIM_INFINITY  # as if somebody allowed them later\n"
            "keep_private()"
        )
    done = child(f"{allowed}\n{GUEST}\nos.abort()", tmp_path)
    assert done.returncode == -6, done.stderr
    [core] = cores(tmp_path)
    found = core.read_bytes().count(MARK)
    assert found < 4 if private else found >= 256, "the mark itself is in the program, too"


def test_files_are_private(tmp_path: Path) -> None:
    child("keep_private(); open('f', 'w').close(); os.mkdir('d')", tmp_path)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700


def test_files_are_limited_and_the_limit_can_not_be_raised(tmp_path: Path) -> None:
    code = """
print(limit_files(40))
print(resource.getrlimit(resource.RLIMIT_NOFILE))
opened = []
try:
    while True: opened.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(error.strerror, opened[-1])
"""
    lines = child(code, tmp_path).stdout.splitlines()
    assert lines == ["None", "(40, 40)", "Too many open files 39"]


def test_a_hard_limit_that_is_too_low_is_told_of(tmp_path: Path) -> None:
    code = "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); print(limit_files(300))"
    assert child(code, tmp_path).stdout == (
        "300 open files may be needed, the limit is 64 (ulimit -Hn 300)\n"
    )


def test_private_memory_is_limited_and_the_guest_s_is_not(tmp_path: Path) -> None:
    code = """
import mmap
limit_memory(256 << 20)
guest = mmap.mmap(-1, 1 << 30)
guest[0] = guest[-1] = 1
print("guest")
try:
    bytearray(400 << 20)
except MemoryError:
    print("no more")
print(len(bytearray(16 << 20)))
"""
    assert child(code, tmp_path).stdout.splitlines() == ["guest", "no more", str(16 << 20)]


def test_too_little_memory_is_refused(tmp_path: Path) -> None:
    code = """
from iolane.errors import IolaneError
for before, size in ((None, 1 << 20), (100 << 20, 200 << 20)):
    if before: resource.setrlimit(resource.RLIMIT_DATA, (before, before))
    try: limit_memory(size)
    except IolaneError as error: print(error)
"""
    first, second = child(code, tmp_path).stdout.splitlines()
    assert first.startswith("a memory limit of 1 MiB is too little: ")
    assert "(at least " in first
    assert second.startswith("a memory limit of 200 MiB is above the hard limit of this process, 100 MiB (")


@pytest.mark.parametrize(
    ("text", "size"), [("1K", 1 << 10), ("256M", 256 << 20), ("2GiB", 2 << 30), ("1t", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "0M", "-1M", "1", "1.5G", "1" * 30 + "M", "1 M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(IolaneError, match="is not a size"):
        parse_size(text)
