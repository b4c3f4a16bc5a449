"""libvirt's own Python binding, which is an extra: it is imported when the engine is used, and not before."""

from __future__ import annotations

import importlib
from typing import Any

from iolane.errors import IolaneError

REMEDY = "pip install iolane[libvirt], or Debian's python3-libvirt with the system's Python"


def libvirt() -> Any:
    """The module `libvirt`. Raises IolaneError where it is missing."""
    return _load("libvirt")


def libvirt_qemu() -> Any:
    """The module `libvirt_qemu`: QEMU's monitor through libvirt. Raises IolaneError where it is missing."""
    return _load("libvirt_qemu")


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise IolaneError(f"the engine libvirt needs libvirt's binding: {error}", remedy=REMEDY) from error
