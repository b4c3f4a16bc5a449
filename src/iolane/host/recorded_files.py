"""Which files of a host are recorded, and what is left out of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from iolane.host.block import BLOCK
from iolane.host.config_space import ConfigSpace
from iolane.host.function import DEVICES
from iolane.host.iommu import TABLES, UNITS
from iolane.host.iommu_group import GROUPS
from iolane.host.network import INTERFACES
from iolane.host.sysfs import Host
from iolane.host.vfio_driver import DRIVERS
from iolane.uapi.pci import CFG_SPACE_SIZE, STD_HEADER_SIZEOF, Capability
from iolane.uapi.pcie import ExtendedCapability

Content = str | bytes | PurePosixPath | None
_ATTRIBUTES = [
    "vendor",
    "device",
    "subsystem_vendor",
    "subsystem_device",
    "class",
    "revision",
    "resource",
    "driver_override",
    "numa_node",
    "power_state",
    "dma_mask_bits",
    "consistent_dma_mask_bits",
    "boot_vga",
    "removable",
    "reset_method",
    "d3cold_allowed",
    "power/wakeup",
    "sriov_totalvfs",
    "sriov_numvfs",
    "sriov_drivers_autoprobe",
    "sriov_offset",
    "sriov_stride",
    "sriov_vf_device",
    "ari_enabled",
]
_LINKS = re.compile(r"driver|iommu_group|iommu|physfn|virtfn\d+")
_PARAMETERS = re.compile(r"iommu|intremap|vfio|apic|^pci|efifb|video")
_CHIPS = re.compile(r"\b(?:IR-)?(?:IO-APIC|PCI-MSIX?)\b")
_FLAGS = ("vmx", "svm", "hypervisor")
_POINTS = re.compile(r"/(?:boot(?:/efi)?|home|var(?:/log)?|srv|usr|opt|tmp)?")
_NVME = re.compile(r"nvme\d+")
_SECRET = re.compile(
    r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
    r"|(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}"
    r"|(?<=enx)[0-9a-f]{12}"
    r"|(?<=eui\.)[0-9a-f]+|(?<=nqn\.)\S+|(?<=by-id/)\S+"
)
_KEPT = {Capability.PM: 8, Capability.EXP: 60, Capability.MSIX: 12, Capability.AF: 6, Capability.MSI: 4}
_KEPT_EXTENDED = {
    ExtendedCapability.ACS: 8,
    ExtendedCapability.ARI: 8,
    ExtendedCapability.ATS: 8,
    ExtendedCapability.SRIOV: 64,
}


def recorded_files(host: Host) -> Iterator[tuple[str, Content]]:
    """Path and content of everything recorded. The same secret has the same stand-in everywhere."""
    redact = _Redactor()
    for path, content in _files(host):
        if isinstance(content, PurePosixPath):
            content = PurePosixPath(redact(str(content)))
        elif isinstance(content, str):
            content = redact(content)
        yield redact(path), content


class _Redactor:
    """Replaces what tells one machine from another of its model."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        return _SECRET.sub(
            lambda match: self._names.setdefault(match[0].lower(), f"secret-{len(self._names)}"), text
        )


def _files(host: Host) -> Iterator[tuple[str, Content]]:
    yield from _functions(host)
    yield from _groups(host)
    yield from _units(host)
    yield from _network(host)
    yield from _blocks(host)
    yield from _kernel(host)


def _linked(host: Host, path: str) -> Iterator[tuple[str, Content]]:
    if (real := host.real(path)) is not None and host.link(path) is not None:
        yield path, PurePosixPath(real)


def _texts(host: Host, folder: str, names: list[str]) -> Iterator[tuple[str, Content]]:
    for name in names:
        if (text := host.read(f"{folder}/{name}")) is not None:
            yield f"{folder}/{name}", text


def _functions(host: Host) -> Iterator[tuple[str, Content]]:
    for name in host.names(DEVICES):
        yield from _linked(host, f"{DEVICES}/{name}")
        real = host.real(f"{DEVICES}/{name}")
        if real is None:
            continue
        yield from _texts(host, real, _ATTRIBUTES)
        if not host.exists(f"{real}/reset_method") and host.exists(f"{real}/reset"):
            yield f"{real}/reset", ""
        yield f"{real}/config", without_secrets(host.read_bytes(f"{real}/config") or b"")
        for link in host.names(real):
            if _LINKS.fullmatch(link):
                yield from _linked(host, f"{real}/{link}")
    for name in host.names(DRIVERS):
        yield f"{DRIVERS}/{name}", None


def without_secrets(config: bytes) -> bytes:
    """A config space with its header and the capabilities that the inventory reads; of others their place."""
    kept = bytearray(len(config))
    kept[:STD_HEADER_SIZEOF] = config[:STD_HEADER_SIZEOF]
    space = ConfigSpace(config)
    for number, at in space.all_capabilities():
        size = _KEPT.get(Capability(number), 2) if number in set(Capability) else 2
        end = min(at + size, CFG_SPACE_SIZE)
        kept[at:end] = config[at:end]
    for number, at in space.all_extended_capabilities():
        known = number in set(ExtendedCapability)
        size = _KEPT_EXTENDED.get(ExtendedCapability(number), 4) if known else 4
        kept[at : at + size] = config[at : at + size]
    return bytes(kept)


def _groups(host: Host) -> Iterator[tuple[str, Content]]:
    for number in host.names(GROUPS):
        folder = f"{GROUPS}/{number}"
        yield from _texts(host, folder, ["type", "reserved_regions"])
        for name in host.names(f"{folder}/devices"):
            yield from _linked(host, f"{folder}/devices/{name}")


