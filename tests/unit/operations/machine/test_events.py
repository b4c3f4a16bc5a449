"""Events of a machine: everybody gets all from then on, queues are bounded, the end is the end."""

from __future__ import annotations

import threading

from iolane.carriers.control import EventKind, MachineEvent
from iolane.operations.machine.events import KEPT, REMEMBERED, EventQueue, MachineEvents


def test_everybody_gets_what_happens_from_then_on() -> None:
    events = MachineEvents()
    first = EventQueue(events)
    events.tell(EventKind.PLUGGED, device="a")
    second = EventQueue(events)
    events.tell(EventKind.UNPLUGGED, "later", device="a")
    events.tell(EventKind.ENDED)
    assert [event.kind for event in first] == [EventKind.PLUGGED, EventKind.UNPLUGGED, EventKind.ENDED]
    assert next((event.kind, event.text, event.device) for event in second) == ("unplugged", "later", "a")


def test_behind_the_end_there_is_nothing_until_it_starts_again() -> None:
    events = MachineEvents()
    events.tell(EventKind.ENDED)
    events.tell(EventKind.ENDED)
    assert len(events.latest) == 1
    assert list(EventQueue(events)) == []
    events.begin()
    with EventQueue(events) as queue:
        events.tell(EventKind.STARTED)
        event = queue.get(1)
        assert event is not None
        assert event.kind is EventKind.STARTED
        assert queue.get(0.01) is None


def test_a_slow_reader_loses_the_oldest_and_is_told_how_many() -> None:
    events = MachineEvents()
    with EventQueue(events) as queue:
        for number in range(KEPT + 5):
            events.tell(EventKind.RESET, str(number))
        first, second = queue.get(1), queue.get(1)
        assert first is not None
        assert second is not None
        assert (first.text, first.lost) == ("5", 5)
        assert (second.text, second.lost) == ("6", 0)
    assert len(events.latest) == REMEMBERED


def test_closing_wakes_who_waits_and_forgets_them() -> None:
    events = MachineEvents()
    queue = EventQueue(events)
    got: list[MachineEvent | None] = []
    waiter = threading.Thread(target=lambda: got.append(queue.get()))
    waiter.start()
    queue.close()
    waiter.join(10)
    assert got == [None]
    events.tell(EventKind.PAUSED)
    assert queue.get(0) is None
