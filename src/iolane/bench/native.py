"""The C programs that measurements need, built on demand into the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from iolane.engines.qemu.cache import Cache
from iolane.errors import IolaneError

SOURCES = Path(__file__).parent / "native"
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-pthread")


def build(programs: Sequence[str], cache: Cache | None = None, *, static: bool = False) -> Path:
    """The folder that holds `programs`, each made of `native/<program>.c`; `static` ones run in any guest.

    Raises:
        IolaneError: there is no C compiler, or it does not take the sources.
    """
    flags = (*FLAGS, *(["-static"] if static else []))
    digest = hashlib.sha256(" ".join((*flags, *programs)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())

    def make(folder: Path) -> None:
        folder.mkdir()
        for program in programs:
            _compile(SOURCES / f"{program}.c", folder / program, flags)

    return (cache or Cache()).tree(f"bench-{digest.hexdigest()[:16]}", make)


def _compile(source: Path, program: Path, flags: Sequence[str]) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise IolaneError("measuring needs a C compiler", remedy="apt install gcc libc6-dev, or set CC")
    try:
        done = subprocess.run(
            [compiler, *flags, "-o", str(program), str(source)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise IolaneError(
            f"the C compiler {compiler} does not start: {error.strerror}", remedy="set CC"
        ) from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise IolaneError(f"{compiler} does not compile {source.name}: {first}")
