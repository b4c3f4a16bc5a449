"""Limits against a hang on a machine that is known to be slow."""

from __future__ import annotations

import pytest

from iolane.engines.qemu import probe
from iolane.engines.qemu.patience import VARIABLE, patience, patient
from iolane.errors import IolaneError
from iolane.lab.environment import SLOWNESS, environment


def test_limits_are_what_they_are_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert patient(30.0) == 30.0
    monkeypatch.setenv(VARIABLE, "2.5")
    assert patient(30.0) == 75.0


@pytest.mark.parametrize("text", ["0.5", "-1", "nan", "inf", "1001", "long"])
def test_what_is_no_factor_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(IolaneError, match=f"IOLANE_PATIENCE={text} is not a factor"):
        patience()


def test_the_lab_says_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """And hands on the patience that it was told to have itself."""
    monkeypatch.delenv(VARIABLE, raising=False)
    inside = environment({})
    assert (inside[VARIABLE], inside[probe.ACCELERATOR_VARIABLE]) == (f"{SLOWNESS:g}", "kvm")
    monkeypatch.setenv(VARIABLE, "3")
    assert float(environment({})[VARIABLE]) == 3 * SLOWNESS
