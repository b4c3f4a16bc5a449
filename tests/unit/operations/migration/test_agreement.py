"""Two sides agree on which of them runs the machine, whatever is lost, cut, late or dead.

The world around them is a model: a link with messages under way, which can be cut with any number of them
lost; an engine at each side, which fails or not when it likes; a resolve over a new link.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iolane.operations.migration import destination, source
from iolane.operations.migration.destination import DestinationAgreement, DestinationPhase
from iolane.operations.migration.messages import (
    Abort,
    Accepted,
    Arrived,
    Ask,
    Commit,
    Moving,
    NotRunning,
    Prepare,
    Ready,
    Refused,
    Running,
)
from iolane.operations.migration.offer import Finding
from iolane.operations.migration.source import RUNS_HERE, SourceAgreement, SourcePhase

ID = "0" * 32


@dataclass
class Link:
    """One connection: messages under way to each side, and who has noticed that it is cut."""

    to_destination: deque[Any] = field(default_factory=deque)
    to_source: deque[Any] = field(default_factory=deque)
    cut: bool = False
    source_noticed: bool = False
    destination_noticed: bool = False


class TwoSides(RuleBasedStateMachine):
    """Each step is one thing that happens to one side."""

    def __init__(self) -> None:
        super().__init__()
        self.source = SourceAgreement(ID)
        self.destination: DestinationAgreement | None = None
        self.links = [Link()]
        self.source_alive = self.destination_alive = True
        self.source_runs, self.destination_runs = True, False
        self.transfer = "none"
        """none, active, all sent (the guest stands still), complete, failed."""
        self.trouble = 0
        self.deciding = False
        """The destination's engine is about to let the guest go."""

    # -- what the sides do ----------------------------------------------------------------------------------

    @property
    def link(self) -> Link:
        return self.links[-1]

    def at_source(self, steps: Any) -> None:
        for step in steps:
            match step:
                case source.Act.TRANSFER:
                    self.transfer = "active"
                case source.Act.STOP_TRANSFER:
                    if self.transfer in ("active", "all sent"):
                        self.transfer = "failed"
                case source.Act.GO_ON:
                    self.source_runs = True
                case source.Act.END:
                    self.source_runs = self.source_alive = False
                case message if not self.link.cut:
                    self.link.to_destination.append(message)

    def at_destination(self, steps: Any, link: Link | None = None) -> None:
        for step in steps:
            match step:
                case destination.Act.RUN:
                    self.deciding = True
                case destination.Act.DESTROY:
                    assert not self.destination_runs, "what runs is never destroyed"
                case message if not (link or self.link).cut:
                    (link or self.link).to_source.append(message)

    # -- what happens ---------------------------------------------------------------------------------------

    @initialize(steps=st.integers(0, 14), trouble=st.integers(1, 3))
    def hello(self, steps: int, trouble: int) -> None:
        """It begins anywhere on the way; then only so many things go wrong, or little would ever go right."""
        self.trouble = trouble
        self.link.to_source.append(Accepted())
        for _ in range(steps):
            self.it_goes_on()

    @rule()
    def it_goes_on(self) -> None:
        """What happens next where nothing goes wrong."""
        if self.deciding and self.destination_alive:
            self.destination_lets_go(True)
        elif self.destination_alive and any(link.to_destination for link in self.links):
            self.deliver(next(link for link in self.links if link.to_destination))
        elif self.source_alive and self.link.to_source:
            self.source_hears()
        elif self.source_alive and self.transfer == "active":
            self.source_has_sent_all()
        elif self.transfer == "all sent" and self.destination_is(DestinationPhase.RECEIVING):
            self.destination_has_all()
        elif self.source_alive and self.transfer == "all sent":
            self.transfer_completes()

    def destination_is(self, phase: DestinationPhase) -> bool:
        return self.destination_alive and self.destination is not None and self.destination.phase is phase

    def deliver(self, link: Link) -> None:
        message = link.to_destination.popleft()
        if isinstance(message, Prepare):
            self.destination = DestinationAgreement(ID)
            self.at_destination([Ready(ID)], link)
        elif self.destination is not None:
            self.at_destination(self.destination.hear(message), link)

    def goes_wrong(self) -> bool:
        """Whether one more thing may."""
        self.trouble -= 1
        return self.trouble >= 0

    @precondition(lambda self: self.destination_alive and any(link.to_destination for link in self.links))
    @rule(data=st.data())
    def destination_hears(self, data: st.DataObject) -> None:
        self.deliver(data.draw(st.sampled_from([link for link in self.links if link.to_destination])))

    @precondition(lambda self: self.source_alive and self.link.to_source)
    @rule()
    def source_hears(self) -> None:
        self.at_source(self.source.hear(self.link.to_source.popleft()))

    @precondition(lambda self: not self.link.cut)
    @rule(kept=st.integers(0, 3), kept_back=st.integers(0, 3))
    def the_link_is_cut(self, kept: int, kept_back: int) -> None:
        """What was under way may still arrive, or not."""
        if not self.goes_wrong():
            return
        link = self.link
        link.cut = True
        link.to_destination = deque(list(link.to_destination)[:kept])
        link.to_source = deque(list(link.to_source)[:kept_back])

    @precondition(lambda self: self.source_alive and not self.link.source_noticed)
    @rule()
    def source_loses_the_link(self) -> None:
        """It is cut and nothing is left of it, or the source lost its patience and cuts it."""
        link = self.link
        if (link.cut and not link.to_source) or (not link.cut and self.goes_wrong()):
            link.source_noticed = link.cut = True
            link.to_source.clear()
            self.at_source(self.source.link_lost("cut"))

    @precondition(lambda self: self.destination_alive and self.link.cut and not self.link.to_destination)
    @rule()
    def destination_loses_the_link(self) -> None:
        if self.destination is not None and not self.link.destination_noticed:
            self.link.destination_noticed = True
            self.at_destination(self.destination.link_lost("cut"))

    @precondition(lambda self: self.source_alive and self.source.phase is SourcePhase.IN_DOUBT)
    @rule()
    def source_asks_again(self) -> None:
        if self.link.source_noticed and self.destination_alive:
            self.links.append(Link())
            self.at_source(self.source.link_again())

    @precondition(lambda self: self.source_alive)
    @rule()
    def somebody_cancels(self) -> None:
        if self.goes_wrong():
            self.at_source(self.source.cancel("not now"))

    @precondition(lambda self: self.source_alive and self.transfer == "active")
    @rule()
    def source_has_sent_all(self) -> None:
        self.transfer, self.source_runs = "all sent", False

    @precondition(lambda self: self.source_alive and self.transfer == "all sent")
    @rule()
    def transfer_completes(self) -> None:
        self.transfer = "complete"
        self.at_source(self.source.transfer_ended(complete=True))

    @precondition(lambda self: self.source_alive and self.transfer in ("active", "all sent"))
    @rule()
    def transfer_fails(self) -> None:
        """Also at the very end, when the other side may have all of it: the guest goes on by itself."""
        if not self.goes_wrong():
            return
        self.transfer, self.source_runs = "failed", True
        self.at_source(self.source.transfer_ended(complete=False, reason="no stream"))

    @precondition(lambda self: self.destination_alive and self.transfer in ("all sent", "complete"))
    @rule()
    def destination_has_all(self) -> None:
        if self.destination is not None:
            self.at_destination(self.destination.arrived())

    @precondition(lambda self: self.destination_alive and not self.deciding)
    @rule()
    def destination_engine_fails(self) -> None:
        if self.destination is not None and self.goes_wrong():
            self.at_destination(self.destination.failed("no memory"))

    @precondition(lambda self: self.deciding and self.destination_alive)
    @rule(runs=st.booleans())
    def destination_lets_go(self, runs: bool) -> None:
        assert self.destination is not None
        self.deciding = False
        if runs or not self.goes_wrong():
            self.destination_runs = True
            self.at_destination(self.destination.ran())
        else:
            self.at_destination(self.destination.could_not_run("the image is in use"))

    @precondition(lambda self: self.source_alive and self.destination_alive)
    @rule()
    def source_dies(self) -> None:
        if self.goes_wrong():
            self.source_alive = self.source_runs = False
            self.link.cut = True

    @precondition(lambda self: self.source_alive and self.destination_alive)
    @rule()
    def destination_dies(self) -> None:
        if self.goes_wrong():
            self.destination_alive = self.destination_runs = self.deciding = False
            self.link.cut = True

    # -- what holds -----------------------------------------------------------------------------------------

    @invariant()
    def never_two(self) -> None:
        assert not (self.source_runs and self.destination_runs)

    @invariant()
    def the_source_stands_still_from_commit_on(self) -> None:
        if self.source.phase not in RUNS_HERE:
            assert not self.source_runs

    @invariant()
    def whoever_ends_has_seen_the_other_run(self) -> None:
        if self.source.phase is SourcePhase.MOVED:
            assert self.destination is not None
            assert self.destination.phase is DestinationPhase.RUNNING
            assert self.destination_runs or not self.destination_alive

    @invariant()
    def in_doubt_both_stand_still_or_the_destination_was_told_to_run(self) -> None:
        if self.source.phase is SourcePhase.IN_DOUBT and self.destination_runs and self.destination:
            assert self.destination.phase is DestinationPhase.RUNNING

    @invariant()
    def the_machine_is_not_thrown_away_twice(self) -> None:
        if self.destination is not None and self.destination.phase is DestinationPhase.GONE:
            assert self.source.phase is not SourcePhase.MOVED

    def teardown(self) -> None:
        """A good link, patience and a resolve: exactly one side runs, if none has died."""
        self.trouble = 100
        if not (self.source_alive or self.source.phase is SourcePhase.MOVED) or not self.destination_alive:
            return
        for _ in range(100):
            if self.deciding:
                self.destination_lets_go(True)
            while any(link.to_destination for link in self.links):
                link = next(link for link in self.links if link.to_destination)
                self.deliver(link)
            if self.source_alive and self.link.to_source:
                self.source_hears()
            elif self.transfer == "active":
                self.source_has_sent_all()
                self.destination_has_all()
                self.transfer_completes()
            elif self.transfer == "all sent":
                self.destination_has_all()
                self.transfer_completes()
            elif self.source.over and not self.deciding:
                break
            elif self.link.cut or self.source.phase is SourcePhase.IN_DOUBT:
                self.source_loses_the_link()
                if self.source.phase is SourcePhase.IN_DOUBT:
                    self.links.append(Link())
                    self.at_source(self.source.link_again())
            elif self.source.phase is SourcePhase.MOVING:  # the destination has said nothing
                self.destination_has_all()
                if not self.link.to_source:
                    self.the_link_is_cut(9, 9)
            self.never_two()
        assert self.source_runs != self.destination_runs, (self.source.phase, self.destination)


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(
    max_examples=500, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def moving() -> SourceAgreement:
    agreement = SourceAgreement(ID)
    agreement.hear(Accepted())
    agreement.hear(Ready(ID))
    return agreement


def test_the_steps_of_a_move() -> None:
    here = SourceAgreement(ID)
    there = DestinationAgreement(ID)
    assert here.hear(Accepted()) == [Prepare()]
    assert here.hear(Ready("1" * 32)) == [source.Act.TRANSFER]
    assert here.token == "1" * 32
    assert there.arrived() == [Arrived()]
    assert here.hear(Arrived()) == []
    assert here.transfer_ended(complete=True) == [Commit()]
    assert there.hear(Commit()) == [destination.Act.RUN]
    assert there.ran() == [Running()]
    assert here.hear(Running()) == [source.Act.END]
    assert (here.phase, there.phase) == (SourcePhase.MOVED, DestinationPhase.RUNNING)


def test_a_dry_run_only_asks() -> None:
    agreement = SourceAgreement(ID, dry_run=True)
    steps = agreement.hear(Accepted())
    assert [step for step in steps if isinstance(step, source.Act)] == [source.Act.GO_ON]
    assert agreement.phase is SourcePhase.KEPT


def test_every_reason_of_a_refusal_is_kept() -> None:
    agreement = SourceAgreement(ID)
    agreement.hear(Refused([Finding("no image a"), Finding("no kernel", "--kernel FILE")]))
    assert agreement.reason == "no image a; no kernel (--kernel FILE)"


@pytest.mark.parametrize("message", [Running(), Ready(ID), Accepted()])
def test_what_is_said_out_of_turn_before_commit_keeps_the_machine(message: Any) -> None:
    agreement = moving()
    steps = agreement.hear(message)
    assert steps[:2] == [source.Act.STOP_TRANSFER, source.Act.GO_ON]
    assert agreement.phase is SourcePhase.KEPT


@pytest.mark.parametrize("message", [Ready(ID), Accepted(), Refused([Finding("x")])])
def test_what_is_said_out_of_turn_after_commit_changes_nothing(message: Any) -> None:
    agreement = moving()
    agreement.hear(Arrived())
    agreement.transfer_ended(complete=True)
    assert agreement.hear(message) == []
    assert agreement.phase is SourcePhase.COMMITTING


def test_it_cannot_be_cancelled_once_commit_is_said() -> None:
    agreement = moving()
    agreement.hear(Arrived())
    agreement.transfer_ended(complete=True)
    assert agreement.decided
    assert agreement.cancel("not now") == []


def test_before_all_of_it_is_there_a_commit_destroys_it() -> None:
    agreement = DestinationAgreement(ID)
    assert agreement.hear(Commit())[0] is destination.Act.DESTROY


def test_in_doubt_it_waits_to_be_asked() -> None:
    agreement = DestinationAgreement(ID)
    agreement.arrived()
    assert agreement.link_lost("cut") == []
    assert (agreement.phase, agreement.in_doubt) == (DestinationPhase.ARRIVED, True)
    assert agreement.hear(Ask(ID)) == [Arrived()]
    assert not agreement.in_doubt


def test_what_is_gone_says_so_for_ever() -> None:
    agreement = DestinationAgreement(ID)
    agreement.failed("no memory")
    for question in (Ask(ID), Commit()):
        assert agreement.hear(question) == [NotRunning("no memory")]
    assert agreement.hear(Moving(0, 0, 0)) == []
    assert agreement.hear(Abort("x")) == []


def test_the_operator_decides_for_a_side_that_is_known_to_have_ended() -> None:
    here, there = moving(), DestinationAgreement(ID)
    here.hear(Arrived())
    here.transfer_ended(complete=True)
    here.link_lost("cut")
    assert here.destination_ended()[0] is source.Act.GO_ON
    there.arrived()
    there.link_lost("cut")
    assert there.source_ended() == [destination.Act.RUN]
