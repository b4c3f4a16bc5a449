"""Who uses a disk in the guest: the script, run on trees that look like a guest's /sys and /proc."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from iolane.errors import IolaneError
from iolane.model.pci import PcieId
from iolane.operations.migration.disk_use import DiskUse, command, look, parse, refuse_in_use

FUNCTION = PcieId(0, 5, 0, 0)
HERE = "devices/pci0000:00/0000:00:03.0/0000:05:00.0"
OTHER = "devices/pci0000:00/0000:00:04.0/0000:06:00.0"


class Answer(NamedTuple):
    exit_code: int
    output: str


class Tree:
    """A guest's /sys and /proc as files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.programs = root / "programs"
        self.programs.mkdir()
        (root / "sys/class/block").mkdir(parents=True)
        (root / "proc/1/fd").mkdir(parents=True)
        self.write("sys/bus/pci/devices/0000:05:00.0", "")
        self.write("proc/swaps", "Filename Type Size Used Priority\n")
        self.write("proc/1/mountinfo", "20 1 0:19 / /proc rw - proc proc rw\n")
        self.write("proc/1/comm", "init\n")

    def write(self, path: str, content: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    def disk(self, name: str, number: str, where: str = HERE) -> Path:
        folder = self.root / "sys" / where / "block" / name
        (folder / "holders").mkdir(parents=True)
        (folder / "dev").write_text(number + "\n")
        (self.root / "sys/class/block" / name).symlink_to(folder)
        return folder

    def holder(self, name: str, uuid: str, *disks: str) -> None:
        """A map of the device mapper over disks."""
        self.write(f"sys/class/block/{name}/dm/uuid", uuid)
        for disk in disks:
            self.write(f"sys/class/block/{name}/slaves/{disk}", "")
            self.write(f"sys/class/block/{disk}/holders/{name}", "")

    def multipathd(self, script: str) -> None:
        program = self.programs / "multipathd"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def run(self, line: str, *, timeout: float) -> Answer:
        environment = {**os.environ, "ROOT": str(self.root), "PATH": f"{self.programs}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=timeout
        )
        return Answer(done.returncode, done.stdout + done.stderr)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.disk("nvme0n1", "259:0")
    made.disk("nvme0n1p1", "259:1")
    made.disk("sda", "8:0", OTHER)
    return made


def test_only_the_disks_of_the_function_count(tree: Tree) -> None:
    tree.write("proc/swaps", "Filename Type Size Used Priority\n/dev/sda partition 1 0 -2\n")
    assert look(tree, FUNCTION) == DiskUse(("nvme0n1", "nvme0n1p1"), ())
    refuse_in_use("disk", look(tree, FUNCTION))


def test_mounts_of_every_process_count(tree: Tree) -> None:
    """A container has mounts that init does not see; a file system may have a number of its own."""
    tree.write("proc/77/mountinfo", "30 1 259:1 / /srv/data rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n")
    tree.write("proc/78/mountinfo", "31 1 0:42 / /pool rw - btrfs /dev/nvme0n1 rw\n")
    assert look(tree, FUNCTION).users == ("nvme0n1 mounted on /pool", "nvme0n1p1 mounted on /srv/data")


def test_swap_loop_holders_and_mappings_count(tree: Tree) -> None:
    tree.write("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n")
    tree.write("sys/class/block/loop3/loop/backing_file", "/dev/nvme0n1\n")
    tree.write("proc/9/maps", "7f00-7f10 rw-s 00000000 00:06 99    /dev/nvme0n1p1\n")
    tree.write("proc/9/comm", "mapper\n")
    tree.holder("dm-0", "LVM-abc", "nvme0n1")
    assert look(tree, FUNCTION).users == (
        "nvme0n1 held by dm-0",
        "nvme0n1 behind loop3",
        "nvme0n1p1 swap",
        "nvme0n1p1 open in mapper (9)",
    )


def test_multipath_lets_go_of_a_path_when_it_has_another(tree: Tree) -> None:
    tree.holder("dm-1", "mpath-36001405", "nvme0n1", "sda")
    tree.multipathd(f'echo "$@" >>{tree.root}/asked; rm {tree.root}/sys/class/block/nvme0n1/holders/dm-1')
    assert look(tree, FUNCTION).users == ("nvme0n1 held by dm-1",)
    assert not (tree.root / "asked").exists(), "looking changes nothing"
    released = look(tree, FUNCTION, release=True)
    assert (released.users, released.released) == ((), ("nvme0n1 dm-1",))
    assert (tree.root / "asked").read_text() == "del path nvme0n1\n"


@pytest.mark.parametrize("reason", ["the only path", "no multipathd", "it says no", "it does not"])
def test_multipath_that_can_not_let_go_is_a_user(tree: Tree, reason: str) -> None:
    tree.holder("dm-1", "mpath-36001405", "nvme0n1", *(() if reason == "the only path" else ("sda",)))
    if reason != "no multipathd":
        tree.multipathd("exit 1" if reason == "it says no" else "exit 0")
    with pytest.raises(IolaneError, match=r"unplugging disk is refused: .*: nvme0n1 held by dm-1 \(unmount"):
        refuse_in_use("disk", look(tree, FUNCTION, release=True))


@pytest.mark.parametrize("output", ["no function\n", "sh: awk: not found\n", "used \n"])
def test_what_is_no_answer_is_refused(output: str) -> None:
    with pytest.raises(IolaneError, match="the guest does not say whether the disk is in use"):
        parse(output)


def test_an_unknown_function_is_refused(tree: Tree) -> None:
    with pytest.raises(IolaneError, match="the guest does not say"):
        look(tree, PcieId(0, 7, 0, 0))
    assert tree.run(command(PcieId(0, 7, 0, 0), release=False), timeout=10).output == "no function\n"
