"""Writes small sysfs and procfs trees: what a test says of a machine, as Linux would show it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from iolane.host.sysfs import Host

ENDPOINT, ROOT_PORT = 0x0, 0x4


def config_space(
    *, msix: int = 0, header_type: int = 0, express: int | None = ENDPOINT, msi: int = 0, size: int = 4096
) -> bytes:
    """Capabilities MSI at 0x40, PCI Express at 0x60, MSI-X at 0x90, in this order, those that are wanted."""
    data = bytearray(size)
    data[0x0E] = header_type
    wanted = [(0x05, 0x40, msi > 0), (0x10, 0x60, express is not None), (0x11, 0x90, msix > 0)]
    pointer = 0x34
    for number, at, present in wanted:
        if present:
            data[0x06] = 0x10
            data[pointer], data[at] = at, number
            pointer = at + 1
    if msi:
        data[0x42] = (msi.bit_length() - 1) << 1
    if express is not None:
        data[0x62] = 0x02 | express << 4
    if msix:
        data[0x92:0x94] = (msix - 1).to_bytes(2, "little")
    return bytes(data)


class Machine:
    """A folder that becomes a host's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = Host(root)
        for folder in ("sys/bus/pci/devices", "sys/bus/pci/drivers", "sys/kernel/iommu_groups", "proc/self"):
            (root / folder).mkdir(parents=True)
        self.file("sys/bus/pci/drivers_probe", "")

    def file(self, path: str, content: str | bytes) -> None:
        """One file with its folders."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def link(self, path: str, target: str) -> None:
        """A link relative to its folder, as sysfs makes them."""
        source, aim = self.root / path.lstrip("/"), self.root / target.lstrip("/")
        source.parent.mkdir(parents=True, exist_ok=True)
        source.symlink_to(os.path.relpath(aim, source.parent))

    def function(
        self,
        address: str,
        *,
        under: str = "",
        ids: str = "8086:10c9",
        kind: int = 0x02_0000,
        driver: str | None = None,
        group: int | None = None,
        bars: Sequence[tuple[int, int, int]] = ((0xF000_0000, 0xF001_FFFF, 0x140204),),
        config: bytes | None = None,
        reset: str | None = "flr bus",
        **attributes: str,
    ) -> str:
        """A PCI function; `under` has the ports above it, as `0000:00:1c.0/`. Returns its folder."""
        folder = f"sys/devices/pci{address[:4]}:00/{under}{address}"
        vendor, device = ids.split(":")
        lines = [f"{start:#018x} {end:#018x} {flags:#018x}" for start, end, flags in bars]
        lines += [f"{0:#018x} {0:#018x} {0:#018x}"] * (7 - len(lines))
        written = {
            "vendor": f"0x{vendor}",
            "device": f"0x{device}",
            "subsystem_vendor": "0x8086",
            "subsystem_device": "0x0001",
            "class": f"{kind:#08x}",
            "revision": "0x01",
            "resource": "\n".join(lines),
            "driver_override": "(null)",
            "numa_node": "-1",
            "power_state": "D0",
            **attributes,
        }
        if reset is not None:
            written["reset_method"] = reset
        for name, text in written.items():
            self.file(f"{folder}/{name.replace('__', '/')}", text + "\n")
        self.file(f"{folder}/config", config_space() if config is None else config)
        self.link(f"sys/bus/pci/devices/{address}", folder)
        if group is not None:
            self.group(group)
            self.link(f"{folder}/iommu_group", f"sys/kernel/iommu_groups/{group}")
            self.link(f"sys/kernel/iommu_groups/{group}/devices/{address}", folder)
        if driver is not None:
            self.bind(address, driver)
        return folder

    def driver(self, name: str) -> None:
        """A driver that is loaded."""
        for attribute in ("bind", "unbind", "new_id"):
            self.file(f"sys/bus/pci/drivers/{name}/{attribute}", "")

    def bind(self, address: str, driver: str) -> None:
        """Tie a function to a driver."""
        if not (self.root / f"sys/bus/pci/drivers/{driver}").exists():
            self.driver(driver)
        folder = str(
            (self.root / f"sys/bus/pci/devices/{address}").resolve().relative_to(self.root.resolve())
        )
        self.link(f"{folder}/driver", f"sys/bus/pci/drivers/{driver}")
        self.link(f"sys/bus/pci/drivers/{driver}/{address}", folder)

    def group(self, number: int, *, type: str = "DMA-FQ", regions: str | None = None) -> None:
        """An IOMMU group; the interrupt window of x86 unless said otherwise."""
        folder = f"sys/kernel/iommu_groups/{number}"
        if (self.root / folder).exists() and regions is None:
            return
        (self.root / folder / "devices").mkdir(parents=True, exist_ok=True)
        self.file(f"{folder}/type", type + "\n")
        self.file(f"{folder}/reserved_regions", regions or "0x00000000fee00000 0x00000000feefffff msi\n")

    def iommu(self, unit: str = "dmar0", *, ecap: int = 0x8, width: int = 48) -> None:
        """An IOMMU with its unit's registers and, since it is whole, interrupt remapping in use."""
        folder = f"sys/devices/virtual/iommu/{unit}"
        self.link(f"sys/class/iommu/{unit}", folder)
        (self.root / folder).mkdir(parents=True)
        if unit.startswith("dmar"):
            self.file(f"{folder}/intel-iommu/cap", f"{(width - 1) << 16:x}\n")
            self.file(f"{folder}/intel-iommu/ecap", f"{ecap:x}\n")
        self.interrupts("IR-IO-APIC", "IR-PCI-MSI")

    def interrupts(self, *chips: str) -> None:
        """/proc/interrupts with an interrupt of each chip."""
        lines = [f"{number:4}:  7  0 {chip}  {number}-edge  x" for number, chip in enumerate(chips)]
        self.file("proc/interrupts", "\n".join(["      CPU0 CPU1", *lines, "NMI:  0  0  Non-maskable\n"]))

    def processor(self, vendor: str = "GenuineIntel", *, virtual: bool = False) -> None:
        """/proc/cpuinfo."""
        flags = "fpu vme vmx" + (" hypervisor" if virtual else "")
        self.file("proc/cpuinfo", f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n")

    def block(self, name: str, under: str, *, number: str, slaves: Sequence[str] = (), **files: str) -> str:
        """A block device below the folder `under`; `slaves` are those it is made of. Returns its folder."""
        folder = f"{under}/{name}"
        self.file(f"{folder}/dev", f"{number}\n")
        for path, text in files.items():
            self.file(f"{folder}/{path.replace('__', '/')}", text + "\n")
        (self.root / folder / "slaves").mkdir(exist_ok=True)
        (self.root / folder / "holders").mkdir(exist_ok=True)
        self.link(f"sys/class/block/{name}", folder)
        for slave in slaves:
            below = str(self.path_of_block(slave))
            self.link(f"{folder}/slaves/{slave}", below)
            self.link(f"{below}/holders/{name}", folder)
        return folder

    def path_of_block(self, name: str) -> Path:
        """Where a block device is, from the root."""
        return (self.root / "sys/class/block" / name).resolve().relative_to(self.root.resolve())

    def mount(self, number: str, point: str, *, kind: str = "ext4", source: str = "/dev/x") -> None:
        """A line of mountinfo (proc(5))."""
        path = self.root / "proc/self/mountinfo"
        before = path.read_text() if path.exists() else ""
        self.file(
            "proc/self/mountinfo", f"{before}27 1 {number} / {point} rw shared:1 - {kind} {source} rw\n"
        )

    def interface(self, name: str, under: str = "sys/devices/virtual", *, lower: Sequence[str] = ()) -> None:
        """A network interface, on top of others if said."""
        folder = f"{under}/net/{name}"
        self.file(f"{folder}/type", "1\n")
        self.link(f"sys/class/net/{name}", folder)
        for each in lower:
            self.link(f"{folder}/lower_{each}", f"sys/class/net/{each}")

    def default_route(self, interface: str, *, version: int = 4) -> None:
        """The way to everything else."""
        if version == 4:
            header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
            line = f"{interface}\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
            self.file("proc/net/route", header + line)
        else:
            zero = "0" * 32
            line = f"{zero} 00 {zero} 00 fe80{'0' * 28} 00000400 00000001 00000000 00000003 {interface}\n"
            reject = f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
            self.file("proc/net/ipv6_route", line + reject)

    def healthy(self) -> Machine:
        """All that passthrough needs: an IOMMU, interrupt remapping, vfio-pci."""
        self.processor()
        self.iommu()
        self.driver("vfio-pci")
        return self
