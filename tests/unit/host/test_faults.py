"""Faults in the words of kernels from 3.x to 6.x, and whose they were.

The lines are in the form of drivers/iommu/intel/dmar.c and drivers/iommu/amd/iommu.c at the versions named.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from iolane.errors import IolaneError
from iolane.host.fault_monitor import FaultLedger, FaultMonitor
from iolane.host.fault_reasons import AMD_EVENTS, FaultKind, vtd_reason
from iolane.host.faults import Fault, FaultReader, Unseen
from iolane.host.kmsg import KernelLog, parse_record
from iolane.host.sysfs import Host
from iolane.model.pci.pcie_id import PcieId
from tests.unit.host.machine import Machine

DMA, INTERRUPT, OTHER = FaultKind.DMA, FaultKind.INTERRUPT, FaultKind.OTHER
NIC = PcieId(0, 1, 0, 0)


def record(text: str, *, sequence: int = 7, properties: str = "") -> bytes:
    """As read(2) on /dev/kmsg gives it."""
    return f"3,{sequence},5000000,-;{text}\n{properties}".encode()


def read(*texts: str, properties: str = "") -> list[Fault | Unseen]:
    reader = FaultReader()
    found: list[Fault | Unseen] = []
    for text in texts:
        parsed = parse_record(record(text, properties=properties).decode())
        assert parsed is not None
        found += reader.read(parsed)
    return found


def only(*texts: str, properties: str = "") -> Fault:
    [fault] = read(*texts, properties=properties)
    assert isinstance(fault, Fault)
    return fault


VTD = [
    # 3.x, 4.x: the number decimal, addresses without 0x
    (
        "DMAR: [DMA Write] Request device [00:02.0] fault addr 6df084000 [fault reason 05] x",
        ("00:02.0", DMA, "write", 0x6_DF08_4000, None, 5),
    ),
    # 5.10
    (
        "DMAR: [DMA Read] Request device [01:00.0] PASID ffffffff fault addr 2000000 [fault reason 06] x",
        ("01:00.0", DMA, "read", 0x200_0000, None, 6),
    ),
    # 5.15 to 6.18: everything hexadecimal
    (
        "DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0x2000000 [fault reason 0x05] x",
        ("01:00.0", DMA, "write", 0x200_0000, None, 5),
    ),
    (
        "DMAR: [DMA Read PASID 0x3] Request device [81:00.1] fault addr 0x7f0000000000 [fault reason 0x71] x",
        ("81:00.1", DMA, "read", 0x7F00_0000_0000, None, 0x71),
    ),
    (
        "DMAR: [INTR-REMAP] Request device [01:00.0] fault index 0x1ff0 [fault reason 0x22] x",
        ("01:00.0", INTERRUPT, None, None, 0x1FF0, 0x22),
    ),
    # 4.x, 5.10: reason 37 is 0x25
    (
        "DMAR: [INTR-REMAP] Request device [f0:1f.0] fault index 1600 [fault reason 37] x",
        ("f0:1f.0", INTERRUPT, None, None, 0x1600, 0x25),
    ),
    # 5.12 and 5.13 wrote the address so
    (
        "DMAR: [INTR-REMAP] Request device [0xc9:0x05.0] fault index 0xa00 [fault reason 0x25] Blocked",
        ("c9:05.0", INTERRUPT, None, None, 0xA00, 0x25),
    ),
]


@pytest.mark.parametrize(("line", "expected"), VTD)
def test_vtd(line: str, expected: tuple[object, ...]) -> None:
    fault = only(line)
    found = (fault.requester, fault.kind, fault.direction, fault.address, fault.index, fault.code)
    assert found == expected
    assert (fault.iommu, fault.time, fault.sequence) == ("VT-d", 5.0, 7)


def test_vtd_pasid() -> None:
    assert only(VTD[3][0]).pasid == 3
    assert [only(line).pasid for line, _ in (VTD[0], VTD[1], VTD[2])] == [None] * 3
    older = "DMAR: [DMA Read] Request device [01:00.0] PASID 12 fault addr 0 [fault reason 06] x"
    assert only(older).pasid == 0x12


@pytest.mark.parametrize("together", [True, False])
def test_vtd_in_two_lines(together: bool) -> None:
    """Before 4.8 the reason had a line of its own, in the same record or in the next."""
    lines = (
        "DMAR:[DMA Write] Request device [00:02.0] fault addr 6df084000 ",
        "DMAR:[fault reason 05] PTE Write access is not set",
    )
    fault = only("\\x0a".join(lines)) if together else only(lines[0], "usb 1-1: something else", lines[1])
    assert (fault.requester, fault.code, fault.address) == ("00:02.0", 5, 0x6_DF08_4000)


LOGGED = "AMD-Vi: Event logged ["
AMD = [
    # before 5.x, and now for functions the kernel has no data of
    (
        LOGGED + "IO_PAGE_FAULT device=0a:00.0 domain=0x001d address=0x000000000637c000 flags=0x0000]",
        ("0a:00.0", DMA, None, 0x637_C000, 0x1D, "nothing mapped there"),
    ),
    # since 6.0 with segment
    (
        LOGGED + "IO_PAGE_FAULT device=0000:c1:00.0 domain=0x0007 address=0xff000 flags=0x0070]",
        ("0000:c1:00.0", DMA, "write", 0xFF000, 7, "no write permission"),
    ),
    # since 4.x by the function itself
    (
        "vfio-pci 0000:04:10.0: " + LOGGED + "IO_PAGE_FAULT domain=0x0037 address=0x7b657064 flags=0x0050]",
        ("0000:04:10.0", DMA, "read", 0x7B65_7064, 0x37, "no read permission"),
    ),
    (
        "vfio-pci 0000:04:10.0: " + LOGGED + "IO_PAGE_FAULT domain=0x0037 address=0x1000 flags=0x0020]",
        ("0000:04:10.0", DMA, "write", 0x1000, 0x37, "nothing mapped there"),
    ),
    (
        "nvme 0000:02:00.0: " + LOGGED + "IO_PAGE_FAULT domain=0x0002 address=0xfee00000 flags=0x0008]",
        ("0000:02:00.0", INTERRUPT, None, 0xFEE0_0000, 2, "interrupt entry not present"),
    ),
    # by the IOMMU, whose own address comes first
    (
        "pci 0000:00:00.2: AMD-Vi: Event logged [INVALID_DEVICE_REQUEST device=41:00.0 pasid=0x00000 "
        "address=0xfffffffdf8000000 flags=0x0a00]",
        ("41:00.0", DMA, None, 0xFFFF_FFFD_F800_0000, None, AMD_EVENTS["INVALID_DEVICE_REQUEST"][1]),
    ),
    (
        "iommu ivhd0: AMD-Vi: Event logged [ILLEGAL_DEV_TABLE_ENTRY device=0000:00:00.0 pasid=0x00000 "
        "address=0xfffffffdf8000000 flags=0x0080]",
        ("0000:00:00.0", OTHER, None, 0xFFFF_FFFD_F800_0000, None, "device table entry is illegal"),
    ),
    (
        "AMD-Vi: Event logged [IOTLB_INV_TIMEOUT device=0000:03:00.0 address=0x10cd2f0a0]",
        ("0000:03:00.0", OTHER, None, 0x1_0CD2_F0A0, None, AMD_EVENTS["IOTLB_INV_TIMEOUT"][1]),
    ),
]


@pytest.mark.parametrize(("line", "expected"), AMD)
def test_amd_vi(line: str, expected: tuple[object, ...]) -> None:
    fault = only(line)
    found = (fault.requester, fault.kind, fault.direction, fault.address, fault.domain, fault.reason)
    assert found == expected
    assert fault.iommu == "AMD-Vi"


def test_amd_vi_by_the_records_properties() -> None:
    """dev_err names its device in the record's dictionary."""
    properties = " SUBSYSTEM=pci\n DEVICE=+pci:0000:04:10.0\n"
    fault = only(
        "AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0001 address=0x0 flags=0x0000]", properties=properties
    )
    assert fault.requester == "0000:04:10.0"


