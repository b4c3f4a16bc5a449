"""A device's time, moved by hand and by the carrier's timer thread."""

from __future__ import annotations

import threading
from functools import partial

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iolane.errors import IolaneError
from iolane.model.clock import Timer
from iolane.model.device import Device
from iolane.model.workers import Workers

MS = 1_000_000


class OracleTimer:
    def __init__(self, deadline: int, number: int, period: int) -> None:
        self.deadline, self.number, self.period = deadline, number, period


class ClockMachine(RuleBasedStateMachine):
    """Timers that come, go and arm others, against a sorted list; time stands still while paused."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Device(name="dut")
        self.fired: list[tuple[int, int]] = []
        self.expected: list[tuple[int, int]] = []
        self.timers: dict[int, Timer] = {}
        self.oracle: dict[int, OracleTimer] = {}
        self.now = 0
        self.armed = 0
        self.pauses = 0

    def arm(self, number: int, delay: int, period: int) -> None:
        def call() -> None:
            self.fired.append((self.device.clock.now_ns(), number))
            if period:
                self.arm(number, period, period)

        self.timers[number] = self.device.clock.call_after(delay, call)

    @rule(delay=st.integers(-3, 100), period=st.sampled_from([0, 0, 7, 30]))
    def call_after(self, delay: int, period: int) -> None:
        number = self.armed
        self.armed += 1
        self.oracle[number] = OracleTimer(self.now + max(delay, 0), number, period)
        self.arm(number, delay, period)

    @precondition(lambda self: self.armed)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.armed - 1))
        self.timers[number].cancel()
        self.oracle.pop(number, None)

    @rule(ns=st.integers(0, 60))
    def advance(self, ns: int) -> None:
        self.device.clock.advance(ns)
        if self.pauses:
            return
        target = self.now + ns
        order: dict[int, int] = {number: number for number in self.oracle}  # arming again goes behind equals
        while due := [one for one in self.oracle.values() if one.deadline <= target]:
            one = min(due, key=lambda item: (item.deadline, order[item.number]))
            self.expected.append((max(one.deadline, self.now), one.number))
            self.now = max(self.now, one.deadline)
            if one.period:
                one.deadline += one.period
                order[one.number] = max(order.values()) + 1
            else:
                del self.oracle[one.number]
        self.now = target

    @rule()
    def pause(self) -> None:
        self.device.pause()
        if not self.pauses:  # what is due is made; what that arms stays
            for one in sorted(self.oracle.values(), key=lambda item: (item.deadline, item.number)):
                if one.deadline <= self.now:
                    self.expected.append((self.now, one.number))
                    one.deadline = self.now + one.period
                    if not one.period:
                        del self.oracle[one.number]
        self.pauses += 1

    @precondition(lambda self: self.pauses)
    @rule()
    def resume(self) -> None:
        self.device.resume()
        self.pauses -= 1

    @rule()
    def reset(self) -> None:
        if not self.pauses:
            self.pause()
            self.resume()
        self.device.reset()
        self.oracle.clear()

    @invariant()
    def agrees(self) -> None:
        assert sorted(self.fired) == sorted(self.expected)
        assert [when for when, _ in self.fired] == [when for when, _ in self.expected]
        assert self.device.clock.now_ns() == self.now
        assert self.device.paused is bool(self.pauses)
        assert self.device.clock.timers == len(self.oracle)
        for number, timer in self.timers.items():
            one = self.oracle.get(number)
            assert timer.active is (one is not None)
            assert timer.remaining_ns == (one.deadline - self.now if one else 0)
        assert self.device.error_count == 0


TestClockMachine = ClockMachine.TestCase


def test_same_deadline_keeps_the_order() -> None:
    device = Device()
    fired: list[int] = []
    for number in range(10):
        device.clock.call_after(5, partial(fired.append, number))
    device.clock.advance(5)
    assert fired == list(range(10))


def test_a_timer_that_pauses_stops_the_advance() -> None:
    device = Device()
    fired: list[str] = []

    def stop() -> None:
        device.pause()
        fired.append("stopped")

    device.clock.call_after(10, stop)
    device.clock.call_after(20, lambda: fired.append("late"))
    device.clock.advance(100)
    assert fired == ["stopped"]
    assert device.clock.now_ns() == 10
    device.resume()
    device.clock.advance(10)
    assert fired == ["stopped", "late"]


def test_an_exception_in_a_timer_is_reported() -> None:
    device = Device()
    seen: list[str] = []
    device.on_error.add(lambda error: seen.append(f"{error.where}: {error.error!r}"))
    device.clock.call_after(1, lambda: 1 / 0)
    device.clock.call_after(2, lambda: seen.append("next"))
    device.clock.advance(2)
    assert seen == ["a timer: ZeroDivisionError('division by zero')", "next"]
    assert device.error_count == 1


class TestAttached:
    def test_timers_fire_under_the_lock(self) -> None:
        device = Device()
        fired = threading.Event()
        owned: list[bool] = []

        def call() -> None:
            owned.append(device.lock._is_owned())  # type: ignore[attr-defined]
            fired.set()

        device.clock.call_after(5 * MS, call)
        with Workers(1) as workers:
            device.attach(workers)
            with pytest.raises(IolaneError):
                device.clock.advance(1)
            with pytest.raises(IolaneError, match="carrier already"):
                device.attach(workers)
            assert fired.wait(10)
            device.detach()
        assert owned == [True]
        assert device.clock.now_ns() >= 5 * MS

    def test_an_earlier_timer_is_not_late(self) -> None:
        device = Device()
        fired: list[str] = []
        both = threading.Event()
        with Workers(1) as workers:
            device.attach(workers)
            slow = device.clock.call_after(3600 * 1000 * MS, lambda: fired.append("slow"))
            device.clock.call_after(2 * MS, both.set)
            assert both.wait(10)
            assert slow.active
            slow.cancel()
            assert not slow.active
            device.close()
        assert fired == []

    def test_time_stands_still_while_paused_and_timers_keep_the_rest(self) -> None:
        device = Device()
        fired = threading.Event()
        with Workers(1) as workers:
            device.attach(workers)
            far = device.clock.call_after(100_000 * MS, lambda: None)
            device.pause()
            timer = device.clock.call_after(50 * MS, fired.set)  # paused already: it can't be late for that
            before, left = device.clock.now_ns(), far.remaining_ns
            assert not fired.wait(0.08)
            assert (device.clock.now_ns(), far.remaining_ns, timer.remaining_ns) == (before, left, 50 * MS)
            device.resume()
            assert fired.wait(10)
            assert device.clock.now_ns() >= timer.deadline_ns
            device.close()

    def test_a_timer_that_arms_itself_with_no_delay_lets_others_in(self) -> None:
        device = Device()
        count = 0
        with Workers(1) as workers:
            device.attach(workers)

            def again() -> None:
                nonlocal count
                count += 1
                device.clock.call_after(0, again)

            again()
            while count < 50:
                with device.changed:
                    device.changed.wait(0.01)
            device.close()
        assert device.clock.timers == 0

    def test_cancelled_is_cancelled(self) -> None:
        """Whoever holds the lock and cancels knows that the call will not come."""
        device = Device()
        with Workers(1) as workers:
            device.attach(workers)
            fired: list[int] = []
            for number in range(50):
                with device.lock:
                    timer = device.clock.call_after(0, partial(fired.append, number))
                    if timer.active:
                        timer.cancel()
                        assert number not in fired
            with device.lock:
                assert fired == []
            device.close()
