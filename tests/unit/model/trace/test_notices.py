"""Hooks, unmodelled registers, spinning guests, sinks."""

from __future__ import annotations

import io
import json

import pytest

from iolane.errors import IolaneError
from iolane.model.dma import Direction
from iolane.model.trace import (
    DROP,
    Drop,
    JsonSink,
    RegisterAccess,
    TextSink,
    TraceLevel,
    Tracer,
    Unmodelled,
    unmodelled,
)
from tests.unit.model.trace.support import Adder, bar0, texts

MS = 1_000_000


class TestHook:
    def test_sees_and_changes(self) -> None:
        device = Adder()
        seen: list[tuple[str, str, int, dict[str, int]]] = []

        def hook(access: RegisterAccess) -> int | None:
            seen.append((str(access.direction), access.register, access.value, dict(access.fields)))
            if access.register == "bar0.SUM":
                return 0x1_0000_0001
            if access.register == "bar0.A" and access.direction is Direction.WRITE:
                return access.value + 1
            return None

        tracer = Tracer(device)
        tracer.set(TraceLevel.HOOK, hook=hook)
        region = bar0(device)
        region.write(0, 4, 0xFFFF_FFFF)
        region.write(0, 4, 5)
        region.write(4, 4, 2)
        region.write(0x0C, 4, 1)
        assert region.read(0x08, 4) == 1, "cut to the access's size"
        tracer.off()
        assert region.read(0x08, 4) == 8
        assert seen[3:] == [
            ("write", "bar0.CONTROL", 1, {"START": 1, "MODE": 0, "TAG": 0}),
            ("read", "bar0.SUM", 8, {}),
        ]
        assert texts(tracer) == [
            "write bar0.A = 0x00000000 (a hook changed it from 0xffffffff)",
            "write bar0.A = 0x00000006 (a hook changed it from 0x5)",
            "write bar0.B = 0x00000002",
            "write bar0.CONTROL = 0x00000001 START=1",
            "read  bar0.SUM -> 0x00000001 (a hook changed it from 0x8)",
        ]
        assert [event.plain().get("original") for event in tracer.recent] == [0xFFFF_FFFF, 5, None, None, 8]

    def test_drop(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.HOOK, registers="bar0.A", hook=lambda access: DROP)
        region = bar0(device)
        region.write(0, 4, 5)
        region.write(4, 4, 6)
        assert region.read(0, 2) == 0xFFFF
        tracer.off()
        assert region.read(0, 8) == 6 << 32
        assert texts(tracer) == [
            "write bar0.A = 0x00000005 (dropped by a hook)",
            "read  bar0.A[15:0] -> 0xffff (dropped by a hook)",
        ]
        assert all(event.plain()["dropped"] for event in tracer.recent)

    @pytest.mark.parametrize("answer", ["x", 1.5, [], Exception])
    def test_a_hook_that_is_wrong_changes_nothing(self, answer: object) -> None:
        def hook(access: RegisterAccess) -> int | Drop | None:
            access.value = 99
            if answer is Exception:
                raise ValueError("planned")
            return answer  # type: ignore[return-value]

        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.HOOK, hook=hook)
        bar0(device).write(0, 4, 5)
        assert bar0(device).read(0, 4) == 5
        assert device.error_count == 2
        assert "a trace hook" in texts(tracer)[0]

    def test_changing_the_record_is_not_changing_the_access(self) -> None:
        def hook(access: RegisterAccess) -> None:
            access.value = 99

        device = Adder()
        tracer = Tracer(device)
        tracer.set(TraceLevel.HOOK, hook=hook)
        bar0(device).write(0, 4, 5)
        assert bar0(device).read(0, 4) == 5

    def test_hooks_in_a_row(self) -> None:
        device = Adder()
        tracer = Tracer(device)
        tracer.follow(TraceLevel.HOOK, hook=lambda access: access.value + 1)
        tracer.follow(TraceLevel.HOOK, hook=lambda access: access.value * 2)
        bar0(device).write(0, 4, 5)
        tracer.off()
        assert bar0(device).read(0, 4) == 12

    def test_level_and_hook_go_together(self) -> None:
        tracer = Tracer(Adder())
        with pytest.raises(IolaneError):
            tracer.set(TraceLevel.HOOK)
        with pytest.raises(IolaneError):
            tracer.follow(TraceLevel.FIELDS, hook=lambda access: None)


