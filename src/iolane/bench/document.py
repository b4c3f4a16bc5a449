"""docs/numbers.md: one section for each measurement, replaced when it is measured again."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

TITLE = """# Numbers

What was measured, where, and by which command. Ratios carry over to other machines better than times do.
"""


def machine() -> str:
    """This machine in one line."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    processor = " ".join(named[1].split()) if named else platform.machine()
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} x {processor}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.1f} before"
    )


def put_section(path: Path, title: str, body: str) -> None:
    """Replace the section `title` of the document, or add it."""
    text = path.read_text() if path.exists() else TITLE
    section = f"## {title}\n\n{body.strip()}\n"
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found:
        text = text[: found.start()] + section + ("\n" + text[found.end() :] if text[found.end() :] else "")
    else:
        text = text.rstrip("\n") + "\n\n" + section
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
