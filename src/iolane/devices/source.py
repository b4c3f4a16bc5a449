"""Loading a device class from the user's own Python file."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from iolane.errors import IolaneError


def load_file(path: Path) -> ModuleType:
    """The module in `path`, loaded once a process; its folder is importable from then on, as for a script."""
    resolved = path.resolve()
    name = f"iolane_file_{resolved.stem}_{hashlib.sha256(bytes(resolved)).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    _check_readable(path)
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise IolaneError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    if str(resolved.parent) not in sys.path:
        sys.path.append(str(resolved.parent))
    sys.modules[name] = module  # before it runs: annotations are looked up through sys.modules
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise IolaneError(f"{path}{_where(error, resolved)}: {_what(error)}") from error
        if isinstance(error, SystemExit):
            raise IolaneError(f"{path} calls exit() when it is imported") from error
        raise
    return module


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise IolaneError(f"{path} is a folder, not a Python file")
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise IolaneError(f"{path}: no such file") from None
    except OSError as error:
        raise IolaneError(f"{path}: {(error.strerror or str(error)).lower()}") from error


def _what(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"syntax error: {error.msg}"
    if isinstance(error, IolaneError):
        return str(error)
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _where(error: Exception, path: Path) -> str:
    """`, line N` of the user's file, where the error has one there."""
    if isinstance(error, SyntaxError) and error.lineno is not None and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f", line {lines[-1]}" if lines else ""