def test_amd_vi_events_of_nobody() -> None:
    fault = only("AMD-Vi: Event logged [COMMAND_HARDWARE_ERROR address=0x10 flags=0x0000]")
    assert (fault.requester, fault.kind) == ("unknown", OTHER)
    assert "which is not in the table" in only("AMD-Vi: Event logged [NEW_EVENT address=0x10]").reason


@pytest.mark.parametrize(
    ("line", "unseen"),
    [
        ("dmar_fault: 153 callbacks suppressed", Unseen(suppressed=153)),
        ("amd_iommu_report_page_fault: 12 callbacks suppressed", Unseen(suppressed=12)),
        ("DMAR: DRHD: handling fault status reg 3", Unseen(overflow=True)),
        ("AMD-Vi: IOMMU event log overflow", Unseen(overflow=True)),
        ("AMD-Vi: IOMMU Event log restarting", Unseen(overflow=True)),
    ],
)
def test_what_was_not_said_is_counted(line: str, unseen: Unseen) -> None:
    assert read(line) == [unseen]


@pytest.mark.parametrize(
    "line",
    [
        "DMAR: DRHD: handling fault status reg 2",
        "DMAR: Dump dmar1 table entries for IOVA 0x2000000",
        "audit: 12 callbacks suppressed",
        "DMAR: [fault reason 05] PTE Write access is not set",  # without its fault
        "DMAR: [DMA Write NO_PASID] Request device [zz:00.0] fault addr 0x2000000 [fault reason 0x05] x",
        "AMD-Vi: Interrupt remapping enabled",
    ],
)
def test_other_lines_are_no_faults(line: str) -> None:
    assert read(line) == []


def test_every_reason_has_a_kind() -> None:
    assert {vtd_reason(code)[0] for code in range(0x20, 0x29)} == {INTERRUPT}
    assert {vtd_reason(code)[0] for code in (*range(0x20), *range(0x30, 0x100))} == {DMA}


