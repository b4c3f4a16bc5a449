import contextlib
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iolane.backends.file import FileBackend
from iolane.errors import IolaneError

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(MIB))
    return path


def read(backend: FileBackend, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    backend.readv(offset, [memoryview(buffer)])
    return bytes(buffer)


def test_transfers_scatter_over_buffers_and_reach_the_file(image: Path) -> None:
    content = image.read_bytes()
    backend = FileBackend(image)
    parts = [bytearray(512), bytearray(0), bytearray(4096), bytearray(1)]
    backend.readv(1024, [memoryview(part) for part in parts])
    assert b"".join(parts) == content[1024 : 1024 + 4609]
    backend.writev(7, [memoryview(b"one"), memoryview(b"two")])
    backend.flush()
    assert image.read_bytes()[7:13] == b"onetwo"
    backend.close()
    backend.close()


def test_more_buffers_than_one_call_takes(image: Path) -> None:
    backend = FileBackend(image)
    pieces = [bytes([number % 251]) * 16 for number in range(3000)]
    backend.writev(0, [memoryview(piece) for piece in pieces])
    assert read(backend, 0, 48000) == b"".join(pieces)
    targets = [bytearray(16) for _ in pieces]
    backend.readv(0, [memoryview(target) for target in targets])
    assert targets == pieces


def test_short_transfers_are_continued(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = image.read_bytes()
    backend = FileBackend(image)
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:100]], offset))
    parts = [bytearray(250), bytearray(512), bytearray(3)]
    backend.readv(5, [memoryview(part) for part in parts])
    assert b"".join(parts) == content[5:770]


def test_an_image_that_shrank_is_an_io_error(image: Path) -> None:
    backend = FileBackend(image)
    os.truncate(image, 4096)
    with pytest.raises(OSError) as caught:
        read(backend, 2048, 4096)
    assert caught.value.errno == errno.EIO


def test_discard_and_zeroes(image: Path) -> None:
    before = image.read_bytes()
    backend = FileBackend(image)
    backend.write_zeroes(4096, 8192)
    assert read(backend, 0, 16384) == before[:4096] + bytes(8192) + before[12288:16384]
    backend.discard(512 * 1024, 256 * 1024)
    if backend.reads_zeroes_after_discard:
        assert read(backend, 512 * 1024, 256 * 1024) == bytes(256 * 1024)
    assert image.stat().st_size == MIB


def test_zeroes_are_written_where_the_file_system_lacks_them(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    backend = FileBackend(image)
    monkeypatch.setattr("iolane.backends._linux.fallocate", refuse)
    backend.write_zeroes(100, MIB - 200)
    content = image.read_bytes()
    assert content[100:-100] == bytes(MIB - 200)
    assert content[:100] != bytes(100) != content[-100:]


def test_a_second_writer_is_refused_and_readers_share(image: Path) -> None:
    writer = FileBackend(image)
    for read_only in (False, True):
        with pytest.raises(IolaneError, match="in use"):
            FileBackend(image, read_only=read_only)
    writer.close()
    first, second = FileBackend(image, read_only=True), FileBackend(image, read_only=True)
    with pytest.raises(IolaneError, match="in use"):
        FileBackend(image)
    first.close()
    second.close()
    FileBackend(image).close()


def test_read_only_refuses_every_change(image: Path) -> None:
    backend = FileBackend(image, read_only=True)
    changes: tuple[Callable[[], None], ...] = (
        lambda: backend.writev(0, [memoryview(b"x")]),
        lambda: backend.discard(0, 512),
        lambda: backend.write_zeroes(0, 512),
    )
    for change in changes:
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS
    assert len(read(backend, 0, 512)) == 512


def test_what_is_no_image_is_refused_in_one_line(tmp_path: Path) -> None:
    fifo, empty = tmp_path / "fifo", tmp_path / "empty"
    os.mkfifo(fifo)
    empty.touch()
    for path, words in (
        (tmp_path / "missing.raw", "there is no image"),
        (tmp_path, "is a directory"),
        (Path("/dev/null"), "neither a file nor a block device"),
        (fifo, "neither a file nor a block device"),
        (empty, "is empty"),
    ):
        with pytest.raises(IolaneError, match=words) as caught:
            FileBackend(path)
        assert "\n" not in str(caught.value)


def test_several_threads_at_once(image: Path) -> None:
    backend = FileBackend(image)

    def work(number: int) -> None:
        for round_ in range(50):
            data = bytes([number, round_]) * 2048
            backend.writev(number * 4096, [memoryview(data)])
            assert read(backend, number * 4096, 4096) == data

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(read(backend, number * 4096, 2) == bytes([number, 49]) for number in range(4))


@contextlib.contextmanager
def block_device(image: Path, *options: str) -> Iterator[Path]:
    """The image as a block device, where this machine lets us make one."""
    if shutil.which("losetup") is None:
        pytest.skip("no losetup here")
    command = ["losetup", "--find", "--show", *options, str(image)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device can be made: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_block_device(image: Path) -> None:
    before = image.read_bytes()
    with block_device(image) as path:
        backend = FileBackend(path)
        assert backend.is_device
        assert (backend.size, backend.block_size) == (MIB, 512)
        assert read(backend, 4096, 8192) == before[4096:12288]
        backend.writev(512, [memoryview(b"b" * 512)])
        backend.write_zeroes(8192, 4096)
        backend.discard(65536, 65536)
        backend.flush()
        with pytest.raises(IolaneError, match="in use"):
            FileBackend(path)
        backend.close()
    content = image.read_bytes()
    assert content[512:1024] == b"b" * 512
    assert content[8192:12288] == bytes(4096)


def test_a_read_only_block_device(image: Path) -> None:
    with block_device(image, "--read-only") as path:
        with pytest.raises(IolaneError, match="read-only") as caught:
            FileBackend(path)
        assert caught.value.remedy == "add read_only=on"
        FileBackend(path, read_only=True).close()
