"""PCI class codes in words (PCI Code and ID Assignment Specification, section 1)."""

_BASES = {
    0x00: "old device",
    0x01: "storage controller",
    0x02: "network controller",
    0x03: "display controller",
    0x04: "multimedia device",
    0x05: "memory controller",
    0x06: "bridge",
    0x07: "communication controller",
    0x08: "system peripheral",
    0x09: "input controller",
    0x0A: "docking station",
    0x0B: "processor",
    0x0C: "serial bus controller",
    0x0D: "wireless controller",
    0x0E: "intelligent controller",
    0x0F: "satellite controller",
    0x10: "encryption controller",
    0x11: "signal processing controller",
    0x12: "processing accelerator",
    0x13: "instrumentation",
    0xFF: "unassigned class",
}
_CLASSES = {
    0x0101: "IDE controller",
    0x0104: "RAID controller",
    0x0106: "SATA controller",
    0x0107: "SAS controller",
    0x0108: "NVMe controller",
    0x0200: "Ethernet controller",
    0x0207: "InfiniBand controller",
    0x0280: "network controller",
    0x0300: "VGA controller",
    0x0302: "3D controller",
    0x0401: "audio device",
    0x0403: "audio device (HDA)",
    0x0500: "RAM controller",
    0x0502: "CXL memory",
    0x0600: "host bridge",
    0x0601: "ISA bridge",
    0x0604: "PCI bridge",
    0x0700: "serial controller",
    0x0780: "communication controller",
    0x0805: "SD host controller",
    0x0806: "IOMMU",
    0x0807: "event collector",
    0x0C03: "USB controller",
    0x0C05: "SMBus",
    0x0D11: "Bluetooth controller",
}


def class_name(class_code: int) -> str:
    """What a function with this class code is."""
    return _CLASSES.get(class_code >> 8) or _BASES.get(class_code >> 16) or f"class {class_code:06x}"
