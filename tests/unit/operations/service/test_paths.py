"""Paths of a device as they are seen from another folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from iolane.devices.specification import parse
from iolane.operations.service.paths import absolute, descriptors, text_of
from tests.unit.cli.support import ROOT

HERE = Path("/srv/here")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("block,image=disk.raw", "block,image=/srv/here/disk.raw"),
        ("block,image=/disk.raw,queues=2", "block,image=/disk.raw,queues=2"),
        ("nvme,image=a,,b.raw,read_only=on,id=d", "nvme,image=/srv/here/a,,b.raw,read_only=on,id=d"),
        ("net,peer=listen:p,pcap=x.pcap", "net,peer=listen:/srv/here/p,pcap=/srv/here/x.pcap"),
        ("net,tap=tap0,carrier=vfio-user", "net,tap=tap0,carrier=vfio-user"),
        ("serial,stream=file:log", "serial,stream=file:/srv/here/log"),
        ("edu", "edu"),
        ("edu,state=was.json", "edu,state=/srv/here/was.json"),
    ],
)
def test_paths_become_absolute(given: str, wanted: str) -> None:
    assert text_of(absolute(parse(given), HERE)) == wanted


def test_so_does_the_file_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert text_of(absolute(parse("examples/adder.py:Adder"), ROOT)) == f"{ROOT}/examples/adder.py:Adder"


def test_descriptors_that_are_named() -> None:
    assert descriptors(parse("net,peer=fd:7")) == {7}
    assert descriptors(parse("serial,stream=fd:3:4")) == {3, 4}
    assert descriptors(parse("block,image=fd")) == set()
