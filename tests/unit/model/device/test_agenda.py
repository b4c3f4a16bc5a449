"""The heap of calls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iolane.model.agenda import Agenda, Entry


def nothing() -> None: ...


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(0, 50)),
            st.tuples(st.just("cancel"), st.integers(0, 50)),
            st.tuples(st.just("pop"), st.integers(0, 60)),
            st.tuples(st.just("pop before"), st.integers(0, 60)),
        ),
        max_size=200,
    )
)
def test_against_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    agenda = Agenda()
    made: list[Entry] = []
    live: list[Entry] = []
    for what, number in steps:
        if what == "push":
            made.append(agenda.push(number, nothing))
            live.append(made[-1])
        elif what == "cancel" and made:
            agenda.cancel(made[number % len(made)])
            live = [entry for entry in live if entry is not made[number % len(made)]]
        elif what.startswith("pop"):
            before = len(made) // 2 if what == "pop before" else None
            due = [
                entry
                for entry in live
                if entry.deadline_ns <= number and (before is None or entry.number < before)
            ]
            wanted = min(due, default=None)
            found = agenda.pop_due(number, before)
            assert found is wanted
            if found is not None:
                found.call = None
                live.remove(found)
        assert len(agenda) == len(live)
        assert agenda.next_deadline() == min((entry.deadline_ns for entry in live), default=None)


def test_arming_and_cancelling_for_ever_costs_no_memory() -> None:
    agenda = Agenda()
    kept = [agenda.push(1 << 40, nothing) for _ in range(10)]
    for number in range(10_000):
        agenda.cancel(agenda.push((1 << 40) - number, nothing))
    assert len(agenda) == 10
    assert len(agenda._heap) < 200
    agenda.clear()
    assert all(entry.call is None for entry in kept)
    assert agenda.next_deadline() is None
