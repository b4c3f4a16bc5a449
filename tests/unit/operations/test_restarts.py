"""When something is started anew: soon, then less and less, and not for ever."""

from __future__ import annotations

from iolane.operations.restarts import RestartPolicy, Restarts

POLICY = RestartPolicy(first=1, factor=2, longest=5, most=4, within=100)


def test_it_waits_longer_each_time_and_ends() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.next(now) for now in (0, 1, 2, 3, 4, 5)] == [1, 2, 4, 5, None, None]
    assert restarts.count == 4


def test_what_lies_long_back_is_forgotten() -> None:
    restarts = Restarts(POLICY)
    for hour in range(10):
        assert restarts.next(hour * 3600) == 1
    assert restarts.next(9 * 3600 + 99) == 2
    assert restarts.next(9 * 3600 + 100) == 2, "the one a hundred seconds back no longer counts"


def test_the_usual_policy_gives_up_within_its_window() -> None:
    restarts, now, waited = Restarts(RestartPolicy()), 0.0, 0
    while (delay := restarts.next(now)) is not None:
        now += delay
        waited += 1
    assert waited == 8
    assert now < RestartPolicy().within
