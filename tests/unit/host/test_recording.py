"""Recorded hosts: what identifies a machine stays out, and a hostile file gets nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iolane.errors import IolaneError
from iolane.host.config_space import ConfigSpace
from iolane.host.recorded_files import without_secrets
from iolane.host.recording import FORMAT, Recording, expand, load, record, save
from iolane.host.verdict import Survey
from tests.unit.host.machine import Machine, config_space

UUID = "0c6fd1ad-0f25-4a3b-94c4-6f5c0a2f9c11"
MAC = "52:54:00:aa:bb:cc"


def text_of(recording: Recording) -> str:
    return msgspec.json.encode(recording).decode()


def test_what_identifies_a_machine_is_left_out(machine: Machine) -> None:
    machine.healthy()
    folder = machine.function("0000:01:00.0", kind=0x010802, driver="nvme", group=1, serial="S3CRET")
    machine.interface(
        "enx525400aabbcc", machine.function("0000:02:00.0", driver="igb", group=2, perm_address=MAC)
    )
    machine.file(f"{folder}/nvme/nvme0/serial", "S3CRET")
    whole = machine.block("nvme0n1", f"{folder}/nvme/nvme0", number="259:0", wwid="eui.0025385b71b00000")
    machine.block("nvme0n1p1", whole, number="259:1", partition="1")
    virtual = "sys/devices/virtual/block"
    machine.block("dm-0", virtual, number="253:0", slaves=["nvme0n1p1"], dm__name=f"luks-{UUID}")
    machine.mount("253:0", "/home/alice/secret", source=f"/dev/mapper/luks-{UUID}")
    machine.file("proc/cmdline", f"root=UUID={UUID} intel_iommu=on ip=10.1.2.3 BOOTIF={MAC}")
    machine.default_route("enx525400aabbcc")
    text = text_of(record(machine.host, "a test"))
    assert not re.search(f"S3CRET|alice|10\\.1\\.2\\.3|0102A8C0|525400aabbcc|{MAC}|{UUID}|0025385b", text)
    assert "intel_iommu=on" in text
    assert text.count("luks-secret-") == 2  # the same stand-in where it is named again


def test_a_recorded_host_is_judged_alike(machine: Machine, tmp_path: Path) -> None:
    folder = machine.healthy().function("0000:01:00.0", kind=0x010802, driver="nvme", group=1)
    machine.block("nvme0n1", f"{folder}/nvme/nvme0", number="259:0")
    machine.mount("259:0", "/")
    machine.function("0000:01:00.1", driver="igb", group=1, config=config_space(msix=10))
    save(record(machine.host, "a test"), tmp_path / "file.json")
    (tmp_path / "again").mkdir()
    there, here = Survey(expand(load(tmp_path / "file.json"), tmp_path / "again")), Survey(machine.host)
    assert [there.verdict(each) for each in here.functions] == [here.verdict(each) for each in here.functions]
    assert [each.msix_vectors for each in there.functions.values()] == [0, 10]


def test_of_config_space_only_what_is_read_is_kept() -> None:
    """Vendor specific capabilities, VPD and the serial number may hold what identifies a machine."""
    data = bytearray(config_space(msix=10))
    data[0x91] = 0xC0  # behind MSI-X, a vendor specific capability
    data[0xC0:0xC8] = bytes([0x09, 0x00, 0x08, 0x11, 0x22, 0x33, 0x44, 0x55])
    data[0x100:0x10C] = (0x0003 | 1 << 16 | 0x110 << 20).to_bytes(4, "little") + b"\x11" * 8  # serial number
    data[0x110:0x118] = (0x000D | 1 << 16).to_bytes(4, "little") + b"\x5f\x00\x5f\x00"  # ACS
    kept = without_secrets(bytes(data))
    assert kept[0xC0:0xC8] == bytes([0x09, 0, 0, 0, 0, 0, 0, 0])
    assert kept[0x104:0x10C] == bytes(8)
    assert kept[0x114:0x118] == b"\x5f\x00\x5f\x00"
    assert ConfigSpace(kept).capabilities() == ConfigSpace(bytes(data)).capabilities()
    assert ConfigSpace(kept).msix_vectors == 10
    assert set(ConfigSpace(kept).extended_capabilities()) == {0x03, 0x0D}


@pytest.mark.parametrize(
    "tree",
    [
        {"..": {"x": "y"}},
        {"a/b": "x"},
        {"": "x"},
        {"a": 5},
        {"a": ["x"]},
        {"x@": "/etc/passwd"},
        {"x@": "../outside"},
        {"d": {"x@": "../../outside"}},
        {"a": {"b": {}}, "x@": "a/b", "y@": "x/../../../outside"},
        {"a": {"x@": "../a/../../outside"}},
        {"a": {}, "a@": "b"},
        {"a#": "16 8:0011223344556677889900"},
        {"a#": "x"},
        {"a#": "16 zz:00"},
    ],
)
def test_a_hostile_recording_gets_nowhere(tree: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "root"
    folder.mkdir(parents=True)
    with pytest.raises(IolaneError):
        expand(Recording(FORMAT, "hostile", tree), folder)
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]
    assert list((tmp_path / "deep").iterdir()) == [folder]


def test_a_huge_file_is_not_made(tmp_path: Path) -> None:
    expand(Recording(FORMAT, "hostile", {"a#": str(1 << 60)}), tmp_path)
    assert (tmp_path / "a").stat().st_size == 1 << 20


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b'{"format":"x","about":"","tree":{}}'])
def test_what_is_no_recording_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(IolaneError, match=r"file\.json"):
        load(path)
