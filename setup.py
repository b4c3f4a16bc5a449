"""Builds the compiled helpers: every src/iolane/**/_*.pyx, or its generated C where Cython is not at hand."""

import os
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
COMPILER_ARGUMENTS = ["-O2", "-g0", "-std=gnu11", "-Wall", "-Wno-unused-function"]


def extensions() -> list[Extension]:
    """One extension per pyx (or, in an sdist, per generated C file)."""
    os.chdir(ROOT)  # distutils wants paths relative to setup.py
    sources = sorted(Path("src/iolane").rglob("_*.pyx"))
    try:
        from Cython.Build import cythonize
    except ImportError:
        cythonize = None
    found = [
        Extension(
            ".".join(source.relative_to("src").with_suffix("").parts),
            [str(source if cythonize else source.with_suffix(".c"))],
            extra_compile_args=COMPILER_ARGUMENTS,
        )
        for source in sources
    ]
    if cythonize is None or not found:
        return found
    directives = {"language_level": "3", "embedsignature": True, "binding": True}
    return list(cythonize(found, compiler_directives=directives, nthreads=0))


setup(ext_modules=extensions())
