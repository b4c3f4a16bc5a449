"""A machine that moves is left alone by everybody but whoever moves it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from iolane.carriers.control import MachineState
from iolane.errors import IolaneError
from iolane.operations.machine import Machine

WHAT: list[Callable[[Machine], object]] = [
    Machine.pause,
    Machine.resume,
    Machine.reset,
    lambda machine: machine.plug("rng"),
    lambda machine: machine.plug_passed("01:00.0"),
    lambda machine: machine.unplug("rng"),
    lambda machine: machine.run("true"),
    lambda machine: machine.check("true"),
    lambda machine: machine.push("/x", b""),
    lambda machine: machine.pull("/x"),
]


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def tried(machine: Machine, what: Callable[[Machine], object]) -> str:
    """How it is refused: the machine has not been started, so something always is."""
    with pytest.raises(IolaneError) as caught:
        what(machine)
    return caught.value.message


@pytest.mark.parametrize("what", WHAT)
def test_others_are_refused(what: Callable[[Machine], object]) -> None:
    machine = Machine()
    in_thread(lambda: machine.hold("it is migrating", MachineState.MIGRATING))
    assert machine.state is MachineState.MIGRATING
    assert "is left alone: it is migrating" in tried(machine, what)
    machine.let_go()
    assert "is left alone" not in tried(machine, what)


def test_whoever_holds_it_may() -> None:
    machine = Machine()
    machine.hold("it is migrating", MachineState.MIGRATING)
    assert "is left alone" not in tried(machine, Machine.resume)


def test_a_thread_that_has_ended_is_nobody_else() -> None:
    """The system gives the numbers of ended threads to new ones."""
    machine = Machine()
    numbers = set[int]()

    def hold() -> None:
        machine.hold("it is in doubt", MachineState.IN_DOUBT)
        numbers.add(threading.get_ident())

    def resume() -> None:
        assert "is left alone: it is in doubt" in tried(machine, Machine.resume)
        numbers.add(threading.get_ident())

    in_thread(hold)
    for _ in range(50):
        in_thread(resume)
    assert len(numbers) < 51, "none was given again: this tests nothing"
