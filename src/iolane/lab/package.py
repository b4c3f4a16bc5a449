"""This iolane for the lab's memory, compiled here: read file by file from this machine, and compiled there, a
first import would take half a minute."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import py_compile
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from iolane.engines.qemu.cache import Cache

FOLDER = "bytecode"
KEPT = 4
"""Trees of compiled files that stay in the cache; those of the last hour stay too."""


def package_files(package: Path, cache: Cache) -> dict[str, Path]:
    """Every file of the package and what Python makes of it, by its path below the package.
    C that Cython has generated is left out."""
    files = {str(file.relative_to(package)): file for file in _files(package)}
    sources = {name: file for name, file in files.items() if file.suffix == ".py"}
    tree = _compiled_tree(package, sources, cache)
    compiled = {name: tree / name for name in map(compiled_name, sources) if (tree / name).exists()}
    return files | compiled


def compiled_name(source: str) -> str:
    """Where Python looks for what it has compiled (PEP 3147).

    >>> compiled_name("lab/init.py").startswith("lab/__pycache__/init.cpython-")
    True
    """
    path = Path(source)
    return str(path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc")


def _files(package: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(package):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_file() and not (name.startswith("_") and name.endswith(".c")):
                yield file


def _compiled_tree(package: Path, sources: dict[str, Path], cache: Cache) -> Path:
    """A folder with the compiled sources, kept in the cache by their content."""
    hashes = {name: importlib.util.source_hash(file.read_bytes()) for name, file in sources.items()}
    digest = hashlib.sha256(importlib.util.MAGIC_NUMBER)
    for name, source_hash in hashes.items():
        digest.update(name.encode() + b"\0" + source_hash)
    # tracebacks name the place of the sources, so each place has trees of its own
    place = hashlib.sha256(str(package).encode()).hexdigest()[:8]
    folder = cache.root / FOLDER
    earlier = _newest_first(folder, f"{place}-*")

    def make(target: Path) -> None:
        target.mkdir()
        for name, source_hash in hashes.items():
            compiled = target / compiled_name(name)
            compiled.parent.mkdir(parents=True, exist_ok=True)
            if not any(_reused(tree / compiled_name(name), source_hash, compiled) for tree in earlier[:1]):
                _compile(sources[name], compiled)

    tree = cache.tree(f"{FOLDER}/{place}-{digest.hexdigest()[:16]}", make)
    for old in _newest_first(folder, "*-*")[KEPT:]:
        if old.stat().st_mtime < time.time() - 3600:
            shutil.rmtree(old, ignore_errors=True)
    return tree


def _newest_first(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda tree: tree.stat().st_mtime, reverse=True)


def _reused(earlier: Path, source_hash: bytes, compiled: Path) -> bool:
    """Takes an earlier result whose header (magic, flags, hash of the source: PEP 552) fits the source."""
    try:
        with earlier.open("rb") as file:
            header = file.read(16)
        if header[:4] != importlib.util.MAGIC_NUMBER or header[8:] != source_hash:
            return False
        os.link(earlier, compiled)
    except OSError:
        return False
    return True


def _compile(source: Path, compiled: Path) -> None:
    """Checked by the content of the source and not by its time, which is lost on the way. A source that does
    not compile is left to whoever imports it."""
    try:
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        py_compile.compile(str(source), str(compiled), doraise=True, invalidation_mode=mode)
    except (py_compile.PyCompileError, OSError):
        return
