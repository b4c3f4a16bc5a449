import os
from pathlib import Path

import pytest

from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.probe import choose_accelerator, has_extensions
from iolane.engines.qemu.provision import TREE, Qemu, cached_qemu, find_qemu, obtain_qemu
from iolane.errors import IolaneError


def quiet(message: str) -> None: ...


def fake(folder: Path, *, version: str = "11.1.3", vfio_user: bool = True) -> Path:
    """A program that answers as QEMU does."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "qemu-system-x86_64"
    answer = "echo 'vfio-user-pci options:'; echo '  socket=<SocketAddress>'" if vfio_user else "exit 1"
    identity = f"[ $1 = --version ] && {{ echo 'QEMU emulator version {version} (x)'; exit; }}"
    program.write_text(f"#!/bin/sh\n{identity}\n{answer}\n")
    program.chmod(0o755)
    return program


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("IOLANE_QEMU", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_the_chosen_one_must_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IOLANE_QEMU", str(fake(tmp_path / "new")))
    found = find_qemu()
    assert found is not None
    assert found.version == "11.1.3"
    monkeypatch.setenv("IOLANE_QEMU", str(fake(tmp_path / "old", version="7.2.0", vfio_user=False)))
    with pytest.raises(IolaneError, match=r"7\.2\.0 has no vfio-user-pci.*10\.1"):
        find_qemu()
    monkeypatch.setenv("IOLANE_QEMU", str(tmp_path / "missing"))
    with pytest.raises(IolaneError, match="cannot be run"):
        find_qemu()


def test_the_systems_is_taken_if_it_does(tmp_path: Path) -> None:
    assert find_qemu() is None
    fake(tmp_path / "bin", vfio_user=False)
    assert find_qemu() is None
    program = fake(tmp_path / "bin")
    found = find_qemu()
    assert found is not None
    assert found.command == (str(program),)


def test_the_cached_one_is_found_without_running_anything(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", quiet)
    assert cached_qemu(cache) is None
    prefix = cache.root / TREE
    prefix.mkdir(parents=True)
    (prefix / "version").write_text("11.1.3")
    found = obtain_qemu(cache)
    assert found.version == "11.1.3"
    assert found.command[0].endswith("ld-linux-x86-64.so.2")
    assert found.environment["QEMU_MODULE_DIR"].startswith(str(prefix))


def test_kvm_without_a_device_or_permission(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", quiet)
    qemu = Qemu(("qemu",), "11.1.3", "a")
    accelerator, reason = choose_accelerator(qemu, cache, tmp_path / "kvm")
    assert accelerator is Accelerator.TCG
    assert "there is no" in reason
    (tmp_path / "kvm").touch(mode=0)
    if os.geteuid() != 0:
        accelerator, reason = choose_accelerator(qemu, cache, tmp_path / "kvm")
        assert accelerator is Accelerator.TCG
        assert "may not be opened" in reason


def test_extensions() -> None:
    assert has_extensions("processor: 0\nflags\t\t: fpu vmx sse\n")
    assert has_extensions("flags\t\t: fpu svm\n")
    assert not has_extensions("flags\t\t: fpu sse\n")
    assert not has_extensions("")
