"""Functions of the host are judged by iolane before libvirt gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from iolane.errors import IolaneError
from iolane.host.recording import expand, load
from iolane.model.pci import PcieId
from iolane.operations.libvirt.functions import check_function

HOSTS = Path(__file__).parents[2] / "host/hosts"


def test_a_laptops_functions(tmp_path: Path) -> None:
    host = expand(load(HOSTS / "laptop.json"), tmp_path)
    [note] = check_function(PcieId(0, 0x2C, 0, 0), host=host)
    assert "D3cold" in note
    [note] = check_function(PcieId(0, 0x22, 0, 0), host=host)
    assert "unplugged at any time" in note
    with pytest.raises(IolaneError, match="root file system"):
        check_function(PcieId(0, 1, 0, 0), host=host)
    check_function(PcieId(0, 1, 0, 0), host=host, force=True)
    with pytest.raises(IolaneError, match="IOMMU group"):
        check_function(PcieId(0, 0, 0x0D, 0), host=host, force=True)


def test_there_is_no_such_function(tmp_path: Path) -> None:
    host = expand(load(HOSTS / "laptop.json"), tmp_path)
    with pytest.raises(IolaneError, match="no PCI function"):
        check_function(PcieId(0, 0x77, 0, 0), host=host)
