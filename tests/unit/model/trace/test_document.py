"""docs/trace.md: its Python prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]


def test_the_example_prints_what_the_document_says() -> None:
    text = (ROOT / "docs/trace.md").read_text()
    found = re.search(r"```python\n(.*?)```\n\nprints\n\n```\n(.*?)```", text, re.DOTALL)
    assert found is not None
    done = subprocess.run(
        [sys.executable, "-c", found[1]], cwd=ROOT / "examples", capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout == found[2]
