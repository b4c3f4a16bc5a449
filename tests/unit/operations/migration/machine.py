"""A machine whose devices come and go, for tests of what does not move along with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from iolane.devices.specification import parse
from iolane.engines.outcome import UnplugOutcome
from iolane.errors import IolaneError
from iolane.model.pci import PcieId

FUNCTION = PcieId(0, 5, 0, 0)


class Answer(NamedTuple):
    exit_code: int
    output: str


@dataclass
class FakeMachine:
    """Tells what was done with it, in order.

    Attributes:
        says: what the guest's agent prints; None: there is no agent.
        fails: acts that fail, each with its reason.
    """

    says: str | None = ""
    outcome: UnplugOutcome = UnplugOutcome.AGREED
    refused: str | None = None
    state: bytes = b"state"
    fails: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    brought: dict[str, bytes] = field(default_factory=dict)
    on_run: Callable[[str], None] = lambda command: None

    def run(self, command: str, *, timeout: float) -> Answer:
        if self.says is None:
            raise IolaneError("this machine has no guest agent")
        self.on_run(command)
        self._do("release" if " release\n" in command[:60] else "look")
        return Answer(0, self.says)

    def guest_address(self, identity: str) -> PcieId:
        return FUNCTION

    def why_not_unplug(self, identity: str) -> str | None:
        return self.refused

    def take_out(self, identity: str, timeout: float) -> UnplugOutcome:
        self._do(f"take out {identity}")
        return self.outcome

    def put_back(self, identity: str) -> None:
        self._do(f"put back {identity}")

    def saved(self, identity: str) -> bytes:
        self._do(f"save {identity}")
        return self.state

    def end(self, identity: str) -> None:
        self._do(f"end {identity}")

    def plug(self, text: str, port: str | None) -> None:
        specification = parse(text)
        self._do(f"plug {specification.id} at {port}")
        if specification.state is not None:
            self.brought[specification.id or ""] = Path(specification.state).read_bytes()

    def plug_passed(self, text: str, port: str | None) -> None:
        self._do(f"plug {text} at {port}")

    def _do(self, act: str) -> None:
        self.done.append(act)
        for failing, reason in self.fails.items():
            if act.startswith(failing):
                raise IolaneError(reason, remedy="wait")
