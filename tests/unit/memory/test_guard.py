"""The SIGBUS guard: a truncated file breaks its mapping and nothing else."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iolane.memory.mapping import Mapping
from tests.unit.memory.support import PAGE, areas, memfd


@pytest.fixture
def fd() -> Iterator[int]:
    with memfd(4) as fd:
        yield fd


def _read(view: memoryview) -> None:
    assert bytes(view[2 * PAGE : 4 * PAGE]) == bytes(2 * PAGE)


def _write(view: memoryview) -> None:
    view[3 * PAGE - 2 : 3 * PAGE + 2] = b"wxyz"
    assert bytes(view[3 * PAGE - 2 : 3 * PAGE + 2]) == b"wxyz"


def _in_thread(work: Callable[[memoryview], None]) -> Callable[[memoryview], None]:
    def run(view: memoryview) -> None:
        failures: list[BaseException] = []

        def guarded() -> None:
            try:
                work(view)
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()
        assert failures == []

    return run


@pytest.mark.parametrize(
    "work",
    [_read, _write, _in_thread(_read), _in_thread(_write)],
    ids=["read", "write", "thread-read", "thread-write"],
)
def test_truncation_breaks_the_mapping_only(fd: int, work: Callable[[memoryview], None]) -> None:
    mapping, other = Mapping(fd, 4 * PAGE), Mapping(fd, 4 * PAGE)
    view = memoryview(mapping)
    os.ftruncate(fd, 2 * PAGE)
    assert not mapping.broken
    work(view)
    assert mapping.broken
    assert not other.broken
    assert (view[0], view[PAGE]) == (1, 2)  # what the file still has is still shared
    view[0] = 77
    assert os.pread(fd, 1, 0) == b"\x4d"
    assert os.fstat(fd).st_size == 2 * PAGE
    assert "broken" in repr(mapping)
    view.release()
    mapping.close()
    assert mapping.broken


def _all_areas() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_page_by_page_backwards_costs_no_areas(fd: int) -> None:
    os.ftruncate(fd, 512 * PAGE)
    view = memoryview(Mapping(fd, 512 * PAGE))
    os.ftruncate(fd, 0)
    before = _all_areas()
    assert [view[at * PAGE] for at in reversed(range(512))] == [0] * 512
    assert _all_areas() <= before + 2


def test_read_only_mappings_too(fd: int) -> None:
    mapping = Mapping(fd, 4 * PAGE, writable=False)
    os.ftruncate(fd, 0)
    assert memoryview(mapping)[0] == 0
    assert mapping.broken


def test_a_system_call_gets_efault_and_probe_tells(fd: int) -> None:
    mapping = Mapping(fd, 4 * PAGE)
    view = memoryview(mapping)
    os.ftruncate(fd, PAGE)
    with memfd(4) as source:
        with pytest.raises(OSError, match="Bad address"):
            os.preadv(source, [view[2 * PAGE :]], 0)
        assert not mapping.broken  # the kernel fails the call, it sends no signal
        assert not mapping.probe(0, PAGE)
        assert mapping.probe(2 * PAGE, PAGE)
        assert os.preadv(source, [view[2 * PAGE :]], 0) == 2 * PAGE  # zero pages of our own by now


def test_mappings_after_a_broken_one_are_sound(fd: int) -> None:
    mapping = Mapping(fd, 4 * PAGE)
    os.ftruncate(fd, 0)
    assert mapping.probe()
    del mapping
    assert areas() == 0
    os.ftruncate(fd, PAGE)
    assert not Mapping(fd, PAGE).probe()


def test_many_threads_meet_the_same_hole(fd: int) -> None:
    os.ftruncate(fd, 64 * PAGE)
    mapping = Mapping(fd, 64 * PAGE)
    view, start = memoryview(mapping), threading.Barrier(8)
    os.ftruncate(fd, 0)
    totals: list[int] = []

    def read() -> None:
        start.wait()
        totals.append(sum(view[at * PAGE] for at in range(64)))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == [0] * 8
    assert mapping.broken


def _child(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter with a foreign, unguarded mapping whose file is gone at hand."""
    prelude = (
        "import faulthandler, mmap, os, signal, sys\n"
        "from iolane.memory.mapping import Mapping\n"
        f"PAGE = {PAGE}\n"
        "fd = os.memfd_create('ours'); os.ftruncate(fd, PAGE); ours = Mapping(fd, PAGE)\n"
        "foreign_fd = os.memfd_create('foreign'); os.ftruncate(foreign_fd, PAGE)\n"
        "foreign = mmap.mmap(foreign_fd, PAGE); os.ftruncate(foreign_fd, 0); os.ftruncate(fd, 0)\n"
    )
    return subprocess.run(
        [sys.executable, *options, "-c", prelude + code], capture_output=True, text=True, timeout=20
    )


def test_a_foreign_fault_ends_the_process_as_ever() -> None:
    done = _child("print(memoryview(ours)[0], ours.broken, flush=True)\nforeign[0]\nprint('alive')")
    assert done.returncode == -signal.SIGBUS
    assert done.stdout == "0 True\n"


def test_a_foreign_fault_reaches_faulthandler() -> None:
    done = _child("foreign[0]", "-X", "faulthandler")
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr


def test_who_comes_after_us_is_chained_at_the_next_mapping() -> None:
    code = (
        "faulthandler.enable()\n"
        "os.ftruncate(fd, PAGE); again = Mapping(fd, PAGE); os.ftruncate(fd, 0)\n"
        "print(memoryview(again)[0], again.broken, flush=True)\n"
        "foreign[0]"
    )
    done = _child(code)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "0 True\n")
    assert "Fatal Python error: Bus error" in done.stderr


@pytest.mark.parametrize(
    ("setting", "code", "output"),
    [
        ("signal.SIG_DFL", -signal.SIGBUS, ""),
        ("signal.SIG_IGN", 0, "alive\n"),
        ("lambda *_: print('handled', flush=True)", 0, "handled\nalive\n"),
    ],
    ids=["default", "ignored", "handled"],
)
def test_a_sent_sigbus_goes_to_the_previous_handler(setting: str, code: int, output: str) -> None:
    done = _child(
        f"signal.signal(signal.SIGBUS, {setting})\n"
        "os.ftruncate(fd, PAGE); again = Mapping(fd, PAGE)\n"
        "os.kill(os.getpid(), signal.SIGBUS)\nprint('alive', flush=True)"
    )
    assert (done.returncode, done.stdout) == (code, output)


def test_a_forked_child_is_guarded_too() -> None:
    done = _child(
        "child = os.fork()\n"
        "if child == 0: os._exit(3 if memoryview(ours)[0] == 0 and ours.broken else 4)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ours.broken, ours.probe())"
    )
    assert (done.returncode, done.stdout) == (0, "3 False True\n")
