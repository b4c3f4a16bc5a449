"""The build backend: setuptools, asking for Cython only where the generated C is missing.

An sdist ships the C beside each .pyx, so building a wheel from it needs a C compiler and nothing else; a
checkout does not keep generated files, so there Cython is asked for.
"""

from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

CYTHON = "Cython>=3.0.8"
ROOT = Path(__file__).resolve().parent.parent


def _cython() -> list[str]:
    """Cython, unless this is an unpacked sdist (it has PKG-INFO) with the C of every .pyx."""
    sources = (ROOT / "src").rglob("_*.pyx")
    shipped = (ROOT / "PKG-INFO").exists() and all(source.with_suffix(".c").exists() for source in sources)
    return [] if shipped else [CYTHON]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What setuptools wants, and Cython where it is needed."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_cython()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """As for a wheel."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_cython()]


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    """As for a wheel: the sdist ships what Cython generates."""
    return [*build_meta.get_requires_for_build_sdist(config_settings), *_cython()]
