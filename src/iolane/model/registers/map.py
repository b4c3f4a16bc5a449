"""A set of registers: the storage, what the guest's accesses do to it, and the device's hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, overload

from iolane.model.registers.access import Access
from iolane.model.registers.layout import AnyDeclaration, Layout, Place
from iolane.model.registers.register import Register
from iolane.model.registers.spec import Declaration, RegisterArraySpec, RegisterSpec
from iolane.model.registers.table import markdown_table

R = TypeVar("R", bound=Register)
Hook = Callable[..., Any]
Buffer = bytearray | memoryview

UNMODELLED_LIMIT = 1024
"""Distinct unmodelled accesses that a map remembers; a guest names them, so they are bounded."""


class RegisterMap:
    """Registers over one flat buffer. Subclass it and declare `register(...)` and `register_array(...)`.

    `read` and `write` are the guest's side: any size of 1, 2, 4 or 8 bytes at any offset, so also a part of a
    register or several at once; access kinds hold and hooks run. Attributes are the device's side: the stored
    value, nothing else.

    Args:
        storage: at least `layout.storage_size` writable bytes; its content is kept. Left out, the map makes
            its own and starts with the reset values.
    """

    layout: ClassVar[Layout] = Layout("RegisterMap", [])

    def __init__(self, storage: Buffer | None = None) -> None:
        self.unmodelled: dict[tuple[str, int, int], int] = {}
        """(`read` or `write`, offset, size) -> count, of accesses that touched no register at all."""
        self._write_hooks: dict[int, Hook] = {}
        self._read_hooks: dict[int, Hook] = {}
        self._readers: dict[int, Callable[[], int]] = {}
        self._writers: dict[int, Callable[[int], None]] = {}
        self.storage: memoryview
        self._views: dict[int, memoryview]
        if storage is None:
            self._adopt(memoryview(bytearray(self.layout.reset_image)))
        else:
            self._adopt(memoryview(storage).cast("B"))

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        declared: dict[str, AnyDeclaration] = {}
        for base in reversed(cls.__mro__):
            declared.update(
                {name: item for name, item in vars(base).items() if isinstance(item, Declaration)}
            )
        cls.layout = Layout(cls.__name__, list(declared.values()))

    def _adopt(self, storage: memoryview) -> None:
        if len(storage) < self.layout.storage_size:
            raise ValueError(
                f"{type(self).__name__} needs {self.layout.storage_size} bytes of storage, not {len(storage)}"
            )
        self.storage = storage[: self.layout.storage_size]
        self._views = {
            1: self.storage,
            2: self.storage.cast("H"),
            4: self.storage.cast("I"),
            8: self.storage.cast("Q"),
        }
        self._forget_compiled()

    def bind(self, storage: Buffer) -> None:
        """Move to another buffer, for instance a shared memory file; the present content goes along."""
        content = bytes(self.storage)
        self._adopt(memoryview(storage).cast("B"))
        self.storage[:] = content

    def reset(self) -> None:
        """Every register takes its reset value. No hook runs."""
        self.storage[:] = self.layout.reset_image

    def load(self, offset: int, width: int) -> int:
        """The stored value of the `width` bytes at `offset` (a multiple of `width`): the device's side."""
        value: int = self._views[width][offset // width]
        return value

    def store(self, offset: int, width: int, value: int) -> None:
        """Store `value` at `offset` (a multiple of `width`): the device's side, no access kind, no hook."""
        self._views[width][offset // width] = value

    @overload
    def hook_write(self, spec: RegisterSpec[R], hook: Callable[[R], None]) -> None: ...
    @overload
    def hook_write(self, spec: RegisterArraySpec[R], hook: Callable[[int, R], None]) -> None: ...
    def hook_write(self, spec: Any, hook: Hook) -> None:
        """Call `hook` after each guest write, with the new value (`wo` bits as written)."""
        self._write_hooks[spec.index] = hook
        self._forget_compiled()

    @overload
    def hook_read(self, spec: RegisterSpec[R], hook: Callable[[R], int]) -> None: ...
    @overload
    def hook_read(self, spec: RegisterArraySpec[R], hook: Callable[[int, R], int]) -> None: ...
    def hook_read(self, spec: Any, hook: Hook) -> None:
        """Call `hook` with the stored value before each guest read; the guest sees what it returns."""
        self._read_hooks[spec.index] = hook
        self._forget_compiled()

    def _forget_compiled(self) -> None:
        self._readers.clear()
        self._writers.clear()

    # The guest's side. An access that is exactly one register runs a closure compiled at its first use.

    def read(self, offset: int, size: int) -> int:
        """The guest reads `size` (1, 2, 4, 8) bytes at `offset`; bytes that no register holds read as 0."""
        reader = self._readers.get(offset << 4 | size)
        if reader is not None:
            return reader()
        place = self.layout.find(offset)
        if place is not None and place.offset == offset and place.spec.width == size:
            reader = self._readers[offset << 4 | size] = self._compile_reader(place)
            return reader()
        return self._read_pieces(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes `size` bytes at `offset`; bytes that no register holds are ignored."""
        writer = self._writers.get(offset << 4 | size)
        if writer is not None:
            writer(value)
            return
        place = self.layout.find(offset)
        if place is not None and place.offset == offset and place.spec.width == size:
            writer = self._writers[offset << 4 | size] = self._compile_writer(place)
            writer(value)
            return
        self._write_pieces(offset, size, value)

    def _compile_reader(self, place: Place) -> Callable[[], int]:
        spec, index, offset = place
        hook = self._read_hooks.get(spec.index)
        view, slot = self._views[spec.width], offset // spec.width
        if spec.hidden or spec.masks[Access.RC]:
            return lambda: self._read_register(place, spec.full)
        if hook is None:
            return lambda: view[slot]
        kind, full = spec.type, spec.full
        if isinstance(spec, RegisterArraySpec):
            return lambda: hook(index, kind(view[slot])) & full
        return lambda: hook(kind(view[slot])) & full

    def _compile_writer(self, place: Place) -> Callable[[int], None]:
        spec, index, offset = place
        hook = self._write_hooks.get(spec.index)
        view, slot = self._views[spec.width], offset // spec.width
        if spec.stored != spec.full:
            return lambda value: self._write_register(place, value & spec.full, spec.full)
        if hook is None:
            return lambda value: view.__setitem__(slot, value)
        kind = spec.type
        array = isinstance(spec, RegisterArraySpec)

        def store_and_call(value: int) -> None:
            view[slot] = value
            if array:
                hook(index, kind(value))
            else:
                hook(kind(value))

        return store_and_call

    def _read_register(self, place: Place, lanes: int) -> int:
        spec, index, offset = place
        stored = self.load(offset, spec.width)
        hook = self._read_hooks.get(spec.index)
        if hook is None:
            value = stored
        elif isinstance(spec, RegisterArraySpec):
            value = hook(index, spec.type(stored))
        else:
            value = hook(spec.type(stored))
        cleared = spec.masks[Access.RC] & lanes
        if cleared:
            self.store(offset, spec.width, self.load(offset, spec.width) & ~cleared)
        return value & spec.full & ~spec.hidden

    def _write_register(self, place: Place, value: int, lanes: int) -> None:
        spec, index, offset = place
        stored = self.load(offset, spec.width)
        taken = spec.stored & lanes
        stored = (stored & ~taken) | (value & taken)
        stored &= ~(value & spec.masks[Access.W1C] & lanes)
        self.store(offset, spec.width, stored)
        hook = self._write_hooks.get(spec.index)
        if hook is None:
            return
        if isinstance(spec, RegisterArraySpec):
            hook(index, spec.type(stored))
        else:
            hook(spec.type(stored))

    def _read_pieces(self, offset: int, size: int) -> int:
        value, position, end, modelled = 0, offset, offset + size, False
        while position < end:
            place = self.layout.find(position)
            if place is None:
                position += 1
                continue
            modelled = True
            skip = position - place.offset
            count = min(place.offset + place.spec.width, end) - position
            lanes = ((1 << 8 * count) - 1) << 8 * skip
            part = (self._read_register(place, lanes) & lanes) >> 8 * skip
            value |= part << 8 * (position - offset)
            position += count
        if not modelled:
            self._note_unmodelled("read", offset, size)
        return value

    def _write_pieces(self, offset: int, size: int, value: int) -> None:
        position, end, modelled = offset, offset + size, False
        while position < end:
            place = self.layout.find(position)
            if place is None:
                position += 1
                continue
            modelled = True
            skip = position - place.offset
            count = min(place.offset + place.spec.width, end) - position
            lanes = ((1 << 8 * count) - 1) << 8 * skip
            part = (value >> 8 * (position - offset)) << 8 * skip
            self._write_register(place, part & lanes, lanes)
            position += count
        if not modelled:
            self._note_unmodelled("write", offset, size)

    def _note_unmodelled(self, direction: str, offset: int, size: int) -> None:
        key = (direction, offset, size)
        if key in self.unmodelled or len(self.unmodelled) < UNMODELLED_LIMIT:
            self.unmodelled[key] = self.unmodelled.get(key, 0) + 1

    # For a person.

    @classmethod
    def table(cls) -> str:
        """The registers and fields as a Markdown table, for the docs."""
        return markdown_table(cls.layout.registers)

    def __repr__(self) -> str:
        lines = [type(self).__name__]
        for spec in self.layout.registers:
            shown = [
                (index, self.load(spec.element_offset(index), spec.width))
                for index in range(min(spec.count, 8))
            ]
            lines += [
                f"  {spec.element_offset(i):#06x} {spec.element_name(i)} = {spec.type(v)!r}" for i, v in shown
            ]
            if spec.count > len(shown):
                lines.append(f"         ... {spec.count - len(shown)} more of {spec.name}")
        return "\n".join(lines)
