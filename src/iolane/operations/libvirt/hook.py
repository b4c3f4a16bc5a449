"""libvirt's hook for QEMU's domains (libvirt's "Hooks for specific system management"): wherever a domain
starts, because its user or a migration says so, its devices are served before, and when it has ended they
are not.

A hook must not call libvirt: it would wait for itself. All it needs is in the domain's XML, which it is
given.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from iolane.engines.libvirt.metadata import read_attached
from iolane.errors import IolaneError
from iolane.operations.libvirt.servers import start_servers, stop_servers

FOLDER = Path("/etc/libvirt/hooks/qemu.d")
"""Since libvirt 6.5 every script in it is called; the daemon looks for it when it starts."""
SCRIPT = FOLDER / "iolane"
STARTING = (("prepare", "begin"), ("reconnect", "begin"))
"""Before anything of a domain is there, on a migration's destination too; and when libvirtd itself was
restarted."""
ENDED = ("release", "end")
"""Nothing of it is there any more; on a migration's source after the domain runs at the destination."""


def run_hook(domain: str, operation: str, phase: str, document: str) -> None:
    """Do what is to be done.

    Raises:
        IolaneError: a device can't be served; libvirt then does not start the domain.
    """
    if (operation, phase) in STARTING:
        start_servers(read_attached(document))
    elif (operation, phase) == ENDED:
        stop_servers(read_attached(document))


def hook_script() -> str:
    """The script that calls this iolane."""
    return f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m iolane libvirt-hook "$@"\n'


def is_installed(script: Path = SCRIPT) -> bool:
    """Whether libvirt on this host calls an iolane."""
    return os.access(script, os.X_OK)


def install(script: Path = SCRIPT) -> None:
    """Have libvirt on this host call this iolane. Raises IolaneError."""
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(hook_script())
        script.chmod(0o755)
    except OSError as error:
        raise IolaneError(f"{script}: {error.strerror}", remedy="become root") from error


def require_installed(script: Path = SCRIPT) -> None:
    """Refuse what needs the hook where it is missing. Raises IolaneError."""
    if not is_installed(script):
        raise IolaneError(
            "libvirt does not call iolane here, so nobody would serve the devices of a domain that starts",
            remedy="iolane libvirt-hook --install, then restart libvirtd (its domains go on)",
        )
