"""`iolane demo`: a stock Linux guest at work with a disk and a serial port written in Python."""

from __future__ import annotations

from iolane.cli.output import Json


def demo(json: Json = False) -> int:
    """Boot."""
    return 0
