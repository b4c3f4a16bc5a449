"""What a process tells of a function it holds: its maps at that moment, or that another makes them."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from iolane.carriers.vfio.holder import FunctionHolder
from iolane.carriers.vfio.open import open_function
from iolane.host.holding import DmaMapReport
from iolane.model.dma import Permission
from iolane.testing.fake_vfio import FakeFunction, FakeKernel
from tests.unit.carriers.vfio.hardware import ADDRESS, Card

PAGE = 4096


def test_maps_are_told_as_they_are(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.add(FakeFunction(ADDRESS, Card(), 7))
    memory = mmap.mmap(-1, 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with open_function(ADDRESS, host=kernel, kernel=kernel) as function:
        holder = FunctionHolder(ADDRESS, "vm0", function.space)
        held = holder.held()
        assert (held.function, held.machine, held.pid, held.maps) == (str(ADDRESS), "vm0", os.getpid(), [])
        function.space.map(0x10000, address, PAGE, Permission.READ | Permission.WRITE)
        function.space.map(0x20000, address + PAGE, PAGE, Permission.READ)
        assert holder.held().maps == [
            DmaMapReport(0x10000, PAGE, "rw"),
            DmaMapReport(0x20000, PAGE, "r"),
        ]


def test_maps_that_another_process_makes_are_not_known() -> None:
    assert FunctionHolder(ADDRESS, "vm0", None).held().maps is None
