"""Which data plane serves rings."""

from __future__ import annotations

import os
from collections.abc import Callable

from iolane.carriers.vhost_user.compiled_plane import CompiledPlane
from iolane.carriers.vhost_user.plane import DataPlane, PythonPlane
from iolane.errors import IolaneError
from iolane.model.virtio import VirtioDevice

VARIABLE = "IOLANE_DATAPLANE"
PLANES: dict[str, Callable[[VirtioDevice], DataPlane]] = {"compiled": CompiledPlane, "python": PythonPlane}


def chosen_plane() -> Callable[[VirtioDevice], DataPlane]:
    """The one that IOLANE_DATAPLANE names; by default the compiled one."""
    name = os.environ.get(VARIABLE) or "compiled"
    if name not in PLANES:
        raise IolaneError(f"there is no data plane {name!r}", remedy=f"set {VARIABLE} to compiled or python")
    return PLANES[name]
