"""Virtio's numbers are the kernel's: each is compared with this machine's headers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from iolane.devices.virtio.block.config import BlockConfig
from iolane.devices.virtio.block.features import BlockFeature
from iolane.devices.virtio.console.config import ConsoleConfig
from iolane.devices.virtio.console.features import ConsoleFeature
from iolane.model.registers import RegisterMap
from iolane.model.virtio.features import Feature
from iolane.model.virtio.pci.registers import CommonRegisters
from iolane.model.virtio.status import Status
from iolane.uapi import virtio

HEADERS = ("config", "ids", "ring", "pci", "blk", "console")
# Named otherwise in the header, or younger than the oldest header that we are tested with (Linux 6.1).
ALIASES = {
    "VIRTIO_F_INDIRECT_DESC": "VIRTIO_RING_F_INDIRECT_DESC",
    "VIRTIO_F_EVENT_IDX": "VIRTIO_RING_F_EVENT_IDX",
}
YOUNGER = {
    "VIRTIO_F_ADMIN_VQ",
    "VIRTIO_F_NOTIF_CONFIG_DATA",
    "VIRTIO_F_NOTIFICATION_DATA",
    "VIRTIO_BLK_F_ZONED",
}
ENUMS = {
    virtio.DeviceType: "VIRTIO_ID_",
    virtio.DescriptorFlag: "VRING_DESC_F_",
    virtio.PciStructure: "VIRTIO_PCI_CAP_",
    virtio.BlockRequest: "VIRTIO_BLK_T_",
    virtio.BlockStatus: "VIRTIO_BLK_S_",
    virtio.ConsoleEvent: "VIRTIO_CONSOLE_",
    Feature: "VIRTIO_F_",
    Status: "VIRTIO_CONFIG_S_",
    BlockFeature: "VIRTIO_BLK_F_",
    ConsoleFeature: "VIRTIO_CONSOLE_F_",
}
CONSTANTS = {
    "VRING_AVAIL_F_NO_INTERRUPT": virtio.AVAIL_F_NO_INTERRUPT,
    "VRING_USED_F_NO_NOTIFY": virtio.USED_F_NO_NOTIFY,
    "VIRTIO_MSI_NO_VECTOR": virtio.NO_VECTOR,
    "VIRTIO_BLK_ID_BYTES": virtio.BLK_ID_BYTES,
    "VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP": virtio.BLK_WRITE_ZEROES_FLAG_UNMAP,
    "VIRTIO_CONSOLE_BAD_ID": virtio.CONSOLE_BAD_ID & 0xFFFF_FFFF,
}


def _values(expressions: list[str], folder: Path) -> dict[str, int]:
    """What the C compiler sees of expressions."""
    lines = "".join(f'  printf("%s %lld\\n", "{text}", (long long)({text}));\n' for text in expressions)
    includes = "".join(f"#include <linux/virtio_{name}.h>\n" for name in HEADERS)
    (folder / "values.c").write_text(
        f"#include <stdio.h>\n#include <stddef.h>\n{includes}int main(void) {{\n{lines}}}\n"
    )
    subprocess.run(["gcc", "-w", "-o", folder / "values", folder / "values.c"], check=True)
    printed = subprocess.run([folder / "values"], check=True, capture_output=True, text=True).stdout
    return {text: int(value) for text, _, value in (line.rpartition(" ") for line in printed.splitlines())}


def test_numbers(tmp_path: Path) -> None:
    ours = dict(CONSTANTS)
    for kind, prefix in ENUMS.items():
        for member in kind:
            name = f"{prefix}{member.name}"
            ours[ALIASES.get(name, name)] = int(member.value)
    text = "".join(Path(f"/usr/include/linux/virtio_{name}.h").read_text() for name in HEADERS)
    known = [name for name in ours if re.search(rf"\b{name}\b", text)]
    assert set(ours) - set(known) <= YOUNGER
    theirs = {name: value & 0xFFFF_FFFF for name, value in _values(known, tmp_path).items()}
    assert {name: ours[name] for name in known} == theirs
    assert len(known) > 60


def _places(registers: type[RegisterMap], struct: str, fields: dict[str, str]) -> dict[str, int]:
    declared = {spec.name: spec.offset for spec in registers.layout.registers}
    return {f"offsetof(struct {struct}, {field})": declared[name] for name, field in fields.items()}


def test_structures(tmp_path: Path) -> None:
    block = {spec.name: spec.name.lower() for spec in BlockConfig.layout.registers}
    block |= {name: f"geometry.{name.lower()}" for name in ("CYLINDERS", "HEADS", "SECTORS")}
    block["WRITEBACK"] = "wce"
    console = {"COLS": "cols", "ROWS": "rows", "MAX_NR_PORTS": "max_nr_ports", "EMERG_WR": "emerg_wr"}
    common = {
        "DEVICE_FEATURE_SELECT": "device_feature_select",
        "DEVICE_FEATURE": "device_feature",
        "DRIVER_FEATURE_SELECT": "guest_feature_select",
        "DRIVER_FEATURE": "guest_feature",
        "CONFIG_MSIX_VECTOR": "msix_config",
        "NUM_QUEUES": "num_queues",
        "DEVICE_STATUS": "device_status",
        "CONFIG_GENERATION": "config_generation",
        "QUEUE_SELECT": "queue_select",
        "QUEUE_SIZE": "queue_size",
        "QUEUE_MSIX_VECTOR": "queue_msix_vector",
        "QUEUE_ENABLE": "queue_enable",
        "QUEUE_NOTIFY_OFF": "queue_notify_off",
        "QUEUE_DESC": "queue_desc_lo",
        "QUEUE_DRIVER": "queue_avail_lo",
        "QUEUE_DEVICE": "queue_used_lo",
    }
    wanted = _places(BlockConfig, "virtio_blk_config", block)
    wanted |= _places(ConsoleConfig, "virtio_console_config", console)
    wanted |= _places(CommonRegisters, "virtio_pci_common_cfg", common)
    assert _values(list(wanted), tmp_path) == wanted
