"""`--pass`: what is written, what is taken, and that it is given back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import pytest

from iolane.carriers.control import held_functions
from iolane.engines.qemu.vfio import VfioPciDevice
from iolane.errors import IolaneError
from iolane.host.taking import Taken
from iolane.model.pci import PcieId
from iolane.operations import passthrough
from iolane.operations.passthrough import PassedFunctions, PassRequest, machine_name, parse_pass
from iolane.operations.serving import DeviceServers

DISK, NIC = PcieId(0, 2, 0, 0), PcieId(0, 1, 0x10, 1)


def test_an_address_alone() -> None:
    request = parse_pass("02:00.0")
    assert (request.address, request.id) == (DISK, "pci-02-00.0")
    assert (request.rom, request.force, request.whole_group) == (True, False, False)


def test_every_key() -> None:
    request = parse_pass("0000:01:10.1,id=nic,rom=off,force=on,group=whole")
    assert (request.address, request.id) == (NIC, "nic")
    assert (request.rom, request.force, request.whole_group) == (False, True, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("eth0", "pass 'eth0': 'eth0' is not a PCI address"),
        ("02:00.0,rome=off", "did you mean rom"),
        ("02:00.0,rom", "'rom' is not understood"),
        ("02:00.0,rom=no", "rom is on or off, not 'no'"),
        ("02:00.0,rom=on,rom=off", "rom is given twice"),
        ("02:00.0,group=all", "group is alone or whole"),
        ("02:00.0,id=0", "id '0' is not a name"),
    ],
)
def test_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(IolaneError) as caught:
        parse_pass(text)
    assert words in str(caught.value)


class FakeTaking:
    """Notes what is taken and given back."""

    log: list[str]

    def __init__(self, addresses: Sequence[PcieId], **options: Any) -> None:
        (self.address,) = addresses
        self.options = options
        self.taken = [Taken(self.address, "nvme" if self.address == DISK else None, is_new=True)]

    def __enter__(self) -> FakeTaking:
        if self.options["force"]:
            raise IolaneError("the kernel refused")
        self.log.append(f"take {self.address}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.append(f"release {self.address}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    FakeTaking.log = []
    monkeypatch.setattr(passthrough, "Taking", FakeTaking)
    return FakeTaking.log


def test_functions_are_given_back_in_reverse(log: list[str]) -> None:
    with PassedFunctions([parse_pass("02:00.0,rom=off"), parse_pass("01:10.1")]) as passed:
        assert passed.devices == [
            VfioPciDevice("pci-02-00.0", DISK, rom=False),
            VfioPciDevice("pci-01-10.1", NIC),
        ]
        assert passed.drivers == ["nvme"]
        with DeviceServers([], holders=passed.holders):
            mine = [each for each in held_functions() if each.pid == os.getpid()]
        assert [(each.function, each.maps) for each in mine] == [(str(DISK), None), (str(NIC), None)]
        assert {each.machine for each in mine} == {machine_name()}
        assert log == [f"take {DISK}", f"take {NIC}"]
    assert log[2:] == [f"release {NIC}", f"release {DISK}"]


def test_a_failure_gives_back_what_was_taken(log: list[str]) -> None:
    with pytest.raises(IolaneError, match="the kernel refused"):
        PassedFunctions([parse_pass("02:00.0"), parse_pass("01:10.1,force=on")]).__enter__()
    assert log == [f"take {DISK}", f"release {DISK}"]


@pytest.mark.parametrize("texts", [("02:00.0", "02:00.0,id=b"), ("02:00.0,id=a", "01:10.1,id=a")])
def test_nothing_is_passed_twice(texts: tuple[str, str]) -> None:
    requests: list[PassRequest] = [parse_pass(text) for text in texts]
    with pytest.raises(IolaneError, match="the same function, or the same id"):
        PassedFunctions(requests)
