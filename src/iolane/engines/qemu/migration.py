"""A guest moves from one running machine to another on this host (QEMU's docs/devel/migration).

The other is started with `incoming=True` and the same hardware. Devices carried by vhost-user come along when
both sides' servers reach the same back end: QEMU hands over rings and their indexes, the guest's memory holds
the rest, and the servers mark in a log what they write there meanwhile.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import msgspec

from iolane.engines.qemu.qmp import Qmp, QmpError
from iolane.errors import IolaneError

ENDED = ("completed", "failed", "cancelled")


class Migration(msgspec.Struct, frozen=True):
    """How it went."""

    seconds: float
    downtime: float
    """Seconds in which the guest stood still, as QEMU counts them."""
    transferred: int
    """Bytes of memory that went over, repetitions included."""
    passes: int
    """How often memory was gone through: more than one where the guest or a device wrote to it meanwhile."""


def migrate(source: Qmp, destination: Qmp, timeout: float) -> Migration:
    """Return when the guest runs at the destination and has ended at the source.

    Raises:
        IolaneError: it went wrong or was not done in time; the guest goes on at the source.
    """
    started = time.monotonic()
    for qmp in (source, destination):
        qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    with tempfile.TemporaryDirectory(prefix="iolane-migration-") as folder:
        uri = f"unix:{Path(folder) / 'state'}"
        arrived, left = destination.mark(), source.mark()
        destination.execute("migrate-incoming", uri=uri)
        source.execute("migrate", uri=uri)
        try:
            _wait(source, left, timeout, "leave")
            _wait(destination, arrived, timeout, "arrive")
        except IolaneError:
            _give_up(source)
            raise
    figures = source.execute("query-migrate")
    memory = figures.get("ram", {})
    return Migration(
        seconds=time.monotonic() - started,
        downtime=figures.get("downtime", 0) / 1000,
        transferred=memory.get("transferred", 0),
        passes=memory.get("dirty-sync-count", 0),
    )


def _wait(qmp: Qmp, mark: int, timeout: float, what: str) -> None:
    event = qmp.wait_event(
        {"MIGRATION"}, mark, timeout, lambda event: event.get("data", {}).get("status") in ENDED
    )
    if event is None:
        raise IolaneError(
            f"the guest did not {what} within {timeout:g} s",
            remedy="it goes on at the source; give it more time, or less to do",
        )
    if event["data"]["status"] != "completed":
        figures = qmp.execute("query-migrate")
        raise IolaneError(f"the guest did not {what}: {figures.get('error-desc') or event['data']['status']}")


def _give_up(source: Qmp) -> None:
    try:
        source.execute("migrate_cancel")
    except QmpError:
        return