def test_unmodelled_is_known_without_tracing() -> None:
    device = Adder()
    region = bar0(device)
    for _ in range(3):
        region.read(0x1000, 4)
    region.write(0x14, 4, 1)
    region.read(0x11, 1)
    device.config.read(0xFFC, 4)
    region.read(0x2000, 4)  # memory
    region.read(0x0C, 8)  # a register, and bytes beside it
    assert unmodelled(device) == [
        Unmodelled("bar0", Direction.READ, 0x1000, 4, 3),
        Unmodelled("bar0", Direction.READ, 0x11, 1, 1),
        Unmodelled("bar0", Direction.WRITE, 0x14, 4, 1),
        Unmodelled("config", Direction.READ, 0xFFC, 4, 1),
    ]
    assert str(unmodelled(device)[0]) == "read bar0+0x1000 (4 bytes) x 3"
    assert Tracer(device).unmodelled() == unmodelled(device)


class TestSpin:
    def spinning(self, **options: int) -> tuple[Adder, Tracer, list[str]]:
        device = Adder()
        tracer = Tracer(device, **options)
        lines: list[str] = []
        tracer.set(TraceLevel.COUNTERS, sink=lambda event: lines.append(event.text()))
        return device, tracer, lines

    def test_is_reported_once_a_burst(self) -> None:
        device, tracer, lines = self.spinning(spin_reads=10)
        region = bar0(device)
        for _ in range(35):
            device.clock.advance(MS)
            region.read(0x10, 1)
            region.read(0x00, 4) if _ % 2 else None  # another register between does not matter
        assert len(lines) == 2
        assert lines[0].endswith(
            "notice: the guest spins on bar0.STATUS: 10 reads in 9.0 ms, always 0x01 BUSY=1"
        )
        assert "bar0.A" in lines[1]
        region.write(0, 4, 1)  # it did something
        for _ in range(20):
            region.read(0x10, 1)
        assert len(lines) == 3
        assert [spin.reads for spin in tracer.spins] == [10, 10, 10]
        plain = tracer.spins[0].plain()
        assert (plain["register"], plain["value"], plain["within_ns"]) == ("bar0.STATUS", 1, 9 * MS)

    def test_other_values_and_writes_end_it(self) -> None:
        device, tracer, lines = self.spinning(spin_reads=10)
        region = bar0(device)
        for number in range(100):
            region.read(0x10, 1)
            if number % 9 == 8:
                if number % 2:
                    region.write(0x20, 4, 0)
                else:
                    device.bar0.STATUS = number & 0xFF
        assert lines == []
        assert not tracer.spins

    def test_slow_polling_is_no_spin(self) -> None:
        device, _, lines = self.spinning(spin_reads=10, spin_within_ns=100 * MS)
        for _ in range(200):
            device.clock.advance(12 * MS)
            bar0(device).read(0x10, 1)
        assert lines == []
        for _ in range(20):
            device.clock.advance(MS)
            bar0(device).read(0x10, 1)
        assert len(lines) == 1

    def test_filters_hold_for_notices(self) -> None:
        device = Adder()
        tracer = Tracer(device, spin_reads=3)
        lines: list[str] = []
        tracer.follow(TraceLevel.COUNTERS, registers="bar0.A", sink=lambda event: lines.append(event.text()))
        tracer.follow(TraceLevel.COUNTERS, direction="write", sink=lambda event: lines.append(event.text()))
        for _ in range(5):
            bar0(device).read(0x10, 1)
        assert lines == []
        assert len(tracer.spins) == 1


def test_sinks() -> None:
    device = Adder(name="adder0")
    device.clock.advance(1_234_567_000)
    text, lines = io.StringIO(), io.StringIO()
    tracer = Tracer(device)
    tracer.set(TraceLevel.REGISTERS, sink=TextSink(text))
    tracer.follow(TraceLevel.FIELDS, sink=JsonSink(lines))
    bar0(device).write(0x0C, 4, 2)
    bar0(device).read(0x0C, 4)
    assert text.getvalue().splitlines() == [
        "    1.234567 adder0 write bar0.CONTROL = 0x00000002",
        "    1.234567 adder0 read  bar0.CONTROL -> 0x00000002",
    ]
    written, read = (json.loads(line) for line in lines.getvalue().splitlines())
    assert written["event"] == "write"
    assert read["fields"] == {"START": 0, "MODE": 1, "TAG": 0}


def test_levels_by_name() -> None:
    assert [str(level) for level in TraceLevel] == ["off", "counters", "registers", "fields", "hook"]
    assert TraceLevel.parse("fields") is TraceLevel.FIELDS
    with pytest.raises(KeyError):
        TraceLevel.parse("everything")
