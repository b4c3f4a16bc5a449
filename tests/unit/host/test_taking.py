"""Taking and giving back, on a kernel that reacts as Linux does, and after kill -9 at every single step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from iolane.errors import IolaneError
from iolane.host.journal import Journal
from iolane.host.sriov import make_virtual_functions
from iolane.host.sysfs import HostError
from iolane.host.taking import Taking, recover, release, remove_virtual_functions, take
from iolane.model.pci.pcie_id import PcieId
from tests.unit.host.kernel import Kernel, die_at
from tests.unit.host.machine import Machine

DISK, NIC, VF = PcieId(0, 2, 0, 0), PcieId(0, 1, 0, 0), PcieId(0, 1, 0x10, 0)
LPC, AHCI, SMBUS = (PcieId(0, 0, 0x1F, function) for function in (0, 2, 3))


@pytest.fixture
def kernel(machine: Machine) -> Kernel:
    """An NVMe disk, a network card with SR-IOV, and a group of three functions."""
    machine.healthy().driver("igbvf")
    nic = machine.function(
        "0000:01:00.0",
        driver="igb",
        group=1,
        sriov_totalvfs="8",
        sriov_numvfs="0",
        sriov_drivers_autoprobe="1",
    )
    machine.interface("eth0", nic)
    machine.function("0000:02:00.0", kind=0x010802, driver="nvme", group=2)
    machine.function("0000:00:1f.0", kind=0x060100, group=9)
    machine.function("0000:00:1f.2", kind=0x010601, driver="ahci", group=9)
    machine.function("0000:00:1f.3", kind=0x0C0500, driver="i801_smbus", group=9)
    kernel = Kernel(machine)
    kernel.matches = {str(NIC): "igb", str(DISK): "nvme", str(AHCI): "ahci", str(SMBUS): "i801_smbus"}
    return kernel


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    folder = tmp_path / "journal"
    folder.mkdir()
    return Journal(folder)


def test_taken_and_given_back(kernel: Kernel, journal: Journal) -> None:
    before = kernel.state()
    [taken] = take([DISK], host=kernel, journal=journal)
    assert (taken.address, taken.driver, taken.is_new) == (DISK, "nvme", True)
    assert kernel.state()[str(DISK)][:2] == ("vfio-pci", "vfio-pci")
    [released] = release([DISK], host=kernel, journal=journal)
    assert (released.address, released.driver) == (DISK, "nvme")
    assert kernel.state() == before
    assert journal.entries() == []


def test_taking_twice_changes_nothing(kernel: Kernel, journal: Journal) -> None:
    take([DISK], host=kernel, journal=journal)
    kernel.log.clear()
    [again] = take([DISK], host=kernel, journal=journal)
    assert (again.is_new, again.driver, kernel.log) == (False, "nvme", [])


def test_a_block_gives_back_only_what_it_took(kernel: Kernel, journal: Journal) -> None:
    before = kernel.state()
    with Taking([DISK], host=kernel, journal=journal) as taking:
        assert kernel.state()[str(DISK)][0] == "vfio-pci"
        assert [each.address for each in taking.taken] == [DISK]
    assert kernel.state() == before
    take([DISK], host=kernel, journal=journal)
    with Taking([DISK], host=kernel, journal=journal):
        pass
    assert kernel.state()[str(DISK)][0] == "vfio-pci"


def test_what_had_no_driver_gets_none(kernel: Kernel, journal: Journal) -> None:
    kernel.write(f"/sys/bus/pci/devices/{DISK}/driver/unbind", str(DISK))
    before = kernel.state()
    take([DISK], host=kernel, journal=journal)
    release([DISK], host=kernel, journal=journal)
    assert kernel.state() == before


def test_what_was_with_vfio_already_stays_there(kernel: Kernel, journal: Journal) -> None:
    kernel.write(f"/sys/bus/pci/devices/{DISK}/driver/unbind", str(DISK))
    kernel.write(f"/sys/bus/pci/devices/{DISK}/driver_override", "vfio-pci")
    kernel.write("/sys/bus/pci/drivers_probe", str(DISK))
    before = kernel.state()
    with Taking([DISK], host=kernel, journal=journal):
        pass
    assert kernel.state() == before


def test_a_group_is_taken_whole_or_refused(kernel: Kernel, journal: Journal) -> None:
    before = kernel.state()
    with pytest.raises(IolaneError, match=r"group 9 is shared with 0000:00:1f.3 \(i801_smbus\)"):
        take([AHCI], host=kernel, journal=journal)
    assert kernel.state() == before
    taken = take([AHCI], host=kernel, journal=journal, whole_group=True)
    assert [each.address for each in taken] == [AHCI, SMBUS]
    assert kernel.state()[str(LPC)] == before[str(LPC)]  # without driver it does not stand in the way
    release(host=kernel, journal=journal)
    assert kernel.state() == before
    assert {each.address for each in take([AHCI, SMBUS], host=kernel, journal=journal)} == {AHCI, SMBUS}


def test_what_the_host_needs_takes_force(kernel: Kernel, journal: Journal) -> None:
    with pytest.raises(IolaneError, match=r"the host's only network interface .*--force"):
        take([NIC], host=kernel, journal=journal)
    take([NIC], host=kernel, journal=journal, force=True)
    assert kernel.state()[str(NIC)][0] == "vfio-pci"


def test_all_or_none(kernel: Kernel, journal: Journal) -> None:
    before = kernel.state()
    kernel.refuse_probe.add(("vfio-pci", str(SMBUS)))
    kernel.wait = _impatient(kernel)  # type: ignore[method-assign]
    with pytest.raises(IolaneError, match=r"vfio-pci did not take 0000:00:1f.3 \(dmesg says why\)"):
        take([DISK, AHCI, SMBUS], host=kernel, journal=journal)
    assert kernel.state() == before
    assert journal.entries() == []


def _impatient(kernel: Kernel) -> Callable[..., None]:
    def wait(condition: Callable[[], bool], *, what: str, deadline: float = 0) -> None:
        if not condition():
            raise HostError(what)

    return wait


def test_a_driver_that_is_gone_is_told_and_tried_again(kernel: Kernel, journal: Journal) -> None:
    before = kernel.state()
    take([DISK], host=kernel, journal=journal)
    folder = kernel.path("/sys/bus/pci/drivers/nvme")
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(IolaneError, match=r"nvme, which it had, is not loaded \(modprobe nvme"):
        release([DISK], host=kernel, journal=journal)
    assert kernel.state()[str(DISK)][:2] == (None, "(null)")
    folder.with_name("elsewhere").rename(folder)
    recover(host=kernel, journal=journal)
    assert kernel.state() == before


def test_one_that_fails_does_not_keep_the_others(kernel: Kernel, journal: Journal) -> None:
    take([DISK, AHCI, SMBUS], host=kernel, journal=journal)
    folder = kernel.path("/sys/bus/pci/drivers/ahci")
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(IolaneError, match="ahci, which it had"):
        release(host=kernel, journal=journal)
    assert [kernel.state()[str(each)][0] for each in (DISK, AHCI, SMBUS)] == ["nvme", None, "i801_smbus"]


def test_a_function_in_use_is_not_given_back(
    kernel: Kernel, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unbinding vfio-pci waits until the last descriptor is closed."""
    take([DISK], host=kernel, journal=journal)
    folder = kernel.path("/proc/812")
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text("qemu-system-x86\n")
    (folder / "fd/9").symlink_to("/dev/vfio/2")
    monkeypatch.setattr("iolane.host.binding._USERS_DEADLINE", 0.02)
    with pytest.raises(IolaneError, match=r"in use by process 812 \(qemu-system-x86\)"):
        release([DISK], host=kernel, journal=journal)
    (folder / "fd/9").unlink()
    release([DISK], host=kernel, journal=journal)
    assert kernel.state()[str(DISK)][0] == "nvme"