def test_a_fault_in_words() -> None:
    assert str(only(VTD[2][0])) == (
        "01:00.0: DMA write at 0x2000000 refused by VT-d: "
        "no write permission, or nothing mapped there [reason 0x05]"
    )
    assert str(only(VTD[4][0])).startswith("01:00.0: interrupt with index 0x1ff0 refused by VT-d: ")


@pytest.mark.parametrize("data", ["", "nonsense", "6,1;x", "6,a,b,-;x", ";", "6,1,2,-"])
def test_records_that_are_none(data: str) -> None:
    assert parse_record(data) is None


class Log(KernelLog):
    """A kernel log whose records a test writes."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        super().__init__(theirs.detach())
        self._writer = ours

    def say(self, *texts: str) -> None:
        for text in texts:
            self._writer.send(record(text))

    def end(self) -> None:
        self._writer.close()


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.end()
    log.close()


WRITE = "DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0x{:x} [fault reason 0x05] PTE"


def test_faults_are_attributed_and_counted(machine: Machine, log: Log) -> None:
    machine.function("0000:01:00.0")
    ledger = FaultLedger(machine.host, machine_of={NIC: "guest"}.get, history=3)
    log.say(*(WRITE.format(page << 12) for page in range(5)), "dmar_fault: 9 callbacks suppressed")
    log.say("DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr 0x0 [fault reason 0x06] PTE Read")
    log.say("DMAR: DRHD: handling fault status reg 3")
    assert len(ledger.take_in(log)) == 6
    report = ledger.report()
    assert [(fault.function, fault.machine) for fault in report.faults] == [
        ("0000:01:00.0", "guest"),
        ("0000:01:00.0", "guest"),
        (None, None),  # no function of the host has that id
    ]
    assert [(each.function, each.machine, each.count) for each in report.counts] == [
        ("0000:01:00.0", "guest", 5),
        ("02:00.0", None, 1),
    ]
    assert (report.suppressed, report.overflows) == (9, 1)


def test_an_id_in_two_segments_is_nobodys(machine: Machine, log: Log) -> None:
    """VT-d's message has no segment: guessing would accuse the wrong one."""
    machine.function("0000:01:00.0")
    machine.function("10000:01:00.0")
    ledger = FaultLedger(machine.host)
    log.say(WRITE.format(0))
    log.say(f"vfio-pci 0000:01:00.0: {LOGGED}IO_PAGE_FAULT domain=0x1 address=0x0 flags=0x0]")
    assert [fault.function for fault in ledger.take_in(log)] == [None, "0000:01:00.0"]


def test_a_function_of_many_ids_fills_nothing(machine: Machine, log: Log) -> None:
    """Hostile: every bus, device and function as requester."""
    ledger = FaultLedger(machine.host)
    for number in range(0x600):
        address = PcieId.from_routing(number)
        log.say(str(WRITE.format(0)).replace("01:00.0", str(address)[5:]))
        ledger.take_in(log)
    counts = ledger.report().counts
    assert len(counts) == 1025
    assert sum(each.count for each in counts) == 0x600


def test_the_monitor_tells_of_each_fault(machine: Machine, log: Log) -> None:
    machine.function("0000:01:00.0")
    told: list[Fault] = []
    second = threading.Event()

    def notify(fault: Fault) -> None:
        told.append(fault)
        if len(told) == 2:
            second.set()
        raise RuntimeError("a listener's mistake")

    monitor = FaultMonitor(machine.host, notify=notify, machine_of={NIC: "guest"}.get, log=log)
    with monitor:
        log.say(WRITE.format(0x1000), WRITE.format(0x2000))
        assert second.wait(10)
    assert [fault.address for fault in told] == [0x1000, 0x2000]
    assert monitor.report().counts[0].count == 2
    assert log.descriptor == -1


def test_a_machine_is_stopped_at_its_first_fault(machine: Machine, log: Log) -> None:
    machine.function("0000:01:00.0")
    stopped: list[tuple[str, int | None]] = []
    done = threading.Event()

    def stop(name: str, fault: Fault) -> None:
        stopped.append((name, fault.address))
        done.set()

    monitor = FaultMonitor(machine.host, machine_of={NIC: "guest"}.get, stop_machine=stop, log=log)
    with monitor:
        log.say(WRITE.format(0x1000), WRITE.format(0x2000))
        assert done.wait(10)
    assert stopped == [("guest", 0x1000)]


def test_the_monitor_ends_with_its_log(machine: Machine, log: Log) -> None:
    monitor = FaultMonitor(machine.host, log=log)
    monitor.start()
    thread = monitor._thread
    assert thread is not None
    log.end()
    thread.join(10)
    assert not thread.is_alive()
    monitor.stop()
    monitor.stop()


def test_a_log_that_may_not_be_read(machine: Machine) -> None:
    with pytest.raises(IolaneError, match=r"dev/kmsg: no such file.*dmesg_restrict=0"):
        KernelLog.open(machine.host)


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="/dev/kmsg can't be read here")
def test_the_real_log_can_be_read() -> None:
    with KernelLog.open(Host()) as log:
        first = log.read()
    assert first is not None
    with KernelLog.open(Host(), from_now=True) as log:
        newest = log.read()
        assert newest is None or newest.sequence > first.sequence
