"""Whether the guest uses a disk that is to be unplugged: its agent finds out, by a shell script."""

from __future__ import annotations

import shlex
from importlib.resources import files
from typing import NamedTuple, Protocol

from iolane.errors import IolaneError
from iolane.model.pci import PcieId

SCRIPT = "disk_use.sh"
TIMEOUT_S = 60.0
USERS_NAMED = 5


class Answer(Protocol):
    """What came of a command in the guest."""

    @property
    def exit_code(self) -> int: ...
    @property
    def output(self) -> str: ...


class Guest(Protocol):
    """Where commands can be run: an agent is there."""

    def run(self, command: str, *, timeout: float) -> Answer: ...


class DiskUse(NamedTuple):
    """The disks of one PCI function in the guest."""

    disks: tuple[str, ...]
    """As the guest calls them, partitions too."""
    users: tuple[str, ...]
    """Who uses them, each in a few words: `nvme0n1p1 mounted on /srv`."""
    released: tuple[str, ...] = ()
    """Maps of multipath that gave up a path for this."""


def command(function: PcieId, *, release: bool) -> str:
    """The line for the guest's shell. `function` is where the guest finds it."""
    script = files(__package__).joinpath(SCRIPT).read_text()
    return f"set -- {function} {'release' if release else 'look'}\n{script}"


def parse(output: str) -> DiskUse:
    """What the script printed. Raises IolaneError where that is something else: nothing is known then."""
    found: dict[str, list[str]] = {"disk": [], "used": [], "released": []}
    for line in output.splitlines():
        kind, _, rest = line.partition(" ")
        if kind not in found or not rest:
            raise IolaneError(
                f"the guest does not say whether the disk is in use: {shlex.quote(line[:80])}",
                remedy="unplug it by hand",
            )
        found[kind].append(rest)
    return DiskUse(*(tuple(found[kind]) for kind in ("disk", "used", "released")))


def look(guest: Guest, function: PcieId, *, release: bool = False) -> DiskUse:
    """Ask the guest. With `release`, multipath gives up paths that it can do without.

    Raises:
        IolaneError: the guest gave no answer that could be understood.
    """
    answer = guest.run(command(function, release=release), timeout=TIMEOUT_S)
    if answer.exit_code:
        raise IolaneError(
            f"the guest does not say whether the disk is in use: exit code {answer.exit_code}",
            remedy="unplug it by hand",
        )
    return parse(answer.output)


def refuse_in_use(name: str, use: DiskUse) -> None:
    """Raise IolaneError when somebody in the guest uses a disk of device `name`."""
    if use.users:
        more = len(use.users) - USERS_NAMED
        users = ", ".join(use.users[:USERS_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise IolaneError(
            f"unplugging {name} is refused: the guest uses it: {users}",
            remedy="unmount, swapoff or close it in the guest, or let multipath have another path",
        )
