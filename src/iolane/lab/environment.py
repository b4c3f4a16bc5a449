"""How a command finds itself in the lab: this interpreter, this checkout, the folder, a few variables."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import iolane.errors
from iolane.engines.qemu import patience, probe
from iolane.engines.qemu.command_line import Accelerator
from iolane.lab.init import SHARE, TOOLS

KEPT = (
    *("HOME", "LANG", "LC_ALL", "TERM", "VIRTUAL_ENV", "XDG_CACHE_HOME"),
    *("IOLANE_CACHE", "IOLANE_QEMU", "IOLANE_DEBUG"),
)
"""Variables that are handed on; everything else stays outside, secrets too."""
SLOWNESS = 10.0
"""What is emulated twice, a guest in the lab, may take so many times as long as a guest here."""
OPEN_FILES = 65536


def checkout() -> Path:
    """The folder that `import iolane` is to find this iolane in."""
    return Path(iolane.errors.__file__).absolute().parent.parent


def environment(
    here: Mapping[str, str] | None = None, more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables of a command in the lab, made of those here."""
    here = os.environ if here is None else here
    folder = str(Path(sys.executable).absolute().parent)
    kept = {name: here[name] for name in KEPT if name in here}
    return {
        "HOME": "/root",
        "TERM": "linux",
        **kept,
        "PATH": f"{folder}:{here.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin:{TOOLS}",
        "PYTHONPATH": str(checkout()),
        "IOLANE_LAB": "1",
        # Its KVM is the nested SVM of a processor that QEMU emulates: it runs Linux, which need not be tried.
        probe.ACCELERATOR_VARIABLE: Accelerator.KVM.value,
        patience.VARIABLE: f"{patience.patient(SLOWNESS):g}",
        "IOLANE_LAB_SHARE": SHARE,
        **(more or {}),
    }


def command_line(command: str | Sequence[str], folder: str, variables: Mapping[str, str]) -> str:
    """What the lab's agent has its shell do. A string is for the shell, a sequence is taken literally."""
    words = ["sh", "-c", command] if isinstance(command, str) else list(command)
    assignments = [f"{name}={value}" for name, value in variables.items()]
    return (
        f"ulimit -n {OPEN_FILES}; cd {shlex.quote(folder)} 2>/dev/null || cd /; "
        f"exec env -i {shlex.join([*assignments, *words])}"
    )
