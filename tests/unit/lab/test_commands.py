"""What `iolane lab` makes of its command line, and how faults are told."""

from __future__ import annotations

import subprocess

import pytest

from iolane.errors import IolaneError
from iolane.lab.commands import fault_of, parse_devices
from iolane.lab.fault_trace import parse_trace
from iolane.lab.hardware import DEFAULT_DEVICES, Kind
from iolane.lab.shell import shell_line


def test_devices_named_replace_the_default_ones() -> None:
    assert parse_devices([]) == DEFAULT_DEVICES
    assert parse_devices(["none"]) == ()
    assert [device.kind for device in parse_devices(["edu", "nvme,vfs=2"])] == [Kind.EDU, Kind.NVME]
    with pytest.raises(IolaneError, match="'none' beside other devices"):
        parse_devices(["none", "edu"])


def test_a_fault_is_told_in_words() -> None:
    lines = [
        "vtd_dmar_fault sid 0x200 fault 5 addr 0xdead0000 write 1",
        "vtd_dmar_fault sid 0x200 fault 6 addr 0xdead0000 write 0",
        f"vtd_frr_new index 0 high {1 << 63 | 0x22 << 32 | 0x100:#x} low {7 << 48:#x}",
        "amdvi_page_fault error: page fault accessing guest physical address 0xdead0000",
    ]
    assert [str(fault_of(record)) for record in parse_trace("\n".join(lines))] == [
        "0000:02:00.0: a write at 0xdead0000, reason 0x5",
        "0000:02:00.0: a read at 0xdead0000, reason 0x6",
        "0000:01:00.0: an interrupt, table entry 0x7, reason 0x22",
        "a device: an access at 0xdead0000",
    ]


def test_the_shell_line_is_one_for_sh() -> None:
    line = shell_line("/a folder", {"PS1": r"lab:\w\$ ", "A": "b c"}, 80, 24)
    assert subprocess.run(["sh", "-n", "-c", line]).returncode == 0
