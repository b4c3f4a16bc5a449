"""Registers: the notation compiles to what a guest may do with them (architecture, "What writing a device
feels like").
"""

from __future__ import annotations

from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iolane.model.registers import (
    Access,
    Field,
    Register8,
    Register16,
    Register32,
    Register64,
    RegisterMap,
    register,
    register_array,
)


class Speed(IntEnum):
    SLOW = 0
    FAST = 2


class Control(Register32):
    START = Field(0)
    MODE = Field(3, 1, values=Speed, doc="how fast")
    SECRET = Field(7, 4, access="wo")
    EVENT = Field(9, 8, access="w1c")
    LATCH = Field(11, 10, access="rc")
    LEVEL = Field(15, 12, access="ro", reset=5)


class Registers(RegisterMap):
    FIRST = register(0x00, Register32, doc="the first")
    SMALL = register(0x04, Register8, reset=0x11)
    HALF = register(0x06, Register16, access="ro", reset=0x2222)
    WIDE = register(0x08, Register64)
    CONTROL = register(0x10, Control)
    BELL = register_array(0x20, Register16, 4, stride=4)
    RING = register_array(0x22, Register16, 4, stride=4, reset=7)


def test_a_field_reads_shifted_down_and_replaces_immutably() -> None:
    value = Control(0).replace(START=1, MODE=2)
    assert (value, value.START, value.MODE) == (0x5, 1, 2)
    assert Control.make(MODE=2) == 4
    assert value.decode()["MODE"] == 2
    assert repr(value) == "Control(0x00000005: START=1 MODE=FAST)"


@pytest.mark.parametrize(("fields", "error"), [({"NONE": 1}, TypeError), ({"MODE": 8}, ValueError)])
def test_replace_refuses_what_does_not_exist_or_fit(fields: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error, match="Control"):
        Control(0).replace(**fields)


def test_reset_values_come_from_registers_and_fields() -> None:
    registers = Registers()
    registers.FIRST = 1
    registers.reset()
    assert (registers.FIRST, registers.SMALL, registers.HALF, registers.CONTROL.LEVEL) == (0, 0x11, 0x2222, 5)
    assert list(registers.RING) == [7, 7, 7, 7]


def test_access_kinds_hold_for_the_guest_and_not_for_the_device() -> None:
    registers = Registers()
    registers.CONTROL = 0xFFFF_FFFF
    assert registers.read(0x10, 4) == 0xFFFF_FF0F, "wo bits read as 0"
    assert registers.CONTROL.LATCH == 0, "rc bits are cleared by the read"
    registers.write(0x10, 4, 0x0000_0100)
    assert registers.CONTROL.EVENT == 2, "w1c clears the bits written as 1 alone"
    assert registers.CONTROL.LEVEL == 0xF, "ro bits keep their value"
    assert registers.CONTROL >> 16 == 0xFFFF, "bits of no field are reserved and preserved"
    assert registers.CONTROL.SECRET == 0, "wo bits store what was written"


def test_read_to_clear_clears_only_the_bytes_that_were_read() -> None:
    registers = Registers()
    registers.CONTROL = Control.make(LATCH=3)
    assert registers.read(0x10, 1) == 0
    assert registers.CONTROL.LATCH == 3
    assert registers.read(0x11, 1) == 0x0C
    assert registers.CONTROL.LATCH == 0


def test_a_wide_register_is_written_in_halves_and_read_whole() -> None:
    registers = Registers()
    seen: list[int] = []
    registers.hook_write(Registers.WIDE, seen.append)
    registers.write(0x08, 4, 0x1111_1111)
    registers.write(0x0C, 4, 0x2222_2222)
    assert seen == [0x1111_1111, 0x2222_2222_1111_1111]
    assert registers.read(0x08, 8) == 0x2222_2222_1111_1111


def test_one_access_may_span_registers_and_run_each_hook_once() -> None:
    registers = Registers()
    seen: list[tuple[str, int]] = []
    registers.hook_write(Registers.SMALL, lambda value: seen.append(("SMALL", value)))
    registers.hook_write(Registers.HALF, lambda value: seen.append(("HALF", value)))
    registers.write(0x04, 4, 0xAAAA_BBCC)
    assert seen == [("SMALL", 0xCC), ("HALF", 0x2222)]
    assert registers.read(0x04, 4) == 0x2222_00CC


