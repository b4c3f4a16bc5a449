"""Hosts with libvirtd for the tests of this folder."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.operations.libvirt.hook import hook_script
from tests.libvirt.host import LibvirtHost, python_paths
from tests.libvirt.provision import Libvirt, obtain


@pytest.fixture(scope="session")
def libvirt() -> Libvirt:
    """libvirt, installed or unpacked."""
    return obtain()


@pytest.fixture(scope="session")
def hook(libvirt: Libvirt) -> str:
    """The script that `iolane libvirt-hook --install` writes, for an iolane that is not installed."""
    paths = python_paths(libvirt)
    shell, rest = hook_script().split("\n", 1)
    return f"{shell}\nexport PYTHONPATH={shlex.quote(paths)}\n{rest}"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-lv-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def host(libvirt: Libvirt, hook: str, folder: Path) -> Iterator[LibvirtHost]:
    """One host whose libvirt calls iolane."""
    with LibvirtHost(libvirt, folder / "one", 1, hook) as one:
        yield one
