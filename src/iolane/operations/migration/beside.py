"""At the destination: what left a machine before it moved is put in again, now that it runs here."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from iolane.errors import IolaneError
from iolane.operations.migration import failover, replug
from iolane.operations.migration.failover import GivenFunctions
from iolane.operations.migration.machine_in_move import MachineInMove
from iolane.operations.migration.moved_device import Departed
from iolane.operations.migration.offer import LaterDevice
from iolane.operations.migration.preflight import Welcome, later_device

_log = logging.getLogger("iolane.migration")


def bring(
    machine: MachineInMove, departed: Sequence[Departed], later: Sequence[LaterDevice], welcome: Welcome
) -> list[str]:
    """Put in what came; one that fails keeps no other from it. Returned is what went wrong.

    Args:
        machine: runs here.
        departed: what the source tells of devices that left. Which devices those are, and what makes them,
            is not its word here but that of the offer, which the preflight has checked.
        later: of the offer.
        welcome: what the operator says.
    """
    expected = {device.id: device for device in later}
    problems = []
    for device in departed:
        try:
            if device.name not in expected:
                raise IolaneError("it was not offered")
            _bring(machine, device, expected.pop(device.name), welcome)
        except IolaneError as error:
            problems.append(f"{device.name} was not plugged in here: {error}")
    problems += [f"{name} did not come along" for name in expected]
    for problem in problems:
        _log.error("%s", problem)
    return problems


def _bring(machine: MachineInMove, device: Departed, offered: LaterDevice, welcome: Welcome) -> None:
    if offered.text is None:
        failover.come_back(machine, device, GivenFunctions(welcome.functions))
    else:
        replug.come_back(machine, later_device(offered, welcome).whole_text(), device)
