"""Faults as the host tells them. Behind the tests of the lab, one of which says that nothing was blocked."""

from __future__ import annotations

from iolane.lab.machine import Lab
from tests.lab.scripts import seen


def test_a_fault_is_told_with_its_function(lab: Lab) -> None:
    """edu writes to an address that nobody mapped: the monitor tells, QEMU's IOMMU has recorded the same."""
    before = len(lab.iommu_trace())
    found = seen(
        lab,
        """
import struct, threading, msgspec
from iolane.carriers.vfio.open import open_function
from iolane.host.dma import reach
from iolane.host.fault_monitor import FaultMonitor, collect
edu = address(sys.argv[1])
told, some = [], threading.Event()
def notify(fault):
    told.append(fault)
    some.set()
with Taking([edu], force=True), FaultMonitor(notify=notify, machine_of=lambda each: "guest") as monitor:
    seen["idle"] = reach(Host(), edu).now
    with open_function(edu) as function:
        config = 7
        command = struct.unpack("<H", function.read(config, 4, 2))[0]
        function.write(config, 4, struct.pack("<H", command | 6))
        for offset, value in ((0x80, 0x40000), (0x88, 0x200_0000), (0x90, 64), (0x98, 3)):
            function.write(0, offset, struct.pack("<I", value))
        some.wait(60)
        seen["held"] = reach(Host(), edu).holder
    seen["faults"] = [msgspec.to_builtins(each) for each in told]
    seen["counts"] = msgspec.to_builtins(monitor.report().counts)
seen["collected"] = [each.function for each in collect(Host()).faults]
seen["driver"] = state(edu)
""",
        lab.address("edu0"),
    )
    edu = str(lab.address("edu0"))
    fault = found["faults"][0]
    assert (fault["iommu"], fault["kind"], fault["direction"]) == ("VT-d", "dma", "write")
    assert (fault["function"], fault["machine"], fault["address"]) == (edu, "guest", 0x200_0000)
    assert fault["code"] in (2, 5)
    assert found["counts"][0]["count"] >= 1
    assert found["counts"][0]["function"] == edu
    assert edu in found["collected"]
    assert "nobody has it open" in found["idle"]
    assert found["held"].startswith("process ")
    assert found["driver"] == [[None, "(null)"]]
    assert len(lab.iommu_trace()) > before
