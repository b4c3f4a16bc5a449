"""Devices that do not move along leave together or not at all, and come back when the machine stays."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from iolane.errors import IolaneError
from iolane.operations.migration.moved_device import STATES_LIMIT, Departed, MovedDevices


@dataclass
class Recorded:
    name: str
    done: list[str] = field(default_factory=list)
    fails: str = ""
    state: bytes = b""

    def check(self) -> None:
        self._do("check")

    def before(self) -> Departed:
        self._do("before")
        return Departed(name=self.name, state=self.state)

    def rollback(self) -> None:
        self._do("rollback")

    def _do(self, what: str) -> None:
        self.done.append(f"{what} {self.name}")
        if what == self.fails:
            raise IolaneError(f"no {what} of {self.name}", remedy="try again")


def three(done: list[str], **fails: str) -> MovedDevices:
    return MovedDevices([Recorded(name, done, fails.get(name, "")) for name in ("a", "b", "c")])


def test_all_leave_in_order() -> None:
    done: list[str] = []
    devices = three(done)
    devices.check()
    assert [each.name for each in devices.before()] == devices.names == ["a", "b", "c"]
    assert done == [f"{what} {name}" for what in ("check", "before") for name in "abc"]


def test_one_that_can_not_leave_brings_the_others_back() -> None:
    done: list[str] = []
    with pytest.raises(IolaneError, match=r"^no before of c \(try again\)$"):
        three(done, c="before").before()
    assert done[3:] == ["rollback b", "rollback a"]


def test_one_that_does_not_come_back_keeps_no_other_from_it() -> None:
    done: list[str] = []
    devices = three(done, b="rollback")
    devices.before()
    [problem] = devices.rollback()
    assert str(problem) == "b did not come back: no rollback of b (try again)"
    assert done[3:] == ["rollback c", "rollback b", "rollback a"]
    assert devices.rollback() == [], "each is tried once"


def test_what_was_lost_on_the_way_is_said() -> None:
    devices = MovedDevices([Recorded("a", fails="rollback"), Recorded("b", fails="before")])
    with pytest.raises(IolaneError, match=r"^no before of b; and a did not come back: no rollback of a"):
        devices.before()


def test_an_interruption_brings_them_back_too() -> None:
    class Interrupted(Recorded):
        def before(self) -> Departed:
            raise KeyboardInterrupt

    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        MovedDevices([Recorded("a", done), Interrupted("b", done)]).before()
    assert done == ["before a", "rollback a"]


def test_states_that_are_too_long_for_the_link_stay() -> None:
    done: list[str] = []
    half = bytes(STATES_LIMIT // 2 + 1)
    with pytest.raises(IolaneError, match="more than 8 MiB"):
        MovedDevices([Recorded("a", done, state=half), Recorded("b", done, state=half)]).before()
    assert done[2:] == ["rollback b", "rollback a"]
