"""docs/state.md: its device does what the document says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from iolane.model.state import decode, encode

DOCUMENT = Path(__file__).resolve().parents[4] / "docs/state.md"


def test_the_example_saves_loads_and_upgrades() -> None:
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "document"}
    exec(compile(code, "document", "exec", dont_inherit=True), names)
    make = names["Watchdog"]
    device = make()
    device.reset()
    device.clock.advance(400_000_000)
    other = make()
    other.load(device.save())
    assert other.timer.remaining_ns == 600_000_000
    other.clock.advance(600_000_000)
    assert other.state.strikes == 1

    old = decode(other.save())
    old.version = 1
    old.state["count"] = old.state.pop("strikes")
    third = make()
    third.load(encode(old))
    assert third.state.strikes == 1
    for one in (device, other, third):
        one.close()
