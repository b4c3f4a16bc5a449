"""Identify: NVM Express Base 2.0c, 5.17, and NVM Command Set 1.0c, 4.1.5."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.devices.nvme import Nvme
from iolane.devices.nvme.spec import AdminOpcode, Cns, Status
from iolane.errors import IolaneError
from iolane.testing.nvme_driver import NvmeDriver
from tests.unit.devices.nvme.conftest import DISK, Make


def u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def u64(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def test_controller(make: Make) -> None:
    driver = make(serial="SN 42")
    driver.enable()
    page = driver.identify(Cns.CONTROLLER)
    device = driver.device
    assert (u16(page, 0), u16(page, 2)) == (device.vendor_id, device.subsystem_vendor_id)
    assert page[4:24] == b"SN 42".ljust(20)
    assert page[24:64].rstrip() == b"iolane NVMe"
    assert 4096 << page[77] == 1 << 20
    assert u32(page, 80) == driver.read_register(8) == 0x20000
    assert page[111] == 1
    assert u16(page, 256) == 1 << 8
    assert (page[512], page[513]) == (0x66, 0x44)
    assert u32(page, 516) == 1
    assert page[525] & 1
    assert page[768:1024].rstrip(b"\0").startswith(b"nqn.2014-08.org.nvmexpress:uuid:")


@pytest.mark.parametrize("lba_size", [512, 4096])
def test_namespace(make: Make, lba_size: int) -> None:
    driver = make(lba_size=lba_size)
    driver.enable()
    page = driver.identify(Cns.NAMESPACE, 1)
    assert u64(page, 0) == u64(page, 8) == u64(page, 16) == DISK // lba_size
    assert (page[25], page[26] & 0xF) == (0, 0)
    assert 1 << page[130] == lba_size
    assert u16(page, 128) == 0
    assert page[99] == 0


def test_lists_of_namespaces(make: Make) -> None:
    driver = make(backends=[MemoryBackend(DISK) for _ in range(3)])
    driver.enable()
    for cns in (Cns.ACTIVE_NAMESPACES, Cns.COMMAND_SET_ACTIVE_NAMESPACES):
        assert struct.unpack_from("<4I", driver.identify(cns, 0)) == (1, 2, 3, 0)
        assert struct.unpack_from("<4I", driver.identify(cns, 2)) == (3, 0, 0, 0)


def test_descriptors_are_stable_and_differ(make: Make) -> None:
    """Base 5.17.2.3: the same disk of the same controller has the same UUID at the next start."""
    found = []
    for serial in ("A", "A", "B"):
        driver = make(serial=serial, backends=[MemoryBackend(DISK), MemoryBackend(DISK)])
        driver.enable()
        found.append([driver.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)[:28] for nsid in (1, 2)])
    assert found[0] == found[1]
    assert len({*found[0], *found[2]}) == 4
    descriptor = found[0][0]
    assert descriptor[:4] == bytes((3, 16, 0, 0))
    assert descriptor[20:25] == bytes((4, 1, 0, 0, 0))


def test_command_sets_as_linux_asks_for_them(driver: NvmeDriver) -> None:
    assert driver.identify(Cns.COMMAND_SET_CONTROLLER) == bytes(4096)
    assert driver.identify(Cns.COMMAND_SET_NAMESPACE, 1) == bytes(4096)
    assert driver.identify(Cns.INDEPENDENT_NAMESPACE, 1)[14] == 1
    assert u64(driver.identify(Cns.COMMAND_SETS | 0xFFFF << 16), 0) == 1


@pytest.mark.parametrize(
    ("cns", "nsid", "csi", "status"),
    [
        (0x7F, 0, 0, Status.INVALID_FIELD),
        (Cns.NAMESPACE, 0, 0, Status.INVALID_NAMESPACE),
        (Cns.NAMESPACE, 2, 0, Status.INVALID_NAMESPACE),
        (Cns.NAMESPACE, 0xFFFFFFFF, 0, Status.INVALID_NAMESPACE),
        (Cns.ACTIVE_NAMESPACES, 0xFFFFFFFE, 0, Status.INVALID_NAMESPACE),
        (Cns.NAMESPACE_DESCRIPTORS, 7, 0, Status.INVALID_NAMESPACE),
        (Cns.COMMAND_SET_CONTROLLER, 0, 2, Status.INVALID_FIELD),
        (Cns.COMMAND_SET_NAMESPACE, 1, 2, Status.INVALID_FIELD),
        (Cns.COMMAND_SETS | 7 << 16, 0, 0, Status.INVALID_FIELD),
    ],
)
def test_what_does_not_exist(driver: NvmeDriver, cns: int, nsid: int, csi: int, status: Status) -> None:
    completion = driver.admin(
        AdminOpcode.IDENTIFY, nsid=nsid, prp1=driver.memory.base, cdw10=cns, cdw11=csi << 24
    )
    assert completion.status == status


def test_a_buffer_outside_memory(driver: NvmeDriver) -> None:
    assert driver.admin(AdminOpcode.IDENTIFY, prp1=0x1000, cdw10=1).status == Status.DATA_TRANSFER_ERROR
    assert driver.admin(AdminOpcode.IDENTIFY, prp1=1, cdw10=1).status == Status.INVALID_PRP_OFFSET


def test_an_image_in_a_file(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(8192))
    with NvmeDriver(Nvme(image)) as driver:
        driver.enable()
        driver.create_queues(1)
        driver.check(driver.write(3, b"f" * 512))
    assert image.read_bytes()[3 * 512 : 4 * 512] == b"f" * 512


def test_what_no_controller_can_be_made_of(tmp_path: Path) -> None:
    odd = tmp_path / "odd.raw"
    odd.write_bytes(bytes(1000))
    disk = MemoryBackend(DISK)
    attempts: tuple[tuple[str, Callable[[], Nvme]], ...] = (
        ("needs a disk", lambda: Nvme()),
        ("not a whole number of 512-byte blocks", lambda: Nvme(odd)),
        ("there is no image", lambda: Nvme(tmp_path / "missing")),
        ("512 or 4096 bytes", lambda: Nvme(backend=disk, lba_size=520)),
        ("blocks of 4096 bytes", lambda: Nvme(backend=MemoryBackend(DISK, block_size=4096))),
        ("serial number", lambda: Nvme(backend=disk, serial="x" * 21)),
        ("1 to 16 queues", lambda: Nvme(backend=disk, queues=17)),
    )
    for words, make in attempts:
        with pytest.raises(IolaneError, match=words):
            make()
    odd.write_bytes(bytes(1024))
    Nvme(odd).close()  # the attempts left no lock behind