def test_a_function_that_was_unplugged_is_forgotten(kernel: Kernel, journal: Journal) -> None:
    take([DISK], host=kernel, journal=journal)
    kernel.path(f"/sys/bus/pci/devices/{DISK}").unlink()
    release([DISK], host=kernel, journal=journal)
    assert journal.entries() == []


def test_only_what_is_taken_can_be_released(kernel: Kernel, journal: Journal) -> None:
    with pytest.raises(IolaneError, match=r"02:00.0 is not taken by iolane \(nothing is taken\)"):
        release([DISK], host=kernel, journal=journal)


def test_virtual_functions(kernel: Kernel, journal: Journal) -> None:
    before = kernel.state()
    macs: list[tuple[str, int, str]] = []
    made = make_virtual_functions(
        NIC,
        2,
        macs=["52:54:00:AA:00:01"],
        host=kernel,
        journal=journal,
        assign_mac=lambda *said: macs.append(said),
    )
    assert made == (VF, PcieId(0, 1, 0x10, 1))
    assert macs == [("eth0", 0, "52:54:00:aa:00:01")]
    assert kernel.state()[str(VF)][0] is None  # the host's driver did not take it
    assert kernel.state()[str(NIC)][2:] == ("2", "1")
    take([VF], host=kernel, journal=journal)
    with pytest.raises(IolaneError, match=r"has 2 virtual functions already \(.*vfs 0000:01:00.0 0\)"):
        make_virtual_functions(NIC, 3, host=kernel, journal=journal)
    released = release([NIC], host=kernel, journal=journal)
    assert [(each.address, each.virtual_functions) for each in released] == [(VF, False), (NIC, True)]
    assert kernel.state() == before


