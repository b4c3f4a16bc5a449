"""Our constants are the kernel's: each is compared with this machine's header (package linux-libc-dev)."""

import re
import subprocess
import types
from enum import Enum
from pathlib import Path

import pytest

from iolane.uapi import pci, pcie, vfio

# What each class stands for in the header: (prefix, suffix).
VFIO = {
    "IommuType": ("VFIO_", ""),
    "Ioctl": ("VFIO_", ""),
    "GroupFlags": ("VFIO_GROUP_FLAGS_", ""),
    "DeviceFlags": ("VFIO_DEVICE_FLAGS_", ""),
    "PciHotResetFlags": ("VFIO_PCI_HOT_RESET_FLAG_", ""),
    "RegionFlags": ("VFIO_REGION_INFO_FLAG_", ""),
    "RegionCap": ("VFIO_REGION_INFO_CAP_", ""),
    "PciRegion": ("VFIO_PCI_", "_REGION_INDEX"),
    "PciIrq": ("VFIO_PCI_", "_IRQ_INDEX"),
    "IrqInfo": ("VFIO_IRQ_INFO_", ""),
    "IrqSet": ("VFIO_IRQ_SET_", ""),
    "IoeventfdFlags": ("VFIO_DEVICE_IOEVENTFD", ""),
    "FeatureFlags": ("VFIO_DEVICE_FEATURE_", ""),
    "Feature": ("VFIO_DEVICE_FEATURE_", ""),
    "MigrationFlags": ("VFIO_MIGRATION_", ""),
    "DeviceState": ("VFIO_DEVICE_STATE_", ""),
    "IommuInfo": ("VFIO_IOMMU_INFO_", ""),
    "IommuCap": ("VFIO_IOMMU_TYPE1_INFO_", ""),
    "DmaMapFlags": ("VFIO_DMA_MAP_FLAG_", ""),
    "DmaUnmapFlags": ("VFIO_DMA_UNMAP_FLAG_", ""),
    "DirtyPagesFlags": ("VFIO_IOMMU_DIRTY_PAGES_FLAG_", ""),
}
VFIO_CONSTANTS = {
    "API_VERSION": "VFIO_API_VERSION",
    "PCI_NUM_REGIONS": "VFIO_PCI_NUM_REGIONS",
    "PCI_NUM_IRQS": "VFIO_PCI_NUM_IRQS",
    "FEATURE_MASK": "VFIO_DEVICE_FEATURE_MASK",
}
PCI = {
    "Header": "PCI_",
    "BridgeHeader": "PCI_",
    "Command": "PCI_COMMAND_",
    "Status": "PCI_STATUS_",
    "HeaderType": "PCI_HEADER_TYPE_",
    "BaseAddress": "PCI_BASE_ADDRESS_",
    "Capability": "PCI_CAP_ID_",
    "PowerManagement": "PCI_PM_",
    "PmCap": "PCI_PM_CAP_",
    "PmControl": "PCI_PM_CTRL_",
    "Msi": "PCI_MSI_",
    "MsiFlags": "PCI_MSI_FLAGS_",
    "Msix": "PCI_MSIX_",
    "MsixFlags": "PCI_MSIX_FLAGS_",
    "MsixEntry": "PCI_MSIX_ENTRY_",
}
PCIE = {
    "ExtendedCapability": "PCI_EXT_CAP_ID_",
    "Express": "PCI_EXP_",
    "ExpressType": "PCI_EXP_TYPE_",
    "DevCap": "PCI_EXP_DEVCAP_",
    "DevCtl": "PCI_EXP_DEVCTL_",
    "DevSta": "PCI_EXP_DEVSTA_",
    "LnkCap": "PCI_EXP_LNKCAP_",
    "LnkCtl": "PCI_EXP_LNKCTL_",
    "LnkSta": "PCI_EXP_LNKSTA_",
    "DevCap2": "PCI_EXP_DEVCAP2_",
    "DevCtl2": "PCI_EXP_DEVCTL2_",
    "Aer": "PCI_ERR_",
    "AerUncorrectable": "PCI_ERR_UNC_",
    "AerCorrectable": "PCI_ERR_COR_",
    "AerCap": "PCI_ERR_CAP_",
    "Ari": "PCI_ARI_",
    "AriCap": "PCI_ARI_CAP_",
    "Sriov": "PCI_SRIOV_",
    "SriovCap": "PCI_SRIOV_CAP_",
    "SriovStatus": "PCI_SRIOV_STATUS_",
    "SriovCtrl": "PCI_SRIOV_CTRL_",
}
# Newer than the oldest header that we are tested with (Linux 6.1): compared where the header has them.
NEWER_VFIO = {
    "VFIO_DEVICE_BIND_IOMMUFD",
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
    "VFIO_DEVICE_DETACH_IOMMUFD_PT",
    "VFIO_PCI_HOT_RESET_FLAG_DEV_ID",
    "VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED",
    "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE",
    "VFIO_DEVICE_FEATURE_BUS_MASTER",
    "VFIO_MIGRATION_PRE_COPY",
    "VFIO_DEVICE_STATE_PRE_COPY",
    "VFIO_DEVICE_STATE_PRE_COPY_P2P",
}


