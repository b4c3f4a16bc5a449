"""Physical functions in a QEMU machine: arguments, and what is refused beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from iolane.carriers.vfio.locked_memory import LockedMemory
from iolane.engines.qemu import vfio
from iolane.engines.qemu.command_line import Accelerator, Hardware, VfioUserDevice, command_line
from iolane.engines.qemu.qmp import Event, Qmp
from iolane.engines.qemu.slots import Slots
from iolane.engines.qemu.vfio import (
    VfioPciDevice,
    moves_along,
    refuse_discarding,
    refuse_without_locked_memory,
)
from iolane.errors import IolaneError
from iolane.model.pci import PcieId

ADDRESS = PcieId.from_string("0000:01:10.1")


@pytest.fixture
def device() -> VfioPciDevice:
    return VfioPciDevice("nic", ADDRESS, bootindex=2, rom=False)


def test_it_sits_behind_a_root_port(device: VfioPciDevice) -> None:
    line = command_line(Hardware("test", Accelerator.TCG, devices=[device], ports=1))
    made = json.loads(line[-line[::-1].index("-device")])
    assert made == {
        "driver": "vfio-pci",
        "id": "nic",
        "host": "0000:01:10.1",
        "bus": "port1",
        "bootindex": 2,
        "rombar": 0,
    }


def function(root: Path, driver: str | None) -> None:
    place = root / "sys/bus/pci/devices" / str(ADDRESS)
    place.mkdir(parents=True)
    if driver is not None:
        (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True)
        (place / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)


@pytest.mark.parametrize(("driver", "words"), [("igbvf", "held by igbvf"), (None, "held by no driver")])
def test_a_function_that_vfio_does_not_hold(
    tmp_path: Path, device: VfioPciDevice, driver: str | None, words: str
) -> None:
    function(tmp_path, driver)
    with pytest.raises(IolaneError, match=f"{words}.*iolane host take {ADDRESS}"):
        device.check(tmp_path)


def test_a_function_that_is_there(tmp_path: Path, device: VfioPciDevice) -> None:
    with pytest.raises(IolaneError, match="there is no PCI function"):
        device.check(tmp_path)
    function(tmp_path, "vfio-pci")
    device.check(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-device", "virtio-balloon-pci,free-page-reporting=on"],
        ["-device", '{"driver":"virtio-mem-pci"}'],
        ["-object", "memory-backend-ram,id=m", "-device", "pc-dimm,memdev=m"],
    ],
)
def test_what_takes_pages_from_the_guest_is_refused(arguments: list[str]) -> None:
    """The IOMMU would go on to reach the pages that were given back."""
    with pytest.raises(IolaneError, match="pages that the guest has given back"):
        refuse_discarding(arguments)


def test_other_arguments_are_not() -> None:
    refuse_discarding(["-device", "virtio-rng-pci", "-object", "memory-backend-memfd,id=x"])


def test_memory_that_may_not_be_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """VFIO counts all of the guest's memory against RLIMIT_MEMLOCK."""
    few = LockedMemory(locked=0, soft=8 << 20, hard=8 << 20, privileged=False)
    monkeypatch.setattr(vfio, "locked_memory", lambda: few)
    with pytest.raises(IolaneError, match=r"RLIMIT_MEMLOCK.*ulimit -l"):
        refuse_without_locked_memory(512 << 20)
    monkeypatch.setattr(vfio, "locked_memory", lambda: LockedMemory(0, None, None, privileged=False))
    refuse_without_locked_memory(512 << 20)


class FakeQmp:
    """Makes and removes devices."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, dict[str, object]]] = []

    def execute(self, command: str, timeout: float = 30.0, /, **arguments: object) -> Any:
        self.commands.append((command, arguments))
        return {}

    def mark(self) -> int:
        return 0

    def wait_event(self, names: set[str], since: int, timeout: float, accept: Any = None) -> Event | None:
        return {"event": "DEVICE_DELETED", "data": {"device": "nic"}}


def test_plugged_unplugged_and_never_migrated(device: VfioPciDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VfioPciDevice, "check", lambda self: None)
    qmp = FakeQmp()
    slots = Slots(cast(Qmp, qmp), os.getpid(), 2, [])
    try:
        slots.plug(device)
        assert qmp.commands == [("device_add", device.properties("port1"))]
        assert slots.dead_servers() == []
        with pytest.raises(IolaneError, match=r"nic \(0000:01:10.1\) can't move"):
            slots.refuse_migration()
        slots.unplug("nic", 1.0)
        assert qmp.commands[-1] == ("device_del", {"id": "nic"})
        slots.refuse_migration()
    finally:
        slots.close()


def test_physical_functions_come_before_devices_by_vfio_user(device: VfioPciDevice) -> None:
    """QEMU 11 aborts the other way round; each keeps the port that it would have had."""
    served = VfioUserDevice("disk", Path("/nowhere"))
    line = command_line(Hardware("test", Accelerator.TCG, devices=[served, device], ports=2))
    made = [json.loads(word) for word in line if word.startswith("{")]
    assert [(each["id"], each["bus"]) for each in made] == [("nic", "port2"), ("disk", "port1")]


def test_none_is_plugged_in_beside_them(device: VfioPciDevice) -> None:
    slots = Slots(cast(Qmp, FakeQmp()), os.getpid(), 2, [VfioUserDevice("disk", Path("/nowhere"))])
    try:
        with pytest.raises(IolaneError, match=r"QEMU aborts .* by vfio-user \(disk\)"):
            slots.plug(device)
    finally:
        slots.close()


class Objecting:
    """QMP of a machine that QEMU objects to migrating."""

    def __init__(self, *reasons: str) -> None:
        self._reasons = reasons

    def execute(self, command: str) -> dict[str, object]:
        assert command == "query-migrate"
        return {"blocked-reasons": list(self._reasons)} if self._reasons else {}


@pytest.mark.parametrize(
    ("reasons", "moves"),
    [
        ((), True),
        (("the device 'x' is not migratable",), True),
        (("0000:01:10.0: VFIO migration is not supported in kernel",), False),
        (("0000:01:10.0: something that a newer QEMU says",), False),
        (("VFIO device doesn't support migration",), False),
    ],
)
def test_what_qemu_does_not_object_to_moves_along(reasons: tuple[str, ...], moves: bool) -> None:
    """Where nothing is named (as older versions did), no function is taken for one that moves."""
    qmp = cast(Qmp, Objecting(*reasons))
    assert moves_along(qmp, PcieId(0, 1, 0x10, 0)) is moves
