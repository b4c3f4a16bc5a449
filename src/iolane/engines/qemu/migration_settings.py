"""How a guest is to move: QEMU's migration capabilities and parameters (its qapi/migration.json)."""

from __future__ import annotations

from dataclasses import dataclass

from iolane.engines.qemu.credentials import TlsCredentials
from iolane.engines.qemu.qmp import Qmp
from iolane.errors import IolaneError

DOWNTIME = 0.3
"""Seconds: QEMU's own default."""
LONGEST_DOWNTIME = 2000.0
"""QEMU's MAX_MIGRATE_DOWNTIME_SECONDS."""


@dataclass(frozen=True)
class MigrationSettings:
    """What both sides of a move are told."""

    downtime: float = DOWNTIME
    """Seconds that the guest may stand still at the end. Memory is sent again and again until what has
    changed meanwhile can be sent in this time."""
    bandwidth: int = 0
    """Bytes a second at most; 0: as many as go."""
    slow_down: bool = True
    """Have the guest's processors wait more and more, where it changes memory faster than it can be sent."""
    credentials: TlsCredentials | None = None
    """QEMU encrypts its stream, and each side proves who it is."""
    host: str = ""
    """The destination's name, which its certificate must have; the destination itself is not told."""

    def __post_init__(self) -> None:
        if not 0.001 <= self.downtime <= LONGEST_DOWNTIME:
            raise IolaneError(
                f"a downtime of {self.downtime * 1000:g} ms", remedy="from 1 ms to 2000 s, by default 300 ms"
            )
        if self.bandwidth < 0:
            raise IolaneError(f"a bandwidth of {self.bandwidth} bytes a second")

    def apply(self, qmp: Qmp, *, outgoing: bool) -> None:
        """Tell one side."""
        wanted = {"events": True, "auto-converge": outgoing and self.slow_down}
        qmp.execute(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": state} for name, state in wanted.items()],
        )
        parameters: dict[str, object] = {"tls-creds": "", "tls-hostname": ""}
        if outgoing:
            parameters |= {"downtime-limit": round(self.downtime * 1000), "max-bandwidth": self.bandwidth}
        if self.credentials is not None:
            parameters["tls-creds"] = self.credentials.give(qmp, server=not outgoing)
            parameters["tls-hostname"] = self.host if outgoing else ""
        qmp.execute("migrate-set-parameters", **parameters)
