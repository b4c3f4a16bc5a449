"""Our layouts are the kernel's: sizes and offsets as the C compiler sees them (package linux-libc-dev)."""

import re
import subprocess
from pathlib import Path
from struct import Struct

import pytest

from iolane.uapi import iommufd, nvme_ioctl, vfio_layouts

INCLUDE = Path("/usr/include/linux")
# Our layout: (the struct, its last member, how many bytes that ends before the end of ours).
VFIO = {
    "GROUP_STATUS": ("vfio_group_status", "flags", 0),
    "DEVICE_INFO": ("vfio_device_info", "cap_offset", 4),
    "INFO_CAP_HEADER": ("vfio_info_cap_header", "next", 0),
    "REGION_INFO": ("vfio_region_info", "offset", 0),
    "REGION_INFO_CAP_SPARSE_MMAP": ("vfio_region_info_cap_sparse_mmap", "reserved", 0),
    "REGION_SPARSE_MMAP_AREA": ("vfio_region_sparse_mmap_area", "size", 0),
    "IRQ_INFO": ("vfio_irq_info", "count", 0),
    "IRQ_SET": ("vfio_irq_set", "count", 0),
    "PCI_HOT_RESET_INFO": ("vfio_pci_hot_reset_info", "count", 0),
    "PCI_DEPENDENT_DEVICE": ("vfio_pci_dependent_device", "devfn", 0),
    "PCI_HOT_RESET": ("vfio_pci_hot_reset", "count", 0),
    "IOMMU_TYPE1_INFO": ("vfio_iommu_type1_info", "cap_offset", 4),
    "IOMMU_TYPE1_INFO_CAP_IOVA_RANGE": ("vfio_iommu_type1_info_cap_iova_range", "reserved", 0),
    "IOVA_RANGE": ("vfio_iova_range", "end", 0),
    "IOMMU_TYPE1_INFO_CAP_MIGRATION": ("vfio_iommu_type1_info_cap_migration", "max_dirty_bitmap_size", 0),
    "IOMMU_TYPE1_INFO_DMA_AVAIL": ("vfio_iommu_type1_info_dma_avail", "avail", 0),
    "IOMMU_TYPE1_DMA_MAP": ("vfio_iommu_type1_dma_map", "size", 0),
    "IOMMU_TYPE1_DMA_UNMAP": ("vfio_iommu_type1_dma_unmap", "size", 0),
    "IOMMU_TYPE1_DIRTY_BITMAP": ("vfio_iommu_type1_dirty_bitmap", "flags", 0),
    "IOMMU_TYPE1_DIRTY_BITMAP_GET": ("vfio_iommu_type1_dirty_bitmap_get", "bitmap", 0),
    "DEVICE_BIND_IOMMUFD": ("vfio_device_bind_iommufd", "out_devid", 0),
    "DEVICE_ATTACH_IOMMUFD_PT": ("vfio_device_attach_iommufd_pt", "pt_id", 0),
}
NEWER = {"DEVICE_BIND_IOMMUFD", "DEVICE_ATTACH_IOMMUFD_PT"}
"""Linux 6.6: compared where the header has them."""
IOMMUFD = {
    "DESTROY": ("iommu_destroy", "id", 0),
    "IOAS_ALLOC": ("iommu_ioas_alloc", "out_ioas_id", 0),
    "IOAS_IOVA_RANGES": ("iommu_ioas_iova_ranges", "out_iova_alignment", 0),
    "IOVA_RANGE": ("iommu_iova_range", "last", 0),
    "IOAS_MAP": ("iommu_ioas_map", "iova", 0),
    "IOAS_UNMAP": ("iommu_ioas_unmap", "length", 0),
}
IOMMUFD_CONSTANTS = {f"IOMMU_{name}": value for name, value in iommufd.Ioctl.__members__.items()} | {
    f"IOMMU_IOAS_MAP_{name}": value for name, value in iommufd.MapFlags.__members__.items()
}


def _printed(header: str, expressions: dict[str, str], directory: Path) -> dict[str, int]:
    lines = "".join(
        f'  printf("{name} %lld\\n", (long long)({text}));\n' for name, text in expressions.items()
    )
    source = directory / "values.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <sys/ioctl.h>\n"
        f"#include <linux/{header}>\nint main(void) {{\n{lines}}}\n"
    )
    subprocess.run(["gcc", "-w", "-o", directory / "values", source], check=True)
    printed = subprocess.run([directory / "values"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in printed.splitlines())}


def _compare(
    header: str, module: object, table: dict[str, tuple[str, str, int]], newer: set[str], directory: Path
) -> None:
    ours = {name: item.size for name, item in vars(module).items() if isinstance(item, Struct)}
    assert ours.keys() == table.keys()
    text = (INCLUDE / header).read_text()
    known = {name for name, (struct, _, _) in table.items() if re.search(rf"\bstruct {struct}\b", text)}
    assert set(table) - known <= newer
    ends = {
        name: f"offsetof(struct {struct}, {last}) + sizeof(((struct {struct} *)0)->{last}) + {padding}"
        for name, (struct, last, padding) in table.items()
        if name in known
    }
    assert {name: ours[name] for name in known} == _printed(header, ends, directory)


def test_vfio_layouts(tmp_path: Path) -> None:
    _compare("vfio.h", vfio_layouts, VFIO, NEWER, tmp_path)


def test_iommufd(tmp_path: Path) -> None:
    if not (INCLUDE / "iommufd.h").exists():
        pytest.skip(
            "NOT COMPARED: this machine's linux-libc-dev is older than 6.2 and has no linux/iommufd.h"
        )
    _compare("iommufd.h", iommufd, IOMMUFD, set(), tmp_path)
    constants = {name: name for name in IOMMUFD_CONSTANTS}
    assert _printed("iommufd.h", constants, tmp_path) == {k: int(v) for k, v in IOMMUFD_CONSTANTS.items()}


def test_nvme_ioctl(tmp_path: Path) -> None:
    _compare(
        "nvme_ioctl.h", nvme_ioctl, {"PASSTHRU_CMD": ("nvme_passthru_cmd", "result", 0)}, set(), tmp_path
    )
    name = "NVME_IOCTL_ADMIN_CMD"
    assert _printed("nvme_ioctl.h", {name: name}, tmp_path) == {name: nvme_ioctl.IOCTL_ADMIN_CMD}
