"""Virtual functions of NVMe controllers get shares and are brought online (NVMe Base 2.0, 8.26)."""

from __future__ import annotations

from pathlib import Path
from struct import pack_into
from typing import Self

import pytest

from iolane.errors import IolaneError
from iolane.host.function import HostFunction
from iolane.host.journal import Journal
from iolane.host.nvme_secondary import OACS_VIRTUALIZATION, bring_online
from iolane.host.sriov import make_virtual_functions
from iolane.host.sysfs import Host, HostError
from iolane.model.pci import PcieId
from tests.unit.host.kernel import Kernel
from tests.unit.host.machine import Machine

QUEUES, INTERRUPTS = 0, 1
OFFLINE, ASSIGN, ONLINE = 7, 8, 9


class Controller:
    """A primary controller with secondary ones. As on hardware one takes resources while it is offline, and
    comes online only with enough of them.
    """

    def __init__(self, secondaries: int = 4, queues: int = 16, interrupts: int = 16) -> None:
        self.total = [queues, interrupts]
        self.primary = [0, 0]
        self.most = [8, 8]
        self.granularity = [1, 1]
        self.types = 3
        self.oacs = OACS_VIRTUALIZATION
        self.given = {number: [0, 0] for number in range(1, secondaries + 1)}
        self.online: set[int] = set()
        self.commands: list[tuple[int, int, int, int]] = []
        self.open = 0

    def __enter__(self) -> Self:
        self.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.open -= 1

    def identify(self, what: int) -> bytes:
        data = bytearray(4096)
        if what == 0x01:
            pack_into("<H", data, 256, self.oacs)
        elif what == 0x14:
            data[4] = self.types
            for kind in (QUEUES, INTERRUPTS):
                handed_out = sum(each[kind] for each in self.given.values())
                rest = self.primary[kind], 1, self.most[kind], self.granularity[kind]
                pack_into("<IIHHHH", data, 32 + 32 * kind, self.total[kind], handed_out, *rest)
        else:
            assert what == 0x15
            data[0] = len(self.given)
            for number, given in self.given.items():
                pack_into("<HHB3xHHH", data, 32 * number, number, 0, number in self.online, number, *given)
        return bytes(data)

    def command(self, opcode: int, what: str, *, cdw10: int = 0, cdw11: int = 0) -> None:
        assert opcode == 0x1C
        action, kind, number = cdw10 & 0xF, cdw10 >> 8 & 7, cdw10 >> 16
        self.commands.append((action, kind, number, cdw11))
        if action == OFFLINE:
            self.online.discard(number)
        elif action == ASSIGN:
            if number in self.online:
                raise HostError(f"{what}: not while it is online")
            self.given[number][kind] = cdw11
        else:
            assert action == ONLINE
            if self.given[number][QUEUES] < 2:
                raise HostError(f"{what}: without queues")
            self.online.add(number)


def test_equal_shares_and_online() -> None:
    controller = Controller(queues=7)
    made = bring_online(controller, 3)
    assert [(each.controller, each.online, each.queues, each.interrupts) for each in made] == [
        (1, True, 2, 5),
        (2, True, 2, 5),
        (3, True, 2, 5),
    ]
    assert controller.online == {1, 2, 3}


def test_limits_of_the_controller() -> None:
    """VQFRSM: the most for one; VQGRAN: in steps of; what others have is not ours to give."""
    controller = Controller(queues=100)
    controller.most, controller.granularity = [64, 8], [4, 4]
    controller.given[4] = [30, 0]
    made = bring_online(controller, 2)
    assert [(each.queues, each.interrupts) for each in made] == [(32, 8), (32, 8)]


def test_what_they_had_does_not_count() -> None:
    controller = Controller(queues=8)
    bring_online(controller, 4)
    made = bring_online(controller, 2)
    assert [(each.online, each.queues) for each in made] == [(True, 2), (True, 2)]
    assert (OFFLINE, 0, 1, 0) in controller.commands


def test_too_few() -> None:
    controller = Controller(queues=7)
    with pytest.raises(IolaneError, match=r"7 queue pairs to hand out.*are not 2 for each of 4.*make fewer"):
        bring_online(controller, 4)
    controller.primary[QUEUES] = 6
    with pytest.raises(IolaneError, match=r"of which the physical function has 6.*nvme virt-mgmt"):
        bring_online(controller, 1)
    assert controller.commands == []


def test_resources_of_their_own() -> None:
    """CRT: a type that can't be handed out is theirs already."""
    controller = Controller(interrupts=0)
    controller.types = 1 << QUEUES
    assert bring_online(controller, 1)[0].queues == 8
    assert all(kind == QUEUES for _, kind, _, _ in controller.commands)


def test_a_controller_without_management() -> None:
    controller = Controller()
    controller.oacs = 0
    assert bring_online(controller, 2) == []
    assert controller.commands == []


def test_fewer_controllers_than_functions() -> None:
    with pytest.raises(IolaneError, match="lists 1 secondary controllers for 2 functions"):
        bring_online(Controller(secondaries=1), 2)


@pytest.fixture
def disk(machine: Machine) -> PcieId:
    machine.healthy()
    machine.function(
        "0000:01:00.0",
        kind=0x010802,
        driver="nvme",
        group=7,
        sriov_totalvfs="4",
        sriov_numvfs="0",
        sriov_drivers_autoprobe="1",
    )
    return PcieId(0, 1, 0, 0)


def test_made_and_brought_online(machine: Machine, disk: PcieId, tmp_path: Path) -> None:
    controller, kernel = Controller(), Kernel(machine)

    def open_admin(host: Host, function: HostFunction) -> Controller:
        assert (host, function.address) == (kernel, disk)
        return controller

    journal = Journal(tmp_path)
    made = make_virtual_functions(disk, 2, host=kernel, journal=journal, open_admin=open_admin)
    assert len(made) == 2
    assert (controller.online, controller.open) == ({1, 2}, 0)


def test_those_that_do_not_come_online_are_removed(machine: Machine, disk: PcieId, tmp_path: Path) -> None:
    controller, kernel, journal = Controller(queues=1), Kernel(machine), Journal(tmp_path)
    with pytest.raises(IolaneError, match="to hand out"):
        make_virtual_functions(disk, 2, host=kernel, journal=journal, open_admin=lambda *_: controller)
    assert kernel.read(f"/sys/bus/pci/devices/{disk}/sriov_numvfs") == "0"
    with journal.locked():
        assert journal.entries() == []
