"""Test doubles for device authors: the in-memory carrier and the driver sides, split by floor."""

from typing import TYPE_CHECKING

from iolane._lazy import lazy_exports

if TYPE_CHECKING:
    from iolane.testing.power_cut import PowerCut

__all__ = ["PowerCut"]

__getattr__ = lazy_exports(__name__, {"PowerCut": "iolane.testing.power_cut"})
