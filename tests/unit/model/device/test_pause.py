"""Tasks and pausing, inline and with threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iolane.errors import IolaneError
from iolane.model.device import Device
from iolane.model.reset import ResetKind
from iolane.model.workers import Workers


class Recorder(Device):
    """Notes what is called, and whether the lock was held."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, what: object) -> None:
        assert self.lock._is_owned()  # type: ignore[attr-defined]
        self.notes.append(str(what))
        self.changed.notify_all()

    def wait_for(self, *notes: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: all(note in self.notes for note in notes), 10), self.notes

    def on_pause(self) -> None:
        self.note("pause")

    def on_resume(self) -> None:
        self.note("resume")

    def on_reset(self, kind: ResetKind) -> None:
        self.note(f"reset {kind.name} {self.tasks.running}")

    def on_disconnect(self) -> None:
        self.note(f"disconnect {self.tasks.running}")


class TestInline:
    def test_runs_at_once(self) -> None:
        device = Recorder()
        device.tasks.run(lambda: 6 * 7, device.note, device.note)
        device.tasks.run(lambda: 1 // 0, device.note, lambda error: device.note(repr(error)))
        assert device.notes[0] == "42"
        assert "ZeroDivisionError" in device.notes[1]
        assert device.tasks.running == 0

    def test_a_chain_needs_no_stack(self) -> None:
        device = Device()
        left = 20_000

        def again(_: object) -> None:
            nonlocal left
            left -= 1
            if left:
                device.tasks.run(lambda: None, again, again)

        again(None)
        assert left == 0
        assert device.tasks.running == 0

    def test_pause_in_an_end_runs_the_tasks_behind_it(self) -> None:
        device = Recorder()

        def end(_: None) -> None:
            device.tasks.run(lambda: "second", device.note, device.note)
            device.pause()
            device.note(device.tasks.running)
            device.resume()

        device.tasks.run(lambda: None, end, device.note)
        assert device.notes == ["pause", "second", "1", "resume"]

    def test_pauses_in_ends_of_tasks_within_pauses(self) -> None:
        device = Recorder()

        def end(left: int) -> None:
            if left:
                device.tasks.run(lambda: left - 1, end, device.note)
            device.reset()

        device.tasks.run(lambda: 5, end, device.note)
        assert [note for note in device.notes if note.startswith("reset")] == [
            f"reset CONVENTIONAL {running}" for running in (6, 5, 4, 3, 2, 1)
        ]

    def test_an_exception_in_an_end_is_reported(self, caplog: pytest.LogCaptureFixture) -> None:
        device = Device(name="dut")
        for _ in range(5):
            device.tasks.run(lambda: 0, lambda value: 1 // value, lambda error: None)
        assert device.error_count == 5
        assert device.tasks.running == 0
        assert [record.message for record in caplog.records] == [
            f"dut: error {number}, in a task's end" for number in (1, 2, 4)
        ]


class TestThreads:
    def test_work_runs_unlocked_and_its_end_locked(self) -> None:
        device = Recorder()
        with Workers(2) as workers:
            device.attach(workers)

            def work() -> str:
                owned = device.lock._is_owned()  # type: ignore[attr-defined]
                return f"{threading.current_thread().name} {owned}"

            with device.lock:
                device.tasks.run(work, device.note, device.note)
                assert not [note for note in device.notes if "worker" in note]
            device.detach()
            assert next(note for note in device.notes if "worker" in note).endswith(" False")

    @pytest.mark.parametrize("depth", [0, 1, 4])
    def test_pause_returns_when_ends_have_run_even_with_the_lock_held(self, depth: int) -> None:
        device = Recorder()
        gate = threading.Event()
        with Workers(1) as workers, ThreadPoolExecutor(1) as pool:
            device.attach(workers)
            device.tasks.run(gate.wait, lambda _: device.note("done"), device.note)
            device.notes.clear()

            def pause() -> None:
                for _ in range(depth):
                    device.lock.acquire()
                device.pause()
                device.notes.append("paused")
                for _ in range(depth):
                    device.lock.release()

            result = pool.submit(pause)
            device.wait_for("pause")
            assert device.paused
            assert not result.done()
            gate.set()
            result.result(10)
            assert device.notes == ["pause", "done", "paused"]
            device.resume()
            device.close()

    def test_a_task_that_goes_on_with_another_is_waited_for_to_its_last(self) -> None:
        device = Recorder()
        gates = [threading.Event() for _ in range(3)]
        with Workers(1) as workers, ThreadPoolExecutor(1) as pool:
            device.attach(workers)

            def step(number: int) -> None:
                device.note(number)
                if number < 2:
                    device.tasks.run(gates[number + 1].wait, lambda _: step(number + 1), device.note)

            device.tasks.run(gates[0].wait, lambda _: step(0), device.note)
            result = pool.submit(device.pause)
            for number, gate in enumerate(gates):
                assert not result.done()
                gate.set()
                device.wait_for(str(number))
            result.result(10)
            device.resume()
            device.close()

    def test_resets_from_two_ends_at_once(self) -> None:
        """Each waits for the other's end, which waits for it: both count as ended."""
        device = Recorder()
        barrier = threading.Barrier(2)
        with Workers(2) as workers:
            device.attach(workers)
            for _ in range(2):
                device.tasks.run(lambda: barrier.wait(10), lambda _: device.reset(), device.note)
            device.pause()
            device.resume()
            resets = [note for note in device.notes if note.startswith("reset")]
            assert sorted(resets) == ["reset CONVENTIONAL 1", "reset CONVENTIONAL 2"]
            device.close()

    def test_unmap_in_a_pause_waits_for_pins(self) -> None:
        device = Recorder()
        gate = threading.Event()
        device.dma.map(0, 4096, buffer=bytearray(4096))
        with Workers(1) as workers, ThreadPoolExecutor(1) as pool:
            device.attach(workers)
            pinned = device.dma.pin([(0, 8)], write=True)

            def work() -> None:
                gate.wait()
                pinned.views[0][:] = b"finished"

            device.tasks.run(work, lambda _: pinned.release(), device.note)
            result = pool.submit(device.disconnect)
            device.wait_for("pause")
            gate.set()
            result.result(10)
            assert device.dma.maps == []
            assert device.notes[-2:] == ["disconnect 0", "resume"]
            device.close()

    def test_close_waits_and_is_done_once(self) -> None:
        device = Recorder()
        with Workers(1) as workers:
            device.attach(workers)
            gate = threading.Event()
            device.tasks.run(gate.wait, device.note, device.note)
            gate.set()
            device.close()
            device.close()
        assert "True" in device.notes
        assert device.notes.count("disconnect 0") == 1

    def test_a_task_of_closed_workers_is_refused_and_not_waited_for(self) -> None:
        device = Device()
        with Workers(1) as workers:
            device.attach(workers)
        with pytest.raises(IolaneError):
            device.tasks.run(lambda: None, print, print)
        device.pause()
        device.resume()


def test_pauses_nest_and_hooks_run_once() -> None:
    device = Recorder()
    with device.quiesced():
        device.reset(ResetKind.FLR)
        with device.quiesced():
            pass
        assert device.paused
    assert not device.paused
    assert device.notes == ["pause", "reset FLR 0", "resume"]
    with pytest.raises(IolaneError, match="not paused"):
        device.resume()


def test_a_hook_that_raises_is_reported_and_stops_nothing() -> None:
    class Broken(Device):
        def on_pause(self) -> None:
            raise ValueError("pause")

        on_resume = on_disconnect = on_pause

        def on_reset(self, kind: ResetKind) -> None:
            raise ValueError("reset")

    device = Broken()
    wheres: list[str] = []
    device.on_error.add(lambda error: wheres.append(error.where))
    device.reset()
    device.disconnect()
    assert not device.paused
    assert wheres == ["on_pause", "on_reset", "on_resume", "on_pause", "on_disconnect", "on_resume"]


class PauseMachine(RuleBasedStateMachine):
    """Tasks that end when told, pauses from other threads: they return exactly when no task is open."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Recorder()
        self.workers = Workers(8)
        self.pool = ThreadPoolExecutor(4)
        self.device.attach(self.workers)
        self.open: dict[int, threading.Event] = {}
        self.given = 0
        self.pausing: list[Future[None]] = []
        self.paused = 0

    def teardown(self) -> None:
        for gate in self.open.values():
            gate.set()
        for future in self.pausing:
            future.result(10)
        for _ in range(self.paused + len(self.pausing)):
            self.device.resume()
        self.device.close()
        self.pool.shutdown()
        self.workers.close()
        assert self.workers.exceptions == 0
        assert self.device.error_count == 0

    @precondition(lambda self: len(self.open) < 6)
    @rule(fails=st.booleans())
    def task(self, fails: bool) -> None:
        number, gate = self.given, threading.Event()
        self.given += 1
        self.open[number] = gate

        def work() -> str:
            gate.wait()
            if fails:
                raise OSError("planned")
            return "done"

        end: Callable[[object], None] = lambda result: self.device.note(f"{result} {number}")  # noqa: E731
        self.device.tasks.run(work, end, end)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        self.open.pop(number).set()
        with self.device.changed:
            assert self.device.changed.wait_for(
                lambda: any(note in self.device.notes for note in (f"done {number}", f"planned {number}")), 10
            )

    @precondition(lambda self: len(self.pausing) < 3)
    @rule(locked=st.booleans())
    def pause(self, locked: bool) -> None:
        started = threading.Event()

        def pause() -> None:
            if not locked:
                started.set()
                self.device.pause()
                return
            with self.device.lock, self.device.lock:
                started.set()
                self.device.pause()

        self.pausing.append(self.pool.submit(pause))
        assert started.wait(10)

    @precondition(lambda self: self.paused)
    @rule()
    def resume(self) -> None:
        self.paused -= 1
        self.device.resume()

    @invariant()
    def pauses_have_returned(self) -> None:
        if self.open:
            assert self.device.tasks.running >= len(self.open)
            return
        for future in self.pausing:
            future.result(10)
        self.paused += len(self.pausing)
        self.pausing.clear()
        assert self.device.paused is bool(self.paused)
        assert self.device.tasks.running == 0

    @invariant()
    def none_returned_early(self) -> None:
        if self.open and not self.paused:
            assert not any(future.done() for future in self.pausing)


PauseMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPauseMachine = PauseMachine.TestCase