def test_hooks_of_arrays_get_the_index() -> None:
    registers = Registers()
    seen: list[tuple[int, int]] = []
    registers.hook_write(Registers.RING, lambda index, value: seen.append((index, value)))
    registers.hook_read(Registers.BELL, lambda index, value: index + value)
    registers.write(0x26, 2, 9)
    registers.BELL[3] = 5
    assert seen == [(1, 9)]
    assert registers.read(0x2C, 2) == 8
    assert registers.read(0x2C, 4) == 8 | 7 << 16


def test_a_hook_set_after_the_first_access_is_seen() -> None:
    registers = Registers()
    assert registers.read(0, 4) == 0
    registers.hook_read(Registers.FIRST, lambda value: value + 1)
    assert registers.read(0, 4) == 1


def test_what_no_register_holds_reads_as_0_and_is_remembered() -> None:
    registers = Registers()
    registers.write(0x18, 4, 1)
    assert registers.read(0x18, 4) == 0
    assert registers.read(0x1000, 8) == 0
    assert registers.unmodelled == {("write", 0x18, 4): 1, ("read", 0x18, 4): 1, ("read", 0x1000, 8): 1}


def test_a_guest_cannot_make_the_record_of_unmodelled_accesses_grow_without_end() -> None:
    registers = Registers()
    for offset in range(0x1000, 0x1000 + 8000):
        registers.read(offset, 1)
    assert len(registers.unmodelled) <= 1024


def test_storage_is_the_suppliers_buffer() -> None:
    buffer = bytearray(Registers.layout.storage_size)
    registers = Registers(buffer)
    registers.FIRST = 0x0403_0201
    assert buffer[:4] == b"\1\2\3\4"
    other = bytearray(Registers.layout.storage_size)
    registers.bind(other)
    assert other[:4] == b"\1\2\3\4"
    registers.write(0, 4, 5)
    assert (other[0], buffer[0]) == (5, 1)
    with pytest.raises(ValueError, match="storage"):
        Registers(bytearray(8))


def test_wrong_declarations_are_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="overlaps"):
        type("Bad", (RegisterMap,), {"A": register(0, Register32), "B": register(2, Register16)})
    with pytest.raises(TypeError, match="multiples"):
        register(2, Register32)
    with pytest.raises(TypeError, match="outside"):
        type("Bad", (Register8,), {"F": Field(8)})
    with pytest.raises(TypeError, match="another field"):
        type("Bad", (Register8,), {"F": Field(3, 0), "G": Field(3)})
    with pytest.raises(ValueError, match="not fit"):
        Field(1, 0, reset=4)


def test_the_table_for_the_docs_has_every_register_and_field() -> None:
    table = Registers.table()
    assert "| 0x0 | FIRST | 31:0 | rw | 0x0 | the first |" in table
    assert "| | .MODE | 3:1 | rw | 0x0 | how fast |" in table
    assert "BELL[4] | 15:0" in table


class Plain(RegisterMap):
    BYTES = register_array(0x00, Register8, 4)
    HALVES = register_array(0x04, Register16, 2)
    WORD = register(0x08, Register32)
    LONG = register(0x10, Register64)
    FIXED = register(0x18, Register32, access=Access.RO, reset=0xCAFE_F00D)


@given(st.lists(st.tuples(st.integers(0, 0x1F), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1))))
def test_any_sequence_of_accesses_is_that_of_bytes(accesses: list[tuple[int, int, int]]) -> None:
    """Whatever sizes and alignments a driver uses, registers behave as their bytes do."""
    registers = Plain()
    oracle = bytearray(Plain.layout.reset_image) + bytearray(16)
    writable = {*range(0x00, 0x0C), *range(0x10, 0x18)}
    for offset, size, value in accesses:
        value &= (1 << 8 * size) - 1
        registers.write(offset, size, value)
        for position, byte in enumerate(value.to_bytes(size, "little"), offset):
            if position in writable:
                oracle[position] = byte
        assert registers.read(offset, size) == int.from_bytes(oracle[offset : offset + size], "little")
    assert bytes(registers.storage) == bytes(oracle[: len(registers.storage)])
