"""The ladder: off is the very dispatch of an untraced device, and each rung shows what it says."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iolane.errors import IolaneError
from iolane.model.dma import Direction
from iolane.model.interrupts import InterruptIndex
from iolane.model.trace import RegisterCount, TraceLevel, Tracer
from tests.unit.model.trace.support import Adder, bar0, dispatch, same, texts

UPPER = [TraceLevel.COUNTERS, TraceLevel.REGISTERS, TraceLevel.FIELDS]


def counts(tracer: Tracer, registers: str | None = None) -> dict[str, tuple[int, int]]:
    return {item.name: (item.reads, item.writes) for item in tracer.counters(registers)}


class TestOff:
    def test_a_tracer_that_was_never_on_changes_nothing(self) -> None:
        device = Adder()
        before = dispatch(device)
        Tracer(device)
        assert same(dispatch(device), before)

    @pytest.mark.parametrize("level", UPPER)
    def test_identical_callables_after_off(self, level: TraceLevel) -> None:
        device = Adder()
        before = dispatch(device)
        observers = len(device.dma.on_fault), len(device.on_error), list(device.interrupts.observers)
        tracer = Tracer(device)
        for _ in range(3):
            tracer.set(level)
            assert not any(a is c or b is d for (a, b), (c, d) in zip(dispatch(device), before, strict=True))
            bar0(device).read(0, 4)
            tracer.set(TraceLevel.OFF)
            assert same(dispatch(device), before)
        assert observers == (len(device.dma.on_fault), len(device.on_error), device.interrupts.observers)

    def test_levels_change_without_wrapping_twice(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.COUNTERS)
        traced = dispatch(device)
        tracer.set(TraceLevel.FIELDS)
        assert same(dispatch(device), traced)
        bar0(device).read(0, 4)
        assert counts(tracer) == {"bar0.A": (1, 0)}

    def test_a_second_tracer_is_refused_while_the_first_is_on(self) -> None:
        device = Adder()
        before = dispatch(device)
        first, second = Tracer(device), Tracer(device)
        first.set(TraceLevel.COUNTERS)
        with pytest.raises(IolaneError, match="has a tracer already"):
            second.set(TraceLevel.COUNTERS)
        assert second.level is TraceLevel.OFF
        first.off()
        second.set(TraceLevel.COUNTERS)
        second.off()
        assert same(dispatch(device), before)

    def test_what_somebody_else_put_in_meanwhile_stays(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.COUNTERS)
        region = bar0(device)
        mine: Callable[[int, int], int] = lambda offset, size: 7  # noqa: E731
        region.read = mine
        tracer.off()
        assert region.read is mine


class TestCounters:
    def test_by_register(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.COUNTERS)
        region = bar0(device)
        for _ in range(3):
            region.write(0x24, 4, 1)
        region.read(0, 4)
        region.read(0, 8)
        region.read(0x0D, 1)
        device.config.read(4, 2)
        region.read(0x1000, 4)
        assert tracer.counters() == [
            RegisterCount("bar0.A", 2, 0),
            RegisterCount("bar0.B", 1, 0),
            RegisterCount("bar0.CONTROL", 1, 0),
            RegisterCount("bar0.DOORBELL[1]", 0, 3),
            RegisterCount("bar0+0x1000", 1, 0),
            RegisterCount("config.COMMAND", 1, 0),
        ]
        assert tracer.counters("bar0.doorbell") == [RegisterCount("bar0.DOORBELL[1]", 0, 3)]
        assert list(tracer.recent) == []
        tracer.clear()
        assert tracer.counters() == []
        region.read(0, 4)
        assert counts(tracer) == {"bar0.A": (1, 0)}

    def test_they_outlive_off(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        for _ in range(2):
            tracer.set(TraceLevel.COUNTERS)
            bar0(device).read(0, 4)
            tracer.set(TraceLevel.OFF)
            bar0(device).read(0, 4)
        assert counts(tracer) == {"bar0.A": (2, 0)}

    def test_a_guest_that_reads_everywhere_costs_a_bounded_amount(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("iolane.model.trace.tracer.TARGETS_LIMIT", 10)
        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.REGISTERS)
        for offset in range(0, 400, 4):
            bar0(device).read(offset, 4)
            bar0(device).write(offset, 4, 0)
        found = counts(tracer)
        assert len(found) == 11
        assert found["bar0+others"] == (90, 90)
        assert len(tracer.recent) == 200, "all are still told"

    def test_interrupts(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.COUNTERS)
        device.interrupts.deliver = lambda message: None
        device.config.write(4, 2, 6)
        control = next(
            offset for offset in range(0x40, 0x100, 2) if _name(device, offset) == "config.msix.CONTROL"
        )
        device.config.write(control, 2, 1 << 15)
        table = device.regions[4]
        assert table is not None
        table.write(12, 4, 0)
        bar0(device).write(0x0C, 4, 1)
        assert tracer.interrupts == {(InterruptIndex.MSIX, 0): 1}
        assert list(tracer.recent) == []
        tracer.set(TraceLevel.REGISTERS)
        bar0(device).write(0x0C, 4, 1)
        assert texts(tracer) == ["write bar0.CONTROL = 0x00000001", "interrupt MSIX 0"]
        assert tracer.recent[1].plain() == {
            "event": "interrupt",
            "time_ns": 0,
            "device": "adder",
            "kind": "msix",
            "vector": 0,
        }


def _name(device: Adder, offset: int) -> str:
    located = device.config.locate(offset)
    return located.name if located is not None else ""


class TestAccesses:
    def test_registers_and_fields(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        region = bar0(device)
        tracer.set(TraceLevel.REGISTERS)
        region.write(0x0C, 4, 0x0502)
        tracer.set(TraceLevel.FIELDS)
        region.write(0x0C, 4, 0x0502)
        region.read(0x0C, 4)
        region.read(0x0D, 1)
        region.read(0x0C, 2)
        region.write(0x04, 8, 7 << 32 | 9)
        region.read(0x08, 8)
        region.read(0x10, 1)
        region.read(0x11, 1)
        region.write(0x2C, 4, 3)
        region.read(0x2004, 4)
        region.read(0x1004, 2)
        assert texts(tracer) == [
            "write bar0.CONTROL = 0x00000502",
            "write bar0.CONTROL = 0x00000502 MODE=SUBTRACT TAG=5",
            "read  bar0.CONTROL -> 0x00000502 MODE=SUBTRACT TAG=5",
            "read  bar0.CONTROL[15:8] -> 0x05 TAG=5",
            "read  bar0.CONTROL[15:0] -> 0x0502 MODE=SUBTRACT TAG=5",
            "write bar0.B+bar0.SUM = 0x0000000700000009 bar0.B=0x9, bar0.SUM=0x7",
            "read  bar0.SUM+bar0.CONTROL -> 0x0000050200000000 bar0.SUM=0x0,"
            " bar0.CONTROL=0x502 MODE=SUBTRACT TAG=5",
            "read  bar0.STATUS -> 0x01 BUSY=1",
            "read  bar0+0x11 -> 0x00 (1 bytes, not modelled)",
            "write bar0.DOORBELL[3] = 0x00000003",
            "read  bar0+0x2004 -> 0x00000000",
            "read  bar0+0x1004 -> 0x0000 (2 bytes, not modelled)",
        ]

    def test_json(self) -> None:
        device = Adder(name="adder0")
        device.clock.advance(1500)
        tracer = Tracer(device)
        tracer.set(TraceLevel.FIELDS)
        bar0(device).write(0x0C, 4, 0x0502)
        bar0(device).read(0x0D, 1)
        bar0(device).read(0x0C, 8)
        bar0(device).read(0x300, 4)
        first, part, several, hole = (event.plain() for event in tracer.recent)
        assert first == {
            "event": "write",
            "time_ns": 1500,
            "device": "adder0",
            "register": "bar0.CONTROL",
            "region": "bar0",
            "offset": 12,
            "size": 4,
            "value": 0x502,
            "fields": {"START": 0, "MODE": 1, "TAG": 5},
        }
        assert part["fields"] == {"TAG": 5}
        assert several["fields"]["bar0.CONTROL.TAG"] == 5
        assert several["fields"]["bar0.STATUS.BUSY"] == 1
        assert hole["modelled"] is False

    @pytest.mark.parametrize(
        ("registers", "direction", "seen"),
        [
            (None, None, ["rA", "wA", "wCONTROL", "wDOORBELL[2]", "rVENDOR_ID", "rbar0+0x1040", "fault"]),
            ("bar0.*", None, ["rA", "wA", "wCONTROL", "wDOORBELL[2]", "rbar0+0x1040"]),
            ("bar0+*", None, ["rbar0+0x1040"]),
            ("BAR0.a", None, ["rA", "wA"]),
            ("bar0.DOORBELL", None, ["wDOORBELL[2]"]),
            ("bar0.DOORBELL[2]", None, ["wDOORBELL[2]"]),
            ("bar0.DOORBELL[3]", None, []),
            ("config.*, bar0.CON*", None, ["wCONTROL", "rVENDOR_ID"]),
            ("bar0.*", "read", ["rA", "rbar0+0x1040"]),
            ("bar0.*", Direction.WRITE, ["wA", "wCONTROL", "wDOORBELL[2]"]),
            (None, "read", ["rA", "rVENDOR_ID", "rbar0+0x1040", "fault"]),
            ("dma.*", None, ["fault"]),
            ("nothing", None, []),
            ("", None, ["rA", "wA", "wCONTROL", "wDOORBELL[2]", "rVENDOR_ID", "rbar0+0x1040", "fault"]),
        ],
    )
    def test_filters(self, registers: str | None, direction: str | None, seen: list[str]) -> None:
        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.REGISTERS, registers=registers, direction=direction)
        region = bar0(device)
        region.read(0, 4)
        region.write(0, 4, 1)
        region.write(0x0C, 4, 1)
        region.write(0x28, 4, 1)
        device.config.read(0, 2)
        region.read(0x1040, 4)
        with pytest.raises(IolaneError):
            device.dma.read(0, 1)
        found = []
        for event in tracer.recent:
            plain = event.plain()
            if plain["event"] in ("read", "write"):
                found.append(plain["event"][0] + plain["register"].rpartition(".")[2])
            else:
                found.append("fault")
        assert found == seen

    def test_an_unknown_direction_is_refused(self) -> None:
        with pytest.raises(ValueError):
            Tracer(Adder()).set(TraceLevel.REGISTERS, direction="sideways")

    def test_dma_faults_and_errors(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.REGISTERS)
        with pytest.raises(IolaneError):
            device.dma.write(0x1000, b"1234")
        device.report_error("a test", ValueError("x"))
        assert texts(tracer) == [
            "dma fault, write of 4 bytes at 0x1000: bus mastering is off",
            "error in a test: ValueError('x')",
        ]
        fault, error = (event.plain() for event in tracer.recent)
        assert (fault["event"], fault["iova"], fault["reason"]) == ("dma_fault", 0x1000, "bus_master_off")
        assert (error["event"], error["where"]) == ("error", "a test")

    def test_the_write_comes_before_what_it_causes(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.REGISTERS)
        with pytest.raises(RuntimeError):
            bar0(device).write(0x20, 4, 0xBAD)
        assert texts(tracer) == ["write bar0.DOORBELL[0] = 0x00000bad"]


class TestFollowers:
    def test_each_has_its_own_level_and_filter(self) -> None:
        device = Adder()
        before = dispatch(device)
        tracer = Tracer(device)
        one: list[str] = []
        two: list[str] = []
        end_one = tracer.follow(
            TraceLevel.REGISTERS, registers="bar0.A", sink=lambda event: one.append(event.text())
        )
        end_two = tracer.follow(
            TraceLevel.FIELDS, direction="write", sink=lambda event: two.append(event.text())
        )
        tracer.set(TraceLevel.COUNTERS)
        assert str(tracer.level) == "fields"
        region = bar0(device)
        region.read(0, 4)
        region.write(0x0C, 4, 2)
        assert [line.split()[2:] for line in one] == [["read", "bar0.A", "->", "0x00000000"]]
        assert [line.split()[2:] for line in two] == [
            ["write", "bar0.CONTROL", "=", "0x00000002", "MODE=SUBTRACT"]
        ]
        end_two()
        end_two()
        assert str(tracer.level) == "registers"
        end_one()
        assert str(tracer.level) == "counters"
        tracer.set(TraceLevel.OFF)
        assert same(dispatch(device), before)

    def test_off_ends_all(self) -> None:
        device = Adder()
        before = dispatch(device)
        tracer = Tracer(device)
        tracer.follow(TraceLevel.REGISTERS, sink=print)
        tracer.set(TraceLevel.FIELDS)
        tracer.off()
        assert same(dispatch(device), before)

    def test_a_sink_that_fails_is_dropped_and_the_guest_goes_on(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        lines: list[str] = []

        def closed(event: object) -> None:
            raise BrokenPipeError("reader is gone")

        tracer.follow(TraceLevel.REGISTERS, sink=closed)
        tracer.follow(TraceLevel.REGISTERS, sink=lambda event: lines.append(event.text()))
        bar0(device).write(0, 4, 5)
        bar0(device).write(0, 4, 6)
        assert bar0(device).read(0, 4) == 6
        assert device.error_count == 1
        assert len(lines) == 4, "three accesses and the error"

    def test_switching_under_load(self) -> None:
        """A carrier's thread goes on while another switches; accesses are neither lost nor doubled."""
        device = Adder()
        before = dispatch(device)
        tracer = Tracer(device)
        region = bar0(device)
        stop = threading.Event()
        made = 0

        def guest() -> None:
            nonlocal made
            while not stop.is_set():
                with device.lock:
                    made += 1
                    region.write(0, 4, made & 0xFFFF_FFFF)
                    assert region.read(0, 4) == made & 0xFFFF_FFFF

        thread = threading.Thread(target=guest)
        thread.start()
        for number in range(200):
            tracer.set(TraceLevel(number % 4))
        tracer.off()
        stop.set()
        thread.join()
        assert same(dispatch(device), before)
        assert device.error_count == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(0, 0x3F), st.sampled_from([1, 2, 4, 8]), st.just(0)),
            st.tuples(
                st.just("write"),
                st.integers(0, 0x3F),
                st.sampled_from([1, 2, 4, 8]),
                st.integers(0, (1 << 64) - 1),
            ),
            st.tuples(st.just("level"), st.integers(0, 3), st.just(0), st.just(0)),
        ),
        max_size=40,
    )
)
def test_a_traced_device_is_the_same_device(steps: list[tuple[str, int, int, int]]) -> None:
    traced, plain = Adder(), Adder()
    tracer = Tracer(traced)
    for what, number, size, value in steps:
        if what == "level":
            tracer.set(TraceLevel(number))
        elif what == "read":
            assert bar0(traced).read(number, size) == bar0(plain).read(number, size)
        else:
            value &= (1 << 8 * size) - 1
            bar0(traced).write(number, size, value)
            bar0(plain).write(number, size, value)
    assert traced.save() == plain.save()
    for device in (traced, plain):
        device.close()


def test_an_eventfd_interrupt_is_told() -> None:
    device = Adder()
    tracer = Tracer(device)
    tracer.set(TraceLevel.REGISTERS, registers="interrupt.*")
    fd = os.eventfd(0)
    device.interrupts.group(InterruptIndex.MSIX).connect(2, fd)
    device.interrupts.bus_master = True
    device.interrupts.delivered(InterruptIndex.MSIX, 2)
    assert texts(tracer) == ["interrupt MSIX 2"]
    device.close()
