"""Faults as the host tells them. Behind the tests of the lab, one of which says that nothing was blocked."""

from __future__ import annotations

import sys

import pytest

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


NOWHERE = 0x3000_0000
"""Above the guest's memory, below its registers."""
MISBEHAVE = f"""
set -e
for each in /sys/bus/pci/devices/*; do
    [ "$(cat $each/vendor) $(cat $each/device)" != "0x1234 0x11e8" ] || edu=$each
done
echo 1 > $edu/enable
printf '\\006\\001' | dd of=$edu/config bs=1 seek=4 conv=notrunc 2>/dev/null
bar=$(head -n 1 $edu/resource | cut -d ' ' -f 1)
register() {{ devmem $((bar + $1)) 32 $2; }}
register 0x80 0x40000; register 0x88 {NOWHERE}; register 0x90 64
echo the guest is about to
sleep 5 # what it said must be out: the machine ends at once
register 0x98 3
sleep 600
echo nobody stopped it
"""
"""edu's registers (QEMU, docs/specs/edu.rst): 64 bytes of its buffer go to NOWHERE."""


@pytest.mark.slow
@pytest.mark.guest
@pytest.mark.timeout(1500)
def test_a_guest_whose_function_makes_a_fault_is_ended(lab: Lab) -> None:
    """`--stop-on-fault`: told with function, machine and reason; exit code 1, long before the guest's own."""
    before = len(lab.iommu_trace())
    edu = str(lab.address("edu0"))
    command = [sys.executable, "-m", "iolane", "run", "--memory", "256M", "--stop-on-fault"]
    refused = lab.run([*command, "--pass", edu, "--", "true"], timeout=300)
    assert refused.exit_code == 1
    assert "can't be reset" in refused.stderr.decode()
    done = lab.run([*command, "--pass", f"{edu},force=on", "--", MISBEHAVE], timeout=1200)
    words = done.stderr.decode()
    assert not done.timed_out, words
    assert done.stdout.decode() == "the guest is about to\n"
    assert done.exit_code == 1
    last = words.splitlines()[-1]
    assert last.startswith(f"iolane: the machine was ended by its IOMMU fault: {edu} (vm"), words
    assert f"DMA write at {NOWHERE:#x} refused by VT-d: " in last
    (first, *_) = lab.iommu_trace()[before:]
    assert (first.source, first.address, first.write) == (lab.address("edu0"), NOWHERE, True)
    assert f"[reason {first.reason:#04x}]" in last
    found = seen(lab, f"seen['driver'] = state(address('{edu}'))")
    assert found["driver"] == [[None, "(null)"]]
