"""A function through VFIO: regions, interrupts, reset, by group and by character device."""

import errno
import os
from pathlib import Path

import pytest

from iolane.carriers.vfio import Backend, VfioError, VfioFunction, open_function
from iolane.carriers.vfio.container import Container
from iolane.memory.mapping import MappingError
from iolane.model.dma import Permission
from iolane.model.pci import PcieId
from iolane.testing.fake_vfio import FakeFunction, FakeKernel
from iolane.uapi.vfio import DeviceFlags, Ioctl, PciIrq, PciRegion
from tests.unit.carriers.vfio.hardware import ADDRESS, WINDOW, Card, CardRegisters


def signalled(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.fixture
def eventfds() -> list[int]:
    return [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(8)]


# Opening.


def test_group_before_iommu(kernel: FakeKernel, function: VfioFunction) -> None:
    """vfio.rst: "the IOMMU can only be set once a group is in the container"; and only then a device."""
    requests = [request for _, request in kernel.calls]
    order = [
        Ioctl.GET_API_VERSION,
        Ioctl.GROUP_GET_STATUS,
        Ioctl.GROUP_SET_CONTAINER,
        Ioctl.SET_IOMMU,
        Ioctl.GROUP_GET_DEVICE_FD,
    ]
    assert [requests.index(each) for each in order] == sorted(requests.index(each) for each in order)


def test_no_iommu_without_a_group(kernel: FakeKernel) -> None:
    with Container(kernel=kernel) as container:
        with pytest.raises(VfioError, match="Invalid argument"):
            container._device.call(Ioctl.SET_IOMMU, 3, "without a group")
        with pytest.raises(VfioError, match="reserved window"):
            container.map(0, 0x1000, 0x1000, Permission.READ)


def test_what_it_is(function: VfioFunction) -> None:
    assert function.flags == DeviceFlags.PCI | DeviceFlags.RESET
    bar = function.regions[0]
    assert bar is not None
    assert (bar.size, bar.offset, bar.readable, bar.writable) == (0x4000, 0, True, True)
    assert bar.mmap_areas == (WINDOW,)
    assert not bar.msix_mappable
    assert function.regions[1] is None
    assert function.regions[PciRegion.VGA] is None
    assert [irq.count for irq in function.irqs] == [1, 0, 8, 1, 1]
    assert function.irq(PciIrq.INTX).automasked
    assert not function.irq(PciIrq.MSIX).resizable


def test_a_group_that_is_not_viable_names_its_members(kernel: FakeKernel, fake: FakeFunction) -> None:
    kernel.add(FakeFunction(PcieId(0, 1, 0, 1), Card(), 7))
    driver = kernel.root / "sys/bus/pci/devices/0000:01:00.1/driver"
    driver.unlink()
    driver.symlink_to(kernel.root / "sys/bus/pci/drivers/ahci")
    kernel.unviable.add(7)
    with pytest.raises(VfioError, match=r"not viable.*0000:01:00.0 \(vfio-pci\), 0000:01:00.1 \(ahci\)"):
        open_function(ADDRESS, host=kernel, kernel=kernel)


@pytest.mark.parametrize(
    ("path", "number", "remedy"),
    [
        ("/dev/vfio/vfio", errno.ENOENT, "modprobe"),
        ("/dev/vfio/7", errno.ENOENT, "vfio-pci"),
        ("/dev/vfio/7", errno.EBUSY, "another process"),
        ("/dev/vfio/7", errno.EACCES, "root"),
    ],
)
def test_what_can_not_be_opened(
    kernel: FakeKernel, fake: FakeFunction, path: str, number: int, remedy: str
) -> None:
    kernel.refused[path] = number
    with pytest.raises(VfioError) as caught:
        open_function(ADDRESS, host=kernel, kernel=kernel)
    assert caught.value.errno == number
    assert remedy in (caught.value.remedy or "")


def test_without_interrupt_remapping(kernel: FakeKernel, fake: FakeFunction) -> None:
    """Linux answers EPERM to SET_IOMMU unless allow_unsafe_interrupts is set."""
    kernel.interrupt_remapping = False
    with pytest.raises(VfioError, match="interrupt remapping") as caught:
        open_function(ADDRESS, host=kernel, kernel=kernel)
    assert "allow_unsafe_interrupts" in (caught.value.remedy or "")


def test_no_function_and_no_group(kernel: FakeKernel, fake: FakeFunction) -> None:
    with pytest.raises(VfioError, match=r"no PCI function 0000:02:00\.0"):
        open_function(PcieId(0, 2, 0, 0), host=kernel, kernel=kernel)
    (kernel.root / "sys/bus/pci/devices/0000:01:00.0/iommu_group").unlink()
    with pytest.raises(VfioError, match="no IOMMU group"):
        open_function(ADDRESS, host=kernel, kernel=kernel)


def test_two_functions_of_one_group(kernel: FakeKernel, function: VfioFunction) -> None:
    """The second is opened through the group and container of the first."""
    second = PcieId(0, 1, 0, 1)
    kernel.add(FakeFunction(second, Card(), 7))
    with pytest.raises(VfioError, match="busy"):
        open_function(second, host=kernel, kernel=kernel)
    with open_function(second, host=kernel, kernel=kernel, space=function.space) as other:
        assert other.space is function.space
    assert function.read(PciRegion.CONFIG, 0, 2) == b"\x34\x12"


def test_by_character_device(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, iommufd=True, type1=False)
    kernel.add(FakeFunction(ADDRESS, Card(), 7, mappable={0: [WINDOW]}))
    with open_function(ADDRESS, host=kernel, kernel=kernel) as function:
        function.set_command()
        assert function.registers(0, CardRegisters).ID == 0x10AD1E55
        assert [str(item) for item in function.space.ranges] == [
            "0x0-0xfedfffff",
            "0xfef00000-0xffffffffffff",
        ]
    assert not kernel.files


def test_a_back_end_that_is_not_there(kernel: FakeKernel, fake: FakeFunction) -> None:
    with pytest.raises(VfioError, match="no VFIO character device"):
        open_function(ADDRESS, host=kernel, kernel=kernel, backend=Backend.IOMMUFD)


# Regions.


def test_read_and_write_through_the_kernel(function: VfioFunction) -> None:
    assert function.read(0, 0, 4) == b"\x55\x1e\xad\x10"
    function.write(0, 0x18, b"\x34\x12")
    assert function.read(0, 0x18, 2) == b"\x34\x12"
    with pytest.raises(VfioError, match="leaves region 0"):
        function.read(0, 0x3FFE, 4)
    with pytest.raises(VfioError, match="no region 1"):
        function.read(1, 0, 4)


def test_no_answer_without_memory_decoding(function: VfioFunction) -> None:
    function.set_command(memory=False)
    with pytest.raises(VfioError) as caught:
        function.read(0, 0, 4)
    assert caught.value.errno == errno.EIO


def test_mapping(function: VfioFunction, fake: FakeFunction) -> None:
    mapping = function.map(0, 0x1000, 0x1000)
    memoryview(mapping)[4:8] = b"mine"
    assert fake.memory(0, WINDOW)[4:8] == b"mine"
    with pytest.raises(VfioError, match="can't be mapped") as caught:
        function.map(0, 0, 0x2000)
    assert "0x1000 + 0x1000" in (caught.value.remedy or "")
    with pytest.raises(MappingError):
        function.map(0, 0x1010, 0x100)  # not at a page


def test_register_notation(function: VfioFunction, fake: FakeFunction) -> None:
    registers = function.registers(0, CardRegisters)
    assert registers.ID == 0x10AD1E55
    registers.SMALL = 0x1234
    registers.TINY = 0x56
    registers.DATA = 0x1122334455667788
    registers.SLOT[2] = 7
    card = fake.device
    assert isinstance(card, Card)
    assert (card.bar0.SMALL, card.bar0.TINY, card.bar0.DATA) == (0x1234, 0x56, 0x1122334455667788)
    assert [int(each) for each in registers.SLOT] == [0, 0, 7, 0]
    registers.COMMAND = registers.COMMAND.replace(VECTOR=3)
    assert registers.COMMAND.VECTOR == 3


def test_registers_in_what_is_mapped(function: VfioFunction, fake: FakeFunction) -> None:
    """Each access is one load or store of the register's width."""
    registers = function.registers(0, CardRegisters, WINDOW.offset)
    memory = fake.memory(0, WINDOW)
    registers.DATA = 0x1122334455667788
    assert memory[0x10:0x18] == bytes.fromhex("8877665544332211")
    memory[0x18:0x1A] = b"\xcd\xab"
    assert registers.SMALL == 0xABCD
    registers.TINY = 0xEE
    assert memory[0x1A] == 0xEE


# Interrupts.


def test_msix(function: VfioFunction, fake: FakeFunction, eventfds: list[int]) -> None:
    function.set_irqs(PciIrq.MSIX, 0, eventfds[:4])
    fake.device.interrupts.raise_vector(2)
    assert [signalled(fd) for fd in eventfds] == [0, 0, 1, 0, 0, 0, 0, 0]
    function.trigger_irqs(PciIrq.MSIX, 1, 2)
    assert [signalled(fd) for fd in eventfds[:4]] == [0, 1, 1, 0]
    function.disable_irqs(PciIrq.MSIX)
    fake.device.interrupts.raise_vector(2)
    assert not any(signalled(fd) for fd in eventfds)


def test_vectors_that_do_not_grow(function: VfioFunction, eventfds: list[int]) -> None:
    """VFIO_IRQ_INFO_NORESIZE: "new subindexes cannot be enabled without first disabling the entire index"."""
    function.set_irqs(PciIrq.MSIX, 0, eventfds[:2])
    with pytest.raises(VfioError, match="Invalid argument"):
        function.set_irqs(PciIrq.MSIX, 2, eventfds[2:3])
    function.set_irqs(PciIrq.MSIX, 1, [None])
    function.disable_irqs(PciIrq.MSIX)
    function.set_irqs(PciIrq.MSIX, 0, eventfds[:3])


def test_vectors_that_grow(kernel: FakeKernel, eventfds: list[int]) -> None:
    """Linux 6.4 and later, without NORESIZE."""
    fake = kernel.add(FakeFunction(ADDRESS, Card(), 7, dynamic=True))
    with open_function(ADDRESS, host=kernel, kernel=kernel) as function:
        function.set_command()
        assert function.irq(PciIrq.MSIX).resizable
        function.set_irqs(PciIrq.MSIX, 0, eventfds[:1])
        function.set_irqs(PciIrq.MSIX, 5, eventfds[5:6])
        fake.device.interrupts.raise_vector(5)
        assert signalled(eventfds[5])


def test_fewer_vectors_than_asked_for(
    function: VfioFunction, fake: FakeFunction, eventfds: list[int]
) -> None:
    """The call then answers how many there are (pci_alloc_irq_vectors)."""
    fake.vectors_available = 3
    with pytest.raises(VfioError, match="only 3 vectors") as caught:
        function.set_irqs(PciIrq.MSIX, 0, eventfds)
    assert caught.value.errno == errno.ENOSPC


def test_intx_with_resample(function: VfioFunction, fake: FakeFunction, eventfds: list[int]) -> None:
    """AUTOMASKED: each interrupt masks the line; unmasking signals it again while it stands."""
    trigger, resample = eventfds[:2]
    function.set_irqs(PciIrq.INTX, 0, [trigger])
    fake.device.interrupts.intx.set_level(True)
    assert signalled(trigger) == 1
    function.unmask_irqs(PciIrq.INTX)
    assert signalled(trigger) == 1
    function.set_unmask_eventfd(PciIrq.INTX, resample)
    os.eventfd_write(resample, 1)
    fake.resample()
    assert signalled(trigger) == 1
    fake.device.interrupts.intx.set_level(False)
    function.unmask_irqs(PciIrq.INTX)
    function.mask_irqs(PciIrq.INTX)
    fake.device.interrupts.intx.set_level(True)
    assert not signalled(trigger)
    with pytest.raises(VfioError):
        function.set_irqs(PciIrq.MSIX, 0, eventfds[:1])  # one kind at a time


def test_notifications(function: VfioFunction, fake: FakeFunction, eventfds: list[int]) -> None:
    function.on_error(eventfds[0])
    function.on_request(eventfds[1])
    fake.notify(PciIrq.REQ)
    assert [signalled(fd) for fd in eventfds[:2]] == [0, 1]
    fake.notify(PciIrq.ERR)
    assert [signalled(fd) for fd in eventfds[:2]] == [1, 0]
    function.on_request(None)


# Reset.


def test_reset(function: VfioFunction, fake: FakeFunction) -> None:
    registers = function.registers(0, CardRegisters)
    registers.SMALL = 0x1234
    function.reset()
    assert fake.resets == 1
    assert registers.SMALL == 0
    assert registers.SLOT[0] == 0x600D


def test_reset_of_the_bus(kernel: FakeKernel) -> None:
    """Where the function can't be reset alone; every group on the bus must be ours."""
    fake = kernel.add(FakeFunction(ADDRESS, Card(), 7, can_reset=False))
    second = PcieId(0, 1, 0, 1)
    with open_function(ADDRESS, host=kernel, kernel=kernel) as function:
        assert not function.can_reset
        function.reset()
        assert fake.resets == 1
        fake.siblings = [(8, second)]
        assert function.hot_reset_dependents() == [(7, ADDRESS), (8, second)]
        with pytest.raises(VfioError) as caught:
            function.reset()
        assert "0000:01:00.1 (group 8)" in (caught.value.remedy or "")
        other = kernel.add(FakeFunction(second, Card(), 8))
        with open_function(second, host=kernel, kernel=kernel, space=function.space):
            function.hot_reset()
        assert (fake.resets, other.resets) == (2, 1)


def test_closed(kernel: FakeKernel, fake: FakeFunction) -> None:
    function = open_function(ADDRESS, host=kernel, kernel=kernel)
    function.close()
    function.close()
    with pytest.raises(VfioError, match="closed"):
        function.read(0, 0, 4)
    assert not kernel.files
