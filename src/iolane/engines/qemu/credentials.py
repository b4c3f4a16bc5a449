"""Certificates of a machine's migration, in QEMU's layout of a directory (docs/system/tls.rst)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from iolane.engines.qemu.qmp import Qmp, QmpError
from iolane.errors import IolaneError

AUTHORITY = "ca-cert.pem"
OBJECT = "migration.tls"


@dataclass(frozen=True)
class TlsCredentials:
    """A directory with ca-cert.pem, and for each role that this host plays ROLE-cert.pem and ROLE-key.pem,
    the role being `server` (where a guest comes) or `client` (where it leaves).
    """

    directory: Path

    def files(self, *, server: bool) -> tuple[Path, Path, Path]:
        """The authority's certificate, our own, and our key. Raises IolaneError for one that is missing."""
        role = "server" if server else "client"
        authority, certificate, key = (
            self.directory.absolute() / name for name in (AUTHORITY, f"{role}-cert.pem", f"{role}-key.pem")
        )
        for path in (authority, certificate, key):
            if not path.is_file():
                raise IolaneError(
                    f"there is no {path}",
                    remedy=f"--tls names a directory with {AUTHORITY}, {role}-cert.pem and {role}-key.pem",
                )
        return authority, certificate, key

    def give(self, qmp: Qmp, *, server: bool) -> str:
        """QEMU's tls-creds-x509 object, made anew so that renewed certificates are read; returns its id."""
        self.files(server=server)
        with contextlib.suppress(QmpError):
            qmp.execute("object-del", id=OBJECT)
        qmp.execute(
            "object-add",
            **{
                "qom-type": "tls-creds-x509",
                "id": OBJECT,
                "dir": str(self.directory.absolute()),
                "endpoint": "server" if server else "client",
                "verify-peer": True,
            },
        )
        return OBJECT
