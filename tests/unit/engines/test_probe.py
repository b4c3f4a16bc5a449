"""The reason of a verdict is for a person."""

from __future__ import annotations

from pathlib import Path

import pytest

from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.probe import CONTROL, choose_accelerator
from iolane.engines.qemu.provision import Qemu
from iolane.errors import IolaneError


def test_what_a_console_held_is_shown_without_its_escape_sequences() -> None:
    assert CONTROL.sub("", "\x1bc\x1b[?7l\x1b[2J\x1b[01;31mBooting\r\x07") == "Booting"


def test_the_environment_may_say_what_runs_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is tried: no QEMU is started."""
    qemu, cache = Qemu(("/nowhere",), "11", "no"), Cache(tmp_path)
    monkeypatch.setenv("IOLANE_ACCEL", "kvm")
    assert choose_accelerator(qemu, cache) == (Accelerator.KVM, "IOLANE_ACCEL says so")
    monkeypatch.setenv("IOLANE_ACCEL", "warp")
    with pytest.raises(IolaneError, match=r"IOLANE_ACCEL=warp is no accelerator \(kvm or tcg\)"):
        choose_accelerator(qemu, cache)
