"""Signals are held back in the main thread alone: there they are raised."""

from __future__ import annotations

import threading

import pytest

from iolane.operations.interruption import Interruption


class Stop(Exception):
    pass


def test_it_waits_for_what_must_not_be_torn() -> None:
    interruption = Interruption()
    done = []

    def work() -> None:
        with interruption.held():
            with interruption.held():
                interruption.arrive(Stop())
                done.append("inner")
            done.append("outer")

    with pytest.raises(Stop):
        work()
    assert done == ["inner", "outer"]


def test_another_thread_holds_nothing_back_and_gets_nothing() -> None:
    interruption = Interruption()
    inside, leave = threading.Event(), threading.Event()
    got: list[BaseException] = []

    def work() -> None:
        try:
            with interruption.held():
                inside.set()
                leave.wait(10)
        except BaseException as error:
            got.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    with pytest.raises(Stop):
        interruption.arrive(Stop())
    leave.set()
    thread.join()
    assert got == []