def _members(module: types.ModuleType) -> dict[str, dict[str, int]]:
    """The enum classes of a module, aliases included."""
    return {
        name: {member: int(value.value) for member, value in kind.__members__.items()}
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Enum) and kind.__module__ == module.__name__
    }


def _constants(module: types.ModuleType) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if name.isupper() and type(value) is int}


def _ours(module: types.ModuleType, classes: dict[str, tuple[str, str]]) -> dict[str, int]:
    found = _members(module)
    assert found.keys() == classes.keys()
    ours: dict[str, int] = {}
    for name, (prefix, suffix) in classes.items():
        for member, value in found[name].items():
            if prefix.endswith("_"):
                member = member.removeprefix("_")  # _66MHZ: a name can't begin with a digit
            ours[f"{prefix}{member}{suffix}"] = value
    return ours


def _theirs(header: str, names: dict[str, int], newer: set[str], directory: Path) -> dict[str, int]:
    """The values that the C compiler sees, of the names that the header knows."""
    text = Path("/usr/include/linux", header).read_text()
    known = sorted(name for name in names if re.search(rf"\b{name}\b", text))
    assert set(names) - set(known) <= newer
    source = directory / "values.c"
    lines = "".join(f'  printf("%s %lld\\n", "{name}", (long long)({name}));\n' for name in known)
    source.write_text(
        "#include <stdio.h>\n#include <sys/ioctl.h>\n"
        f"#include <linux/{header}>\nint main(void) {{\n{lines}}}\n"
    )
    subprocess.run(["gcc", "-w", "-o", directory / "values", source], check=True)
    printed = subprocess.run([directory / "values"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in printed.splitlines())}


def _compare(header: str, ours: dict[str, int], newer: set[str], directory: Path) -> None:
    theirs = _theirs(header, ours, newer, directory)
    assert len(theirs) > 60
    assert {name: ours[name] for name in theirs} == theirs


def test_vfio(tmp_path: Path) -> None:
    ours = _ours(vfio, VFIO)
    constants = _constants(vfio)
    assert constants.keys() == VFIO_CONSTANTS.keys()
    ours |= {VFIO_CONSTANTS[name]: value for name, value in constants.items()}
    _compare("vfio.h", ours, NEWER_VFIO, tmp_path)


@pytest.mark.parametrize(("module", "classes"), [(pci, PCI), (pcie, PCIE)], ids=["pci", "pcie"])
def test_pci_regs(module: types.ModuleType, classes: dict[str, str], tmp_path: Path) -> None:
    ours = _ours(module, {name: (prefix, "") for name, prefix in classes.items()})
    ours |= {f"PCI_{name}": value for name, value in _constants(module).items()}
    _compare("pci_regs.h", ours, set(), tmp_path)