def test_virtual_functions_that_others_made(kernel: Kernel, journal: Journal) -> None:
    before = kernel.state()
    kernel.write(f"/sys/bus/pci/devices/{NIC}/sriov_numvfs", "2")
    remove_virtual_functions(NIC, host=kernel, journal=journal)
    assert kernel.state() == before
    with pytest.raises(IolaneError, match="has no virtual functions"):
        remove_virtual_functions(NIC, host=kernel, journal=journal)


@pytest.mark.parametrize(
    ("address", "count", "macs", "said"),
    [
        (DISK, 1, [], "has no SR-IOV"),
        (NIC, 9, [], "can have 1 to 8 virtual functions, not 9"),
        (NIC, 1, ["52:54:00:00:00:01", "52:54:00:00:00:02"], "2 MAC addresses are too many"),
        (NIC, 1, ["53:54:00:00:00:01"], "can't be an interface's address"),
        (NIC, 1, ["nonsense"], "is not a MAC address"),
        (PcieId(0, 9, 0, 0), 1, [], "there is no PCI function"),
    ],
)
def test_virtual_functions_refused(
    kernel: Kernel, journal: Journal, address: PcieId, count: int, macs: list[str], said: str
) -> None:
    with pytest.raises(IolaneError, match=said):
        make_virtual_functions(address, count, macs=macs, host=kernel, journal=journal)
    assert kernel.log == []


def test_virtual_functions_whose_mac_is_refused_are_removed(kernel: Kernel, journal: Journal) -> None:
    before = kernel.state()

    def refuse(interface: str, number: int, mac: str) -> None:
        raise IolaneError("no")

    with pytest.raises(IolaneError, match="no"):
        make_virtual_functions(
            NIC, 2, macs=["52:54:00:00:00:01"], host=kernel, journal=journal, assign_mac=refuse
        )
    assert kernel.state() == before
    assert journal.entries() == []


