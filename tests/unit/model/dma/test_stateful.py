"""DmaSpace against a dict of bytes: any order of maps, unmaps, accesses, pins, permissions and Bus Master."""

from __future__ import annotations

import os

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iolane.errors import IolaneError
from iolane.model.dma import DmaFault, DmaSpace, FaultReason, MapOverlapError, Permission, Pinned

PAGE = 4096
BASES = (0, 0x1_0000_0000 - 4 * PAGE, (1 << 64) - 8 * PAGE)
FILE_PAGES = 8

pages = st.sampled_from([base // PAGE + page for base in BASES for page in range(8)])
counts = st.integers(1, 6)
offsets = st.one_of(st.integers(0, 3), st.integers(PAGE - 3, PAGE - 1), st.integers(0, PAGE - 1))
lengths = st.one_of(st.integers(0, 8), st.integers(PAGE - 4, PAGE + 4), st.integers(0, 4 * PAGE))
memories = st.sampled_from(["low", "high", "buffer", "indirect"])
permissions = st.sampled_from([Permission.READ, Permission.WRITE, *[Permission(3)] * 4, Permission(0)])

Key = tuple[str, int]
"""A memory and an offset in it: a byte of the oracle."""


def equal(one: bytes | bytearray, other: bytes) -> bool:
    """Compared here, pytest does not make a diff of 16 KiB."""
    return one == other


class Owner:
    """Memory reached by asking: it lives in the oracle's dict."""

    def __init__(self, content: dict[Key, int]) -> None:
        self.content = content

    def read(self, iova: int, length: int) -> bytes:
        return bytes(self.content.get(("indirect", iova + i), 0) for i in range(length))

    def write(self, iova: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            self.content["indirect", iova + i] = byte


class OracleMap:
    def __init__(self, start: int, count: int, memory: str, first: int, permission: Permission) -> None:
        self.start, self.count, self.memory = start, count, memory
        self.first, self.permission = first, permission


class DmaMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.space = DmaSpace(device="dut")
        self.content: dict[Key, int] = {}
        self.maps: dict[int, OracleMap] = {}  # page number -> its map
        self.fds = {name: os.memfd_create(name) for name in ("low", "high")}
        for fd in self.fds.values():
            os.ftruncate(fd, FILE_PAGES * PAGE)
        self.buffer = bytearray(FILE_PAGES * PAGE)
        self.space.indirect = Owner(self.content)
        self.pins: list[tuple[Pinned, list[tuple[int, int]]]] = []
        self.dirty: set[int] | None = None
        self.faults = 0
        self.read_bytes = self.written_bytes = 0

    def teardown(self) -> None:
        for pinned, _ in self.pins:
            pinned.release()
        self.space.unmap_all()
        for fd in self.fds.values():
            os.close(fd)

    # The oracle.

    def expected(self, iova: int, n: int, write: bool) -> FaultReason | None:
        if not self.space.enabled:
            return FaultReason.BUS_MASTER_OFF
        if iova + n > 1 << 64:
            return FaultReason.OUT_OF_RANGE
        wanted = Permission.WRITE if write else Permission.READ
        first = iova // PAGE
        for page in range(first, (iova + n - 1) // PAGE + 1) if n else ():
            found = self.maps.get(page)
            if found is None:
                return FaultReason.UNMAPPED if page == first else FaultReason.OUT_OF_RANGE
            if not found.permission & wanted:
                return FaultReason.READ_ONLY if write else FaultReason.WRITE_ONLY
        return None

    def key(self, iova: int) -> Key:
        found = self.maps[iova // PAGE]
        if found.memory == "indirect":
            return "indirect", iova
        return found.memory, (found.first + iova // PAGE - found.start) * PAGE + iova % PAGE

    def get(self, iova: int, n: int) -> bytes:
        return bytes(self.content.get(self.key(iova + i), 0) for i in range(n))

    def put(self, iova: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            self.content[self.key(iova + i)] = byte
        self.wrote(iova, len(data))

    def wrote(self, iova: int, n: int) -> None:
        self.written_bytes += n
        if self.dirty is not None and n:
            self.dirty.update(range(iova // PAGE, (iova + n - 1) // PAGE + 1))

    def indirect(self, iova: int, n: int) -> bool:
        touched = range(iova // PAGE, (iova + n - 1) // PAGE + 1) if n else ()
        return any(self.maps[page].memory == "indirect" for page in touched)

    # Maps.

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        """Neighbours, so that accesses cross their borders; often in one run of one file."""
        page = data.draw(st.sampled_from([base // PAGE for base in BASES]))
        memory, first = "low", 0
        for _ in range(data.draw(st.integers(1, 4))):
            count = data.draw(st.integers(1, 2))
            if data.draw(st.booleans()):
                memory = data.draw(memories)
                first = data.draw(st.integers(0, FILE_PAGES))
            self.map(page, count, memory, first, Permission(3))
            page, first = page + count, first + count

    @rule(
        start=pages,
        count=counts,
        memory=memories,
        first=st.integers(0, 9),
        permission=permissions,
    )
    def map(self, start: int, count: int, memory: str, first: int, permission: Permission) -> None:
        touched = range(start, start + count)
        fits = start + count <= 1 << 52 and (memory == "indirect" or first + count <= FILE_PAGES)
        overlaps = any(page in self.maps for page in touched)
        before = self.space.maps
        where = {"fd": self.fds.get(memory), "buffer": self.buffer if memory == "buffer" else None}
        refused: IolaneError | None = None
        try:
            self.space.map(
                start * PAGE,
                count * PAGE,
                offset=first * PAGE,
                permission=permission,
                **where,  # type: ignore[arg-type]
            )
        except IolaneError as error:
            refused = error
        if refused is not None:
            assert overlaps or not fits, refused
            assert overlaps or not isinstance(refused, MapOverlapError)
            assert self.space.maps == before
            return
        assert fits
        assert not overlaps
        one = OracleMap(start, count, memory, first, permission)
        self.maps.update(dict.fromkeys(touched, one))

    @rule(start=pages, count=st.one_of(counts, st.just(1 << 20)))
    def unmap(self, start: int, count: int) -> None:
        count = min(count, (1 << 52) - start)
        touched = [page for page in self.maps if start <= page < start + count]
        inside = all(
            start <= self.maps[page].start and self.maps[page].start + self.maps[page].count <= start + count
            for page in touched
        )
        if inside:
            self.release_pins_in(touched)  # unmap would wait for them
        try:
            dropped = self.space.unmap(start * PAGE, count * PAGE)
        except IolaneError:
            assert not inside
            return
        assert inside
        assert dropped == len(touched) * PAGE
        for page in touched:
            del self.maps[page]

    @rule()
    def toggle_bus_master(self) -> None:
        self.space.enabled = not self.space.enabled

    # Accesses.

    def place(self, page: int, offset: int) -> int:
        """The IOVA for a draw: mostly in a map."""
        if page % 4 and self.maps:
            mapped = sorted(self.maps)
            page = mapped[page // 4 % len(mapped)]
        return page * PAGE + offset

    def check(self, iova: int, n: int, write: bool, fault: DmaFault | None) -> bool:
        """Whether the access was to succeed; asserts that it did what was expected."""
        reason = self.expected(iova, n, write)
        if fault is None:
            assert reason is None
            return True
        self.faults += 1
        assert fault.reason is reason, (fault, reason)
        assert (fault.iova, fault.length, fault.device) == (iova, n, "dut")
        assert self.space.faults[-1].reason is reason
        return False

    @rule(page=pages, offset=offsets, n=lengths, into=st.booleans())
    def read(self, page: int, offset: int, n: int, into: bool) -> None:
        iova = self.place(page, offset)
        self.check_read(iova, n, into)

    @rule(pick=st.integers(0, 100), before=st.integers(1, 5), n=st.integers(1, 6), write=st.booleans())
    def at_the_edge(self, pick: int, before: int, n: int, write: bool) -> None:
        """Around the end of a map, right after an access to it."""
        if not self.maps:
            return
        one = self.maps[sorted(self.maps)[pick % len(self.maps)]]
        end = (one.start + one.count) * PAGE
        for iova, length in ((end - before, 1), (end - before, n)):
            if write:
                self.check_write(iova, bytes(range(length)))
            else:
                self.check_read(iova, length, False)

    def check_read(self, iova: int, n: int, into: bool) -> None:
        fault = None
        data = bytearray(n)
        try:
            if into:
                self.space.read_into(iova, data)
            else:
                data[:] = self.space.read(iova, n)
        except DmaFault as caught:
            fault = caught
        if self.check(iova, n, False, fault):
            assert equal(data, self.get(iova, n))
            self.read_bytes += n

    @rule(page=pages, offset=offsets, data=st.binary(max_size=16), more=lengths)
    def write(self, page: int, offset: int, data: bytes, more: int) -> None:
        iova = self.place(page, offset)
        self.check_write(iova, (data * (more // max(1, len(data)) + 1))[: more or len(data)])

    def check_write(self, iova: int, data: bytes) -> None:
        fault = None
        try:
            self.space.write(iova, data)
        except DmaFault as caught:
            fault = caught
        if self.check(iova, len(data), True, fault):
            self.put(iova, data)

    @rule(page=pages, offset=offsets, n=lengths)
    def scatter(self, page: int, offset: int, n: int) -> None:
        iova = self.place(page, offset)
        fault = None
        views: list[memoryview] = []
        try:
            views = self.space.scatter(iova, n)
        except DmaFault as caught:
            fault = caught
        if self.check(iova, n, False, fault):
            assert equal(b"".join(views), self.get(iova, n))
            assert all(view.readonly for view in views)
            self.read_bytes += n

    @rule(
        page=pages, offset=offsets, data=st.binary(min_size=1, max_size=4), times=st.sampled_from([1, 1100])
    )
    def scatter_to_write(self, page: int, offset: int, data: bytes, times: int) -> None:
        data *= times
        iova = self.place(page, offset)
        fault = None
        views: list[memoryview] = []
        try:
            views = self.space.scatter(iova, len(data), write=True)
        except DmaFault as caught:
            fault = caught
        if fault is not None and fault.reason is FaultReason.INDIRECT_FAILED:
            assert self.expected(iova, len(data), True) is None
            assert self.indirect(iova, len(data))
            self.faults += 1
            return
        if not self.check(iova, len(data), True, fault):
            return
        rest = data
        for view in views:
            view[:] = rest[: len(view)]
            rest = rest[len(view) :]
        assert not rest
        self.put(iova, data)

    # Pins.

    @precondition(lambda self: len(self.pins) < 3)
    @rule(pieces=st.lists(st.tuples(pages, offsets, st.integers(1, 2 * PAGE)), max_size=3))
    def pin(self, pieces: list[tuple[int, int, int]]) -> None:
        ranges = [(self.place(page, offset), n) for page, offset, n in pieces]
        reasons = [(iova, n, self.expected(iova, n, True)) for iova, n in ranges]
        bad = next((item for item in reasons if item[2] is not None), None)
        fault = None
        try:
            pinned = self.space.pin(ranges, write=True)
        except DmaFault as caught:
            fault = caught
        if fault is not None:
            self.faults += 1
            assert (fault.iova, fault.length, fault.reason) == bad
            return
        self.pins.append((pinned, ranges))
        assert bad is None
        assert sum(len(view) for view in pinned.views) == sum(n for _, n in ranges) == pinned.length

    @precondition(lambda self: self.pins)
    @rule(data=st.data(), byte=st.integers(0, 255))
    def release(self, data: st.DataObject, byte: int) -> None:
        self.write_and_release(data.draw(st.integers(0, len(self.pins) - 1)), byte)

    def release_pins_in(self, touched: list[int]) -> None:
        for slot in reversed(range(len(self.pins))):
            if any(
                iova // PAGE <= page <= (iova + n - 1) // PAGE
                for iova, n in self.pins[slot][1]
                for page in touched
            ):
                self.write_and_release(slot, 0xA5)

    def write_and_release(self, slot: int, byte: int) -> None:
        pinned, ranges = self.pins.pop(slot)
        for view in pinned.views:
            view[:] = bytes([byte]) * len(view)
        pinned.release()
        pinned.release()
        for iova, n in ranges:
            self.put(iova, bytes([byte]) * n)

    # Dirty pages.

    @rule()
    def start_log(self) -> None:
        self.space.start_dirty_log()
        self.dirty = set()

    @precondition(lambda self: self.dirty is not None)
    @rule(start=pages, count=st.integers(1, 40))
    def collect(self, start: int, count: int) -> None:
        assert self.dirty is not None
        count = min(count, (1 << 52) - start)
        bits = int.from_bytes(self.space.collect_dirty(start * PAGE, count * PAGE), "little")
        found = {start + bit for bit in range(count) if bits >> bit & 1}
        wanted = {page for page in self.dirty if start <= page < start + count}
        assert found == wanted
        assert not bits >> count
        self.dirty -= wanted

    @invariant()
    def inspection_agrees(self) -> None:
        known = sorted({(one.start * PAGE, one.count * PAGE, one.permission) for one in self.maps.values()})
        assert [item[:3] for item in self.space.maps] == known
        assert self.space.fault_count == self.faults
        assert self.space.bytes_written == self.written_bytes
        assert self.space.bytes_read == self.read_bytes


TestDmaMachine = DmaMachine.TestCase
