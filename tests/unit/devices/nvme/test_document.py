"""docs/nvme.md says what the code has."""

import re
from pathlib import Path

from iolane.devices.nvme.controller import MAX_QUEUE_PAIRS
from iolane.devices.nvme.registers import MAX_QUEUE_ENTRIES
from iolane.devices.nvme.spec import ERROR_LOG_ENTRIES, Cns, FeatureId, LogId

TEXT = " ".join((Path(__file__).parents[4] / "docs/nvme.md").read_text().split())


def numbers(name: str) -> set[int]:
    """The hexadecimal numbers and ranges in the parentheses after a name."""
    found = re.search(rf"{name} \(([^)]*)\)", TEXT)
    assert found is not None
    result: set[int] = set()
    for first, last in re.findall(r"(?:CNS )?(\w+)h(?: to (\w+)h)?", found[1]):
        result |= set(range(int(first, 16), int(last or first, 16) + 1))
    return result


def test_numbers_are_those_of_the_code() -> None:
    assert numbers("Identify") == set(Cns)
    assert numbers("Get Log Page") == set(LogId)
    assert numbers("Get and Set Features") == set(FeatureId)
    assert f"up to {MAX_QUEUE_PAIRS} pairs of up to {MAX_QUEUE_ENTRIES} entries" in TEXT
    assert f"({ERROR_LOG_ENTRIES} entries)" in TEXT
