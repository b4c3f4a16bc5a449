"""DMA maps: what is refused, with the reason, and what the function then reaches."""

import ctypes
import errno
import mmap
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.vfio import DmaAddressSpace, VfioError, VfioFunction, open_function
from iolane.carriers.vfio.locked_memory import LockedMemory, locked_memory
from iolane.model.dma import Permission
from iolane.testing.fake_vfio import FakeFunction, FakeKernel
from iolane.testing.fake_vfio.iommu import FakeDomain
from tests.unit.carriers.vfio.hardware import ADDRESS, Card, CardRegisters, Command

RW = Permission.READ | Permission.WRITE
PAGE = 4096


class Memory:
    """Anonymous memory, as a driver maps it."""

    def __init__(self, size: int) -> None:
        self.buffer = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))


@pytest.fixture
def memory() -> Memory:
    return Memory(16 * PAGE)


@pytest.fixture(params=["type1", "iommufd"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VfioFunction]:
    """The same by both of the kernel's interfaces."""
    iommufd = request.param == "iommufd"
    kernel = FakeKernel(tmp_path, iommufd=iommufd, type1=not iommufd)
    kernel.add(FakeFunction(ADDRESS, Card(), 7))
    with open_function(ADDRESS, host=kernel, kernel=kernel, backend=request.param) as function:
        function.set_command()
        yield function
    assert not kernel.files


@pytest.fixture
def space(opened: VfioFunction) -> DmaAddressSpace:
    return opened.space


def test_dma_both_ways(opened: VfioFunction, memory: Memory) -> None:
    opened.space.map(0x10000, memory.address, PAGE, RW)
    registers = opened.registers(0, CardRegisters)
    registers.ADDRESS, registers.DATA = 0x10010, 0x1122334455667788
    registers.COMMAND = Command.make(WRITE=1)
    assert memory.buffer[0x10:0x18] == bytes.fromhex("8877665544332211")
    memory.buffer[0x10:0x18] = b"\1" + bytes(7)
    registers.COMMAND = Command.make(READ=1)
    assert registers.DATA == 1
    assert registers.FAULTS == 0


def test_only_what_is_mapped_is_reached(opened: VfioFunction, memory: Memory) -> None:
    space, registers = opened.space, opened.registers(0, CardRegisters)
    space.map(0x10000, memory.address, PAGE, Permission.READ)
    registers.DATA = 5
    for address in (0x10000, 0x11000, 0x20000):  # a read-only map, one past it, nowhere
        registers.ADDRESS = address
        registers.COMMAND = Command.make(WRITE=1)
    assert registers.FAULTS == 3
    space.unmap(0x10000, PAGE)
    registers.ADDRESS = 0x10000
    registers.COMMAND = Command.make(READ=1)
    assert registers.FAULTS == 4
    assert memory.buffer[:8] == bytes(8)


def test_ranges(space: DmaAddressSpace, memory: Memory) -> None:
    """0xfee00000 is where interrupts are written to; no IOMMU translates it."""
    for iova in (0xFEE00000, 0xFEDFF000, 1 << 48):
        with pytest.raises(VfioError, match="reserved window") as caught:
            space.map(iova, memory.address, 2 * PAGE, RW)
        assert "0xfef00000-0xffffffffffff" in (caught.value.remedy or "")
        assert caught.value.errno == errno.EINVAL
    space.map(0xFEDFF000, memory.address, PAGE, RW)


@pytest.mark.parametrize(
    ("iova", "offset", "size", "permission", "words"),
    [
        (0, 0, 0, RW, "empty"),
        (-PAGE, 0, PAGE, RW, "empty"),
        ((1 << 64) - PAGE, 0, 2 * PAGE, RW, "64 bits"),
        (0x10, 0, PAGE, RW, "whole pages of 4096"),
        (0, 0x10, PAGE, RW, "whole pages"),
        (0, 0, 0x10, RW, "whole pages"),
        (0, 0, PAGE, Permission(0), "permits nothing"),
    ],
)
def test_what_is_no_map(
    space: DmaAddressSpace,
    memory: Memory,
    iova: int,
    offset: int,
    size: int,
    permission: Permission,
    words: str,
) -> None:
    with pytest.raises(VfioError, match=words):
        space.map(iova, memory.address + offset, size, permission)
    assert space.maps == []


def test_overlaps(space: DmaAddressSpace, memory: Memory) -> None:
    space.map(0x10000, memory.address, 4 * PAGE, RW)
    for iova in (0x10000, 0x13000, 0xF000):
        with pytest.raises(VfioError, match="overlaps the map of 0x10000") as caught:
            space.map(iova, memory.address, 2 * PAGE, RW)
        assert caught.value.errno == errno.EEXIST
    space.map(0x14000, memory.address, PAGE, RW)
    assert [item[:2] for item in space.maps] == [(0x10000, 4 * PAGE), (0x14000, PAGE)]


def test_unmap(space: DmaAddressSpace, memory: Memory) -> None:
    space.map(0x10000, memory.address, 4 * PAGE, RW)
    space.map(0x20000, memory.address, PAGE, RW)
    with pytest.raises(VfioError, match="would split the map of 0x10000"):
        space.unmap(0x11000, PAGE)
    assert space.unmap(0x30000, PAGE) == 0
    assert space.unmap(0x10000, 0x20000) == 5 * PAGE
    assert space.maps == []
    space.map(0x10000, memory.address, PAGE, RW)
    assert space.unmap_all() == PAGE
    assert space.unmap_all() == 0
    assert space.maps == []


def test_unmap_all_of_an_old_kernel(kernel: FakeKernel, function: VfioFunction, memory: Memory) -> None:
    """VFIO_UNMAP_ALL came with Linux 5.12."""
    kernel.unmap_all = False
    function.space.map(0x10000, memory.address, PAGE, RW)
    assert function.space.unmap_all() == PAGE


# Limits.


def domain(kernel: FakeKernel) -> FakeDomain:
    found = kernel.containers[-1].domain
    assert found is not None
    return found


def test_number_of_maps(kernel: FakeKernel, function: VfioFunction, memory: Memory) -> None:
    domain(kernel).entry_limit = 2
    assert function.space.available == 2
    function.space.map(0, memory.address, PAGE, RW)
    function.space.map(PAGE, memory.address, PAGE, RW)
    assert function.space.available == 0
    with pytest.raises(VfioError, match="takes no more maps") as caught:
        function.space.map(2 * PAGE, memory.address, PAGE, RW)
    assert "dma_entry_limit" in (caught.value.remedy or "")
    assert len(function.space.maps) == 2


def test_locked_memory(
    kernel: FakeKernel, function: VfioFunction, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what is locked, what is needed, what the limit is, and how to raise it."""
    domain(kernel).lock_limit = 4 * PAGE
    monkeypatch.setattr(
        "iolane.carriers.vfio.address_space.locked_memory",
        lambda: LockedMemory(locked=0, soft=8 << 20, hard=8 << 20, privileged=False),
    )
    with pytest.raises(VfioError) as caught:
        function.space.map(0, memory.address, 8 * PAGE, RW)
    assert caught.value.errno == errno.ENOMEM
    assert "32 KiB are needed, the limit (RLIMIT_MEMLOCK) is 8 MiB" in str(caught.value)
    assert "ulimit -l 32" in (caught.value.remedy or "")


def test_locked_memory_of_this_process(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmLck:\t    64 kB\nCapEff:\t0000000000000000\n")
    state = locked_memory(status)
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert state.locked == 64 << 10
    assert state.soft == (None if soft == resource.RLIM_INFINITY else soft)
    assert not state.privileged
    status.write_text("VmLck:\t    64 kB\nCapEff:\t000001ffffffffff\n")
    assert locked_memory(status).privileged
    assert locked_memory(status).allows(1 << 60)


# Dirty tracking.


def test_dirty_tracking(kernel: FakeKernel, function: VfioFunction, memory: Memory) -> None:
    """Type 1 takes every mapped page for written."""
    function.space.map(0, memory.address, 12 * PAGE, RW)
    assert function.space.dirty_page_size == PAGE
    function.space.start_dirty()
    assert function.space.dirty_bitmap(0, 12 * PAGE) == b"\xff\x0f"
    function.space.stop_dirty()
    with pytest.raises(VfioError, match="GET_BITMAP"):
        function.space.dirty_bitmap(0, 12 * PAGE)


def test_no_dirty_tracking_by_iommufd(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, iommufd=True)
    kernel.add(FakeFunction(ADDRESS, Card(), 7))
    with open_function(ADDRESS, host=kernel, kernel=kernel, backend="iommufd") as function:
        assert function.space.dirty_page_size == 0
        for call in (function.space.start_dirty, function.space.stop_dirty):
            with pytest.raises(VfioError, match="no dirty tracking"):
                call()
