"""Whether a served device is well: asked from inside by the watchdog, from another process by scripts."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from iolane.carriers.control import ControlClient, DeviceReport, ServerReport, is_served, remove_stale
from iolane.errors import IolaneError
from iolane.operations.serving import Served


class Verdict(StrEnum):
    """What came out."""

    WELL = "well"
    ILL = "ill"
    """It is there and does not serve as it should."""
    ABSENT = "absent"
    """Nobody serves it."""


class DeviceHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The answer for one device."""

    verdict: Verdict
    asked: str
    """What was asked for: a name, PROCESS/NAME or a socket."""
    reason: str = ""
    name: str | None = None
    socket: str | None = None
    pid: int | None = None
    connected: bool = False
    """A client is there."""


def problem_of(served: Sequence[Served], patience: float) -> str | None:
    """What keeps this process from serving; a device whose lock is not to be had hangs in its own code.

    Args:
        patience: seconds for all the devices.
    """
    for each in served:
        if not each.server.running:
            return f"{each.name}: its server has ended"
        if not each.device.lock.acquire(timeout=patience / len(served)):
            return f"{each.name} hangs: its code has not returned for {patience / len(served):g} s"
        each.device.lock.release()
    return None


def health_of(asked: str, *, patience: float = 5.0) -> DeviceHealth:
    """The health of the device of that name, PROCESS/NAME, or at that socket.

    Args:
        patience: seconds that each serving process has for its answer.
    """
    mute: list[str] = []
    found: list[tuple[ServerReport, DeviceReport]] = []
    for path in remove_stale():
        try:
            with ControlClient(path) as client:
                server = client.report(patience)
        except IolaneError as error:
            if is_served(path):
                mute.append(f"process {path.name.partition('-')[0]} does not answer: {error.message}")
            continue
        found += [(server, device) for device in server.devices if _is_meant(asked, server, device)]
    if len(found) > 1:
        choices = ", ".join(f"{server.pid}/{device.name}" for server, device in found)
        raise IolaneError(f"several processes serve a device '{asked}'", remedy=f"say which: {choices}")
    if not found:
        return _unseen(asked, mute)
    [(server, device)] = found
    reason = "" if device.running else device.problem or "its server has ended"
    return DeviceHealth(
        verdict=Verdict.ILL if reason else Verdict.WELL,
        asked=asked,
        reason=reason,
        name=device.name,
        socket=device.endpoint,
        pid=server.pid,
        connected=device.connected,
    )


def _is_meant(asked: str, server: ServerReport, device: DeviceReport) -> bool:
    if asked in (device.name, f"{server.pid}/{device.name}"):
        return True
    return _is_path(asked) and Path(asked).absolute() == Path(device.endpoint).absolute()


def _unseen(asked: str, mute: list[str]) -> DeviceHealth:
    """No process that answers has it."""
    if _is_path(asked) and is_served(Path(asked)):
        reason = "; ".join(mute) or "somebody listens there who has no control socket of this user"
        return DeviceHealth(verdict=Verdict.ILL, asked=asked, socket=asked, reason=reason)
    if mute:
        return DeviceHealth(verdict=Verdict.ILL, asked=asked, reason="; ".join(mute))
    return DeviceHealth(verdict=Verdict.ABSENT, asked=asked, reason="nobody serves it")


def _is_path(asked: str) -> bool:
    return asked.startswith((".", "/")) or asked.endswith(".sock")
