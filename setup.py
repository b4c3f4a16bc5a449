"""Builds the compiled helpers: every src/iolane/**/_*.pyx, or its generated C where Cython is not at hand."""

import importlib.util
import os
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
COMPILER_ARGUMENTS = ["-O2", "-g0", "-std=gnu11", "-Wall", "-Wno-unused-function"]


def extensions() -> list[Extension]:
    """One extension per pyx (or, in an sdist, per generated C file)."""
    os.chdir(ROOT)  # distutils wants paths relative to setup.py
    have_cython = importlib.util.find_spec("Cython") is not None
    found = [
        Extension(
            ".".join(source.relative_to("src").with_suffix("").parts),
            [str(source if have_cython else source.with_suffix(".c"))],
            depends=[str(part) for kind in ("*.h", "*.pxi") for part in sorted(source.parent.glob(kind))],
            extra_compile_args=COMPILER_ARGUMENTS,
        )
        for source in sorted(Path("src/iolane").rglob("_*.pyx"))
    ]
    return _generate(found) if have_cython and found else found


def _generate(found: list[Extension]) -> list[Extension]:
    """The C of each pyx, written again only where it is older than its source."""
    from Cython.Build import cythonize

    directives = {"language_level": "3", "embedsignature": True, "binding": True}
    generated: list[Extension] = cythonize(found, compiler_directives=directives)  # type: ignore[no-untyped-call]
    return generated


setup(ext_modules=extensions())
