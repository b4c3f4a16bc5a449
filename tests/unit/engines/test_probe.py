"""The reason of a verdict is for a person."""

from __future__ import annotations

from iolane.engines.qemu.probe import CONTROL


def test_what_a_console_held_is_shown_without_its_escape_sequences() -> None:
    assert CONTROL.sub("", "\x1bc\x1b[?7l\x1b[2J\x1b[01;31mBooting\r\x07") == "Booting"
