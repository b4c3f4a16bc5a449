"""What the documents show is what the tree holds."""

import re
from pathlib import Path

from tests.architecture import FLOORS

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_readme_shows_the_example_as_it_is() -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block == (ROOT / "examples/adder.py").read_text()


def test_the_design_lists_every_package_on_its_floor() -> None:
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", (ROOT / "docs/design.md").read_text(), re.MULTILINE)
    packages = {name: floor for name, floor in FLOORS.items() if (ROOT / "src/iolane" / name).is_dir()}
    assert {name: int(floor) for floor, name in rows} == packages


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
