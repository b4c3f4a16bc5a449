"""What stands in for a network function: the script, run on trees that look like a guest's /sys."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from iolane.errors import IolaneError
from iolane.model.pci import PcieId
from iolane.operations.migration.standin import GuestInterface, look, parse, require

FUNCTION = PcieId(0, 5, 0, 0)
MAC = "52:54:00:00:00:0a"


class Answer(NamedTuple):
    exit_code: int
    output: str


class Tree:
    """A guest whose function has `eth1`, below net_failover's `eth0` with its stand-in `eth0nsby`."""

    def __init__(self, root: Path, *, paired: bool, carrier: str = "1") -> None:
        self.root = root
        net = root / f"sys/bus/pci/devices/{FUNCTION}/net/eth1"
        net.mkdir(parents=True)
        (net / "address").write_text(MAC + "\n")
        names = root / "sys/class/net"
        for name in ("eth0", "eth0nsby"):
            (names / name).mkdir(parents=True)
        (names / "eth0nsby/carrier").write_text(carrier + "\n")
        if paired:
            (net / "master").symlink_to("../../../../virtual/net/eth0")
            for name in ("eth1", "eth0nsby"):
                (names / f"eth0/lower_{name}").mkdir()

    def run(self, line: str, *, timeout: float) -> Answer:
        environment = {**os.environ, "ROOT": str(self.root)}
        done = subprocess.run(
            ["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=timeout
        )
        return Answer(done.returncode, done.stdout + done.stderr)


def test_a_stand_in_that_is_ready(tmp_path: Path) -> None:
    [interface] = look(Tree(tmp_path, paired=True), FUNCTION)
    assert interface == GuestInterface("eth1", MAC, "eth0", "eth0nsby", True)
    assert require("nic", [interface]) == MAC


def test_no_stand_in(tmp_path: Path) -> None:
    """The remedy says which device the machine lacks."""
    with pytest.raises(IolaneError, match=rf"no stand-in in the guest \(.* net,...,standby=on,mac={MAC}\)"):
        require("nic", look(Tree(tmp_path, paired=False), FUNCTION))


def test_a_stand_in_without_a_link_would_lose_the_connections(tmp_path: Path) -> None:
    with pytest.raises(IolaneError, match=r"the stand-in of nic \(eth0nsby\) has no link"):
        require("nic", look(Tree(tmp_path, paired=True, carrier="0"), FUNCTION))


def test_what_is_no_network_function_has_none(tmp_path: Path) -> None:
    tree = Tree(tmp_path, paired=True)
    (tmp_path / "sys/bus/pci/devices/0000:06:00.0").mkdir()
    with pytest.raises(IolaneError, match=r"disk can't be left behind: .* \(unplug disk first"):
        require("disk", look(tree, PcieId(0, 6, 0, 0)))


@pytest.mark.parametrize(
    "output", ["no function\n", "interface eth0 nonsense\n", "sh: readlink: not found\n"]
)
def test_what_is_no_answer_is_refused(output: str) -> None:
    with pytest.raises(IolaneError, match="the guest does not say what stands in for the function"):
        parse(output)
