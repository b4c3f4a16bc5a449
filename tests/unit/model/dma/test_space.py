"""DmaSpace: what is refused and how, file and buffer maps, views, indirect memory, cost under many maps."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator

import pytest

from iolane.errors import IolaneError
from iolane.memory.files import MemoryFiles
from iolane.model.dma import DmaFault, DmaSpace, FaultReason, MapKind, MapOverlapError, Permission
from iolane.model.dma.permission import Direction

PAGE = 4096
TOP = 1 << 64


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 64 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def space() -> DmaSpace:
    return DmaSpace(device="dev")


def fault_of(excinfo: pytest.ExceptionInfo[DmaFault]) -> tuple[int, int, str, str]:
    fault = excinfo.value
    return fault.iova, fault.length, str(fault.direction), fault.reason.name


class Owner:
    """Memory that is only reachable by asking."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.refuse = False
        self.short = 0

    def read(self, iova: int, length: int) -> bytes:
        if self.refuse:
            raise OSError("gone")
        return bytes(self.content[iova : iova + length - self.short])

    def write(self, iova: int, data: bytes) -> None:
        if self.refuse:
            raise IolaneError("gone")
        self.content[iova : iova + len(data)] = data


class TestMap:
    @pytest.mark.parametrize(
        ("iova", "size"),
        [
            (0, 0),
            (0, -PAGE),
            (-PAGE, PAGE),
            (TOP, PAGE),
            (TOP - PAGE, 2 * PAGE),
            (1, PAGE),
            (0, PAGE + 1),
            (0, TOP + PAGE),
        ],
    )
    def test_bad_range_is_refused(self, space: DmaSpace, iova: int, size: int) -> None:
        with pytest.raises(IolaneError):
            space.map(iova, size)
        assert space.maps == []

    def test_last_page_of_the_address_space(self, space: DmaSpace) -> None:
        space.map(TOP - PAGE, PAGE, buffer=bytearray(PAGE))
        space.write(TOP - 4, b"last")
        assert space.read(TOP - 4, 4) == b"last"
        with pytest.raises(DmaFault) as caught:
            space.read(TOP - 2, 4)
        assert fault_of(caught) == (TOP - 2, 4, "read", "OUT_OF_RANGE")

    @pytest.mark.parametrize(("start", "pages"), [(4, 1), (5, 1), (3, 2), (7, 4), (0, 16), (4, 4)])
    def test_overlap_is_refused(self, space: DmaSpace, start: int, pages: int) -> None:
        space.map(4 * PAGE, 4 * PAGE)
        with pytest.raises(MapOverlapError):
            space.map(start * PAGE, pages * PAGE)
        assert space.maps == [(4 * PAGE, 4 * PAGE, Permission.READ | Permission.WRITE, MapKind.INDIRECT)]

    def test_file_must_reach(self, space: DmaSpace, memory: int) -> None:
        for offset in (64 * PAGE, 63 * PAGE + 1, -PAGE, 1 << 62, 1 << 63, 1 << 64):
            with pytest.raises(IolaneError):
                space.map(0, PAGE, fd=memory, offset=offset)
        with pytest.raises(IolaneError):
            space.map(0, 2 * PAGE, fd=memory, offset=63 * PAGE)
        with pytest.raises(IolaneError):
            space.map(0, PAGE, fd=999_999)
        assert space.maps == []

    def test_read_only_descriptor(self, space: DmaSpace, memory: int) -> None:
        fd = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
        try:
            with pytest.raises(IolaneError):
                space.map(0, PAGE, fd=fd)
            space.map(0, PAGE, fd=fd, permission=Permission.READ)
        finally:
            os.close(fd)
        os.pwrite(memory, b"hello", 0)
        assert space.read(0, 5) == b"hello"

    def test_descriptor_stays_the_callers(self, space: DmaSpace, memory: int) -> None:
        space.map(0, PAGE, fd=memory)
        os.pwrite(memory, b"x", 7)
        assert space.read(7, 1) == b"x"
        space.unmap_all()
        assert os.fstat(memory).st_size == 64 * PAGE

    def test_buffers(self, space: DmaSpace) -> None:
        with pytest.raises(IolaneError):
            space.map(0, PAGE, buffer=bytearray(PAGE - 1))
        with pytest.raises(IolaneError):
            space.map(0, PAGE, buffer=bytes(PAGE))
        space.map(0, PAGE, buffer=bytes(PAGE), permission=Permission.READ)
        content = bytearray(3 * PAGE)
        space.map(PAGE, PAGE, buffer=content, offset=PAGE)
        space.write(PAGE, b"abc")
        assert content[PAGE : PAGE + 3] == b"abc"

    def test_limit(self, space: DmaSpace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("iolane.model.dma.space.MAPS_LIMIT", 2)
        space.map(0, PAGE)
        space.map(PAGE, PAGE)
        with pytest.raises(IolaneError, match="takes no more"):
            space.map(2 * PAGE, PAGE)


class TestUnmap:
    def test_drops_what_lies_inside(self, space: DmaSpace) -> None:
        for page in (1, 2, 5):
            space.map(page * PAGE, PAGE)
        assert space.unmap(0, 4 * PAGE) == 2 * PAGE
        assert space.unmap(0, 4 * PAGE) == 0
        assert [start for start, *_ in space.maps] == [5 * PAGE]

    def test_does_not_split(self, space: DmaSpace) -> None:
        space.map(0, 4 * PAGE)
        space.map(4 * PAGE, PAGE)
        for start, pages in ((0, 2), (2, 2), (1, 8), (3, 2)):
            with pytest.raises(IolaneError, match="split"):
                space.unmap(start * PAGE, pages * PAGE)
        assert len(space.maps) == 2

    def test_blanket(self, space: DmaSpace) -> None:
        assert space.unmap(0, TOP) == 0
        space.map(TOP - PAGE, PAGE)
        assert space.unmap(1 << 63, 1 << 63) == PAGE
        for iova, size in ((0, 0), (0, TOP + 1), (-1, 2), (TOP, 1)):
            with pytest.raises(IolaneError):
                space.unmap(iova, size)

    def test_forgets_the_last_hit(self, space: DmaSpace) -> None:
        space.map(0, PAGE, buffer=bytearray(b"a" * PAGE))
        assert space.read(0, 1) == b"a"
        space.unmap(0, PAGE)
        with pytest.raises(DmaFault):
            space.read(0, 1)
        space.map(0, PAGE, buffer=bytearray(b"b" * PAGE))
        assert space.read(0, 1) == b"b"

    def test_file_is_given_back(self, memory: int) -> None:
        files = MemoryFiles()
        space = DmaSpace(files=files)
        for page in range(32):
            space.map(page * 2 * PAGE, PAGE, fd=memory, offset=page * PAGE)
        assert len(files) == 1
        space.unmap(0, 32 * PAGE)
        assert len(files) == 1
        space.unmap_all()
        assert len(files) == 0


class TestFaults:
    def test_reasons(self, space: DmaSpace, memory: int) -> None:
        space.map(0, PAGE, fd=memory, permission=Permission.READ)
        space.map(PAGE, PAGE, fd=memory, permission=Permission.WRITE)
        space.map(2 * PAGE, PAGE, fd=memory, permission=Permission(0))
        expected = []
        for access, reason in (
            (lambda: space.write(8, b"x"), FaultReason.READ_ONLY),
            (lambda: space.read(PAGE, 1), FaultReason.WRITE_ONLY),
            (lambda: space.read(2 * PAGE, 1), FaultReason.WRITE_ONLY),
            (lambda: space.write(2 * PAGE, b"x"), FaultReason.READ_ONLY),
            (lambda: space.read(9 * PAGE, 4), FaultReason.UNMAPPED),
            (lambda: space.write(PAGE, bytes(3 * PAGE)), FaultReason.READ_ONLY),
            (lambda: space.write(2 * PAGE - 4, bytes(4 + PAGE)), FaultReason.READ_ONLY),
            (lambda: space.read(-1, 2), FaultReason.OUT_OF_RANGE),
            (lambda: space.read(0, -1), FaultReason.OUT_OF_RANGE),
            (lambda: space.view(TOP, 1), FaultReason.OUT_OF_RANGE),
        ):
            with pytest.raises(DmaFault) as caught:
                access()
            assert caught.value.reason is reason
            expected.append(reason)
        assert [fault.reason for fault in space.faults] == expected
        assert space.fault_count == len(expected)
        assert sum(space.fault_counts.values()) == len(expected)
        assert "dev: DMA write of 1 bytes at 0x8: read-only" in str(space.faults[0])

    def test_into_nothing(self, space: DmaSpace) -> None:
        content = bytearray(PAGE)
        space.map(0, PAGE, buffer=content)
        with pytest.raises(DmaFault) as caught:
            space.write(PAGE - 2, b"1234")
        assert fault_of(caught) == (PAGE - 2, 4, "write", "OUT_OF_RANGE")
        assert content == bytes(PAGE), "nothing is written unless all of it may be"

    def test_bus_master(self, space: DmaSpace) -> None:
        space.map(0, PAGE, buffer=bytearray(PAGE))
        assert space.read(0, 4) == bytes(4)
        space.enabled = False
        for access in (
            lambda: space.read(0, 4),
            lambda: space.write(0, b"x"),
            lambda: space.view(0, 4),
            lambda: space.scatter(0, 4),
            lambda: space.pin([(0, 4)], write=False),
            lambda: space.read_into(0, bytearray(4)),
        ):
            with pytest.raises(DmaFault) as caught:
                access()
            assert caught.value.reason is FaultReason.BUS_MASTER_OFF
        space.enabled = True
        assert space.read(0, 4) == bytes(4)

    def test_record_is_bounded_and_holds_no_frames(self, space: DmaSpace) -> None:
        class Big:
            pass

        def access() -> weakref.ref[Big]:
            big = Big()
            with pytest.raises(DmaFault):
                space.read(0, 1)
            return weakref.ref(big)

        held = access()
        gc.collect()
        assert held() is None
        for _ in range(1000):
            with pytest.raises(DmaFault):
                space.read(0, 1)
        assert len(space.faults) == 256
        assert space.fault_count == 1001

    def test_observers(self, space: DmaSpace) -> None:
        seen: list[DmaFault] = []
        end = space.on_fault.add(seen.append)
        for _ in range(2):
            with pytest.raises(DmaFault):
                space.read(0x1234, 8)
            end()
        assert [(fault.iova, fault.length, fault.direction) for fault in seen] == [
            (0x1234, 8, Direction.READ)
        ]

    @pytest.mark.parametrize("first", ["read", "write", "view", "pin"])
    def test_truncated_file(self, space: DmaSpace, memory: int, first: str) -> None:
        space.map(0, 64 * PAGE, fd=memory)
        space.map(1 << 32, PAGE, buffer=bytearray(PAGE))
        space.read(0, 4)
        os.ftruncate(memory, 0)
        if first in ("view", "pin"):
            pinned = space.pin([(PAGE, 8)], write=True)
            pinned.views[0][0] = 1
            assert pinned.broken
            with pytest.raises(DmaFault) as caught:
                pinned.release()
        elif first == "read":
            with pytest.raises(DmaFault) as caught:
                space.read(PAGE, 4)
        else:
            with pytest.raises(DmaFault) as caught:
                space.write(PAGE, b"data")
        assert caught.value.reason is FaultReason.BROKEN
        with pytest.raises(DmaFault) as caught:
            space.view(PAGE, 4)
        assert caught.value.reason is FaultReason.BROKEN
        assert space.read(1 << 32, 4) == bytes(4)
        assert space.unmap_all() == 65 * PAGE


class TestViews:
    def test_same_memory(self, space: DmaSpace, memory: int) -> None:
        space.map(0, PAGE, fd=memory)
        view = space.view(16, 4, write=True)
        view[:] = b"view"
        assert os.pread(memory, 4, 16) == b"view"
        assert bytes(space.view(16, 4)) == b"view"
        assert space.view(16, 4).readonly
        assert bytes(space.view(0, 0)) == b""

    def test_neighbours_in_one_file_are_one_view(self, space: DmaSpace, memory: int) -> None:
        for page in (0, 1, 2, 4):
            space.map(page * PAGE, PAGE, fd=memory, offset=page * PAGE)
        space.map(3 * PAGE, PAGE, fd=memory, offset=9 * PAGE)
        assert [len(view) for view in space.scatter(100, 5 * PAGE - 100)] == [3 * PAGE - 100, PAGE, PAGE]
        os.pwrite(memory, bytes(range(256)) * 16 * 10, 0)
        assert b"".join(space.scatter(100, 5 * PAGE - 100)) == space.read(100, 5 * PAGE - 100)
        assert len(space.view(100, 2 * PAGE, write=True)) == 2 * PAGE
        assert space.view(2 * PAGE, 2 * PAGE) == space.read(2 * PAGE, 2 * PAGE)
        with pytest.raises(DmaFault) as caught:
            space.view(2 * PAGE, 2 * PAGE, write=True)
        assert fault_of(caught) == (2 * PAGE, 2 * PAGE, "write", "OUT_OF_RANGE")

    def test_view_outlives_unmap_without_harm(self, space: DmaSpace, memory: int) -> None:
        space.map(0, PAGE, fd=memory)
        view = space.view(0, 4, write=True)
        space.unmap_all()
        view[:] = b"late"
        assert bytes(view) == b"late"

    def test_read_into_and_memoryviews(self, space: DmaSpace, memory: int) -> None:
        for page in range(4):
            space.map(page * PAGE, PAGE, fd=memory, offset=(3 - page) * PAGE)
        data = os.urandom(3 * PAGE)
        space.write(500, memoryview(data).cast("I"))
        target = bytearray(3 * PAGE)
        space.read_into(500, memoryview(target).cast("H"))
        assert target == data == space.read(500, 3 * PAGE)
        assert space.bytes_written == 3 * PAGE
        assert space.bytes_read == 6 * PAGE


class TestIndirect:
    def test_read_and_write(self, space: DmaSpace) -> None:
        owner = Owner(4 * PAGE)
        space.indirect = owner
        content = bytearray(PAGE)
        space.map(0, PAGE)
        space.map(PAGE, PAGE, buffer=content)
        space.write(PAGE - 2, b"abcd")
        assert owner.content[PAGE - 2 : PAGE] == b"ab"
        assert content[:2] == b"cd"
        assert space.read(PAGE - 2, 4) == b"abcd"
        assert bytes(space.view(PAGE - 2, 4)) == b"abcd"
        with pytest.raises(DmaFault) as caught:
            space.view(0, 4, write=True)
        assert caught.value.reason is FaultReason.INDIRECT_FAILED

    def test_pins_bounce(self, space: DmaSpace) -> None:
        space.indirect = owner = Owner(PAGE)
        space.map(0, PAGE)
        with space.pin([(8, 4), (100, 2)], write=True) as pinned:
            pinned.views[0][:] = b"wxyz"
            pinned.views[1][:] = b"!!"
        assert owner.content[8:12] == b"wxyz"
        assert owner.content[100:102] == b"!!"
        with space.pin([(8, 4)], write=False) as pinned:
            assert bytes(pinned.views[0]) == b"wxyz"

    def test_refusal_is_a_fault(self, space: DmaSpace) -> None:
        space.map(0, PAGE)
        for owner in (None, Owner(PAGE), Owner(PAGE)):
            space.indirect = owner
            if owner is not None:
                owner.refuse, owner.short = True, 1
            with pytest.raises(DmaFault) as caught:
                space.read(0, 4)
            assert fault_of(caught) == (0, 4, "read", "INDIRECT_FAILED")
            with pytest.raises(DmaFault) as caught:
                space.write(0, b"1234")
            assert fault_of(caught) == (0, 4, "write", "INDIRECT_FAILED")
        owner = Owner(PAGE)
        owner.short = 1
        space.indirect = owner
        with pytest.raises(DmaFault):
            space.read(0, 4)
        pinned = space.pin([(0, 4)], write=True)
        owner.refuse = True
        with pytest.raises(DmaFault):
            pinned.release()
        assert pinned.released
        assert space.unmap_all() == PAGE


class TestManyMaps:
    def test_thousands_of_pages_share_one_mapping(self, memory: int) -> None:
        """QEMU behind a vIOMMU: one message, with the RAM's descriptor, per 4 KiB."""
        os.ftruncate(memory, 8192 * PAGE)
        files = MemoryFiles()
        space = DmaSpace(files=files)
        before = _areas()
        for page in range(8192):
            space.map(page * PAGE, PAGE, fd=memory, offset=page * PAGE)
        assert len(files) == 1
        assert _areas() <= before + 2
        space.write(PAGE * 100 - 8, b"0123456789abcdef")
        assert os.pread(memory, 16, PAGE * 100 - 8) == b"0123456789abcdef"
        assert len(space.scatter(0, 8192 * PAGE)) == 1
        assert space.unmap(0, 4096 * PAGE) == 4096 * PAGE
        assert len(space.maps) == 4096


def _areas() -> int:
    with open("/proc/self/maps") as maps:
        return sum(1 for _ in maps)