def _units(host: Host) -> Iterator[tuple[str, Content]]:
    for name in host.names(UNITS):
        yield from _linked(host, f"{UNITS}/{name}")
        if (real := host.real(f"{UNITS}/{name}")) is not None:
            yield real, None
            yield from _texts(host, f"{real}/intel-iommu", ["cap", "ecap", "version"])
            yield from _texts(host, f"{real}/amd-iommu", ["cap", "features"])
    for table in ("DMAR", "IVRS"):
        if host.exists(f"{TABLES}/{table}"):
            yield f"{TABLES}/{table}", ""


def _network(host: Host) -> Iterator[tuple[str, Content]]:
    for name in host.names(INTERFACES):
        real = host.real(f"{INTERFACES}/{name}")
        if real is None:
            continue
        yield from _linked(host, f"{INTERFACES}/{name}")
        yield from _texts(host, real, ["type", "operstate"])
        for lower in host.names(real):
            if lower.startswith("lower_"):
                yield from _linked(host, f"{real}/{lower}")
        for port in host.names(f"{real}/brif"):
            yield from _linked(host, f"{real}/brif/{port}")
    lines = [line.rstrip() for line in (host.read("/proc/net/route") or "").splitlines()]
    default = [line for line in lines[1:] if line.split()[1:2] == ["00000000"]]
    if lines:
        kept = [re.sub(r"^(\S+\s+00000000\s+)\S+", r"\g<1>00000000", line) for line in default]
        yield "/proc/net/route", "\n".join([lines[0], *kept])
    default = [line for line in (host.read("/proc/net/ipv6_route") or "").splitlines() if " 00 " in line[:36]]
    if default:
        words = [line.split() for line in default if len(line.split()) == 10]
        yield "/proc/net/ipv6_route", "\n".join(" ".join([*each[:4], "0" * 32, *each[5:]]) for each in words)


def _blocks(host: Host) -> Iterator[tuple[str, Content]]:
    for name in host.names(BLOCK):
        real = host.real(f"{BLOCK}/{name}")
        if real is None or name.startswith(("loop", "ram", "zram")):
            continue
        yield from _linked(host, f"{BLOCK}/{name}")
        yield real, None
        yield from _texts(host, real, ["dev", "partition", "dm/name"])
        for relation in ("slaves", "holders"):
            for other in host.names(f"{real}/{relation}"):
                yield from _linked(host, f"{real}/{relation}/{other}")
        if "/nvme-subsystem/" in real:
            subsystem = real[: real.rindex("/")]
            for controller in host.names(subsystem):
                path = f"{subsystem}/{controller}"
                if _NVME.fullmatch(controller) and (aim := host.real(path)) is not None:
                    yield aim, None
                    yield from _linked(host, path)
    for system in host.names("/sys/fs/btrfs"):
        for name in host.names(f"/sys/fs/btrfs/{system}/devices"):
            yield from _linked(host, f"/sys/fs/btrfs/{system}/devices/{name}")


def _kernel(host: Host) -> Iterator[tuple[str, Content]]:
    release = host.read("/proc/sys/kernel/osrelease") or ""
    yield "/proc/sys/kernel/osrelease", release
    for name in ("modules.dep", "modules.builtin"):
        text = host.read(f"/lib/modules/{release}/{name}")
        if text is not None:
            lines = [
                line.partition(":")[0] + ":" for line in text.splitlines() if "vfio" in line.partition(":")[0]
            ]
            yield f"/lib/modules/{release}/{name}", "\n".join(lines)
    for module in ("vfio", "vfio_pci", "vfio_iommu_type1", "iommufd"):
        folder = f"/sys/module/{module}/parameters"
        yield from _texts(host, folder, host.names(folder))
    words = (host.read("/proc/cmdline") or "").split()
    yield "/proc/cmdline", " ".join(word for word in words if _PARAMETERS.search(word))
    yield "/proc/cpuinfo", _processor(host.read("/proc/cpuinfo") or "")
    chips = dict.fromkeys(_CHIPS.findall(host.read("/proc/interrupts") or ""))
    yield "/proc/interrupts", "\n".join(f"{number}: 0 {chip} 0-edge" for number, chip in enumerate(chips))
    yield "/proc/self/mountinfo", "\n".join(_mounts(host))
    lines = (host.read("/proc/swaps") or "").splitlines()
    swaps = [line.split()[0] for line in lines[1:] if line.startswith("/dev/")]
    yield (
        "/proc/swaps",
        "\n".join(["Filename Type Size Used Priority", *(f"{swap} partition 0 0 0" for swap in swaps)]),
    )


def _processor(text: str) -> str:
    first = text.split("\n\n")[0].splitlines()
    lines = [line for line in first if line.startswith(("vendor_id", "model name"))]
    flags = next((line for line in first if line.startswith("flags")), "").partition(":")[2].split()
    return "\n".join([*lines, f"flags\t\t: {' '.join(flag for flag in flags if flag in _FLAGS)}"])


def _mounts(host: Host) -> Iterator[str]:
    """Those of block devices; mount points of one's own are numbered."""
    points: dict[str, str] = {}
    for line in (host.read("/proc/self/mountinfo") or "").splitlines():
        words = line.split()
        if "-" not in words or not words[-2].startswith("/dev/"):
            continue
        point = words[4]
        if _POINTS.fullmatch(point) is None:
            point = points.setdefault(point, f"/mount-{len(points)}")
        at = words.index("-")
        yield f"1 1 {words[2]} / {point} rw - {words[at + 1]} {words[at + 2]} rw"
