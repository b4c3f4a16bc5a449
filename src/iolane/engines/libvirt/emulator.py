"""A QEMU for libvirt: one file that it can start with any arguments."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.kernel import content_key
from iolane.engines.qemu.patience import patient
from iolane.engines.qemu.provision import Qemu, obtain_qemu
from iolane.errors import IolaneError

SCRIPT, LOADER, BUNDLE = "qemu-system-x86_64", "ld.so", "qemu-bundle"


def emulator(cache: Cache | None = None, qemu: Qemu | None = None) -> Path:
    """The path for <emulator>: the system's QEMU where that has vfio-user, else a script in the cache that
    starts the private one with its own loader, libraries and modules. QEMU's user must be able to read the
    cache.
    """
    chosen = cache or Cache()
    found = qemu or obtain_qemu(chosen)
    if len(found.command) == 1 and not found.environment:
        return Path(shutil.which(found.command[0]) or found.command[0])
    text = emulator_script(found)
    tree = chosen.tree(f"libvirt-emulator/{content_key([], text)}", lambda target: _make(target, found, text))
    return tree / SCRIPT


def _make(target: Path, qemu: Qemu, text: str) -> None:
    """A QEMU looks for a module that it does not find among its own in the system's folder, and aborts when
    that is of another build (util/module.c); libvirt has it look for all. Not so where there is
    `qemu-bundle` beside its executable (util/cutils.c, get_relocated_path), which here is the loader: all
    its paths are below that.
    """
    loader = Path(qemu.command[0])
    target.mkdir()
    shutil.copy(loader, target / LOADER)
    (target / BUNDLE).mkdir()
    (target / BUNDLE / "usr").symlink_to(loader.parent.parent.parent)
    script = target / SCRIPT
    script.write_text(text)
    script.chmod(0o755)


def emulator_script(qemu: Qemu) -> str:
    """The shell script that is this QEMU, with the copy of its loader that is beside it."""
    settings = [f"export {name}={shlex.quote(value)}" for name, value in sorted(qemu.environment.items())]
    start = f'exec "${{0%/*}}/{LOADER}" {shlex.join(qemu.command[1:])} "$@"'
    return "\n".join(["#!/bin/sh", *settings, start, ""])


def version_numbers(text: str) -> tuple[int, ...]:
    """The numbers in `11.1.3 (Debian ...)`; none where it is no version."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def emulator_version(path: str) -> tuple[int, ...]:
    """What version of QEMU a domain's <emulator> is. Raises IolaneError where it can't be run."""
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=patient(30)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IolaneError(f"the domain's emulator {path} cannot be run: {error}") from error
    return version_numbers(done.stdout)