def killed_at(step: int, work: Callable[[], object], kernel: Kernel) -> bool:
    """Do `work` in a process that kills itself at a step; whether it got that far."""
    child = os.fork()
    if child == 0:
        kernel.observe = die_at(step)
        try:
            work()
        except BaseException:
            os._exit(2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture
def observed(kernel: Kernel, journal: Journal) -> Journal:
    """A journal whose every write is a step to be killed at, before and after."""

    class Observed(Journal):
        def put(self, entry: object) -> None:
            kernel.observe("journal")
            super().put(entry)  # type: ignore[arg-type]
            kernel.observe("journal")

        def remove(self, entry: object) -> None:
            kernel.observe("journal")
            super().remove(entry)  # type: ignore[arg-type]
            kernel.observe("journal")

    return Observed(journal.folder)


def test_killed_while_taking(kernel: Kernel, observed: Journal, journal: Journal) -> None:
    """At each step in turn: all is as before after the next start, and can be taken again."""
    before = kernel.state()
    step = 0
    while killed_at(
        step, lambda: take([DISK, AHCI, SMBUS], host=kernel, journal=observed, owned=True), kernel
    ):
        recover(host=kernel, journal=journal)
        assert (step, kernel.state(), journal.entries()) == (step, before, [])
        step += 1
    assert step > 20
    recover(host=kernel, journal=journal)  # all was taken, and then its owner ended
    assert (kernel.state(), journal.entries()) == (before, [])


def test_killed_while_giving_back(kernel: Kernel, observed: Journal, journal: Journal) -> None:
    before = kernel.state()
    for step in range(100):
        take([DISK, AHCI, SMBUS], host=kernel, journal=journal)
        killed = killed_at(step, lambda: release(host=kernel, journal=observed), kernel)
        if not killed:
            break
        recover(host=kernel, journal=journal)
        if journal.entries():  # those whose turn had not come are still taken
            release(host=kernel, journal=journal)
        assert (step, kernel.state(), journal.entries()) == (step, before, [])
    assert step > 20
    assert (kernel.state(), journal.entries()) == (before, [])


def test_killed_while_making_virtual_functions(kernel: Kernel, observed: Journal, journal: Journal) -> None:
    before = kernel.state()
    step = 0
    while killed_at(step, lambda: make_virtual_functions(NIC, 2, host=kernel, journal=observed), kernel):
        recover(host=kernel, journal=journal)
        if journal.entries():
            release(host=kernel, journal=journal)  # killed after the last step: they are made
        assert (step, kernel.state(), journal.entries()) == (step, before, [])
        step += 1
    assert step > 8
    release([NIC], host=kernel, journal=journal)
    assert (kernel.state(), journal.entries()) == (before, [])


def test_killed_while_recovering(kernel: Kernel, observed: Journal, journal: Journal) -> None:
    """What recovers may be killed too."""
    before = kernel.state()
    for step in range(100):
        assert killed_at(5, lambda: take([DISK], host=kernel, journal=observed), kernel)
        if not killed_at(step, lambda: recover(host=kernel, journal=observed), kernel):
            break
        recover(host=kernel, journal=journal)
        assert (step, kernel.state(), journal.entries()) == (step, before, [])
    assert step > 5


def test_a_living_owner_keeps_what_it_took(kernel: Kernel, journal: Journal) -> None:
    reading, writing = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        take([DISK], host=kernel, journal=journal, owned=True)
        os.write(tell, b"x")
        os.read(reading, 1)
        os._exit(0)
    os.read(told, 1)
    try:
        for attempt in (
            lambda: take([DISK], host=kernel, journal=journal),
            lambda: release(host=kernel, journal=journal),
        ):
            with pytest.raises(IolaneError, match=f"02:00.0 is taken by process {child} "):
                attempt()
        assert recover(host=kernel, journal=journal) == []
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)
        for descriptor in (reading, writing, told, tell):
            os.close(descriptor)
    assert [each.address for each in release(host=kernel, journal=journal)] == [DISK]
    assert kernel.state()[str(DISK)][0] == "nvme"
