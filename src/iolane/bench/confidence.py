"""How sure a median is."""

from __future__ import annotations

from math import comb


def confidence_of_median(values: list[float]) -> tuple[float, float]:
    """The interval in which the true median lies with 95 % confidence, by the sign test.

    It makes no assumption of how the values are spread. With fewer than six they can't say that much, and
    all of their range is returned.
    """
    ordered, count = sorted(values), len(values)
    outside, cut = 0.0, 0
    while (outside := outside + 2 * comb(count, cut) / 2**count) <= 0.05:
        cut += 1
    cut = max(cut - 1, 0)
    return ordered[cut], ordered[count - 1 - cut]
