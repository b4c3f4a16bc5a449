"""The hardware of a lab: what `--iommu` and `--device` name, and QEMU's arguments for it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from iolane.devices.specification import IDENTIFIER, split_commas
from iolane.engines.qemu.command_line import SWITCHED_OFF, Board
from iolane.errors import IolaneError
from iolane.model.pci.pcie_id import PcieId

FIRST_PORT = 0x10
"""Device number on bus 0 of the first root port; what is behind the n-th of them is on bus n."""
FIRST_INTEGRATED = 0x08
"""Device number on bus 0 of the first conventional function."""
LAST_PORT = 0x1E
"""Device 0x1f is q35's own: LPC bridge, AHCI and SMBus controllers, which share an IOMMU group."""
LARGEST_DISK = 1 << 40
NVME_QUEUE_PAIRS = 64
"""For I/O, in QEMU's controller unless it is told otherwise. It has a vector for each, and one more."""
VF_RESOURCES = 2
"""Queue pairs, and as many vectors, for each virtual function of an NVMe controller."""
SIZES = {"K": 10, "M": 20, "G": 30}


class Iommu(StrEnum):
    """The IOMMU of the emulated host."""

    VTD = "vtd"
    AMD = "amd"
    NONE = "none"


class Kind(StrEnum):
    """What can be put into the lab."""

    IGB = "igb"
    NVME = "nvme"
    E1000E = "e1000e"
    EDU = "edu"

    @property
    def express(self) -> bool:
        """Whether it sits behind a PCI Express root port of its own."""
        return self is not Kind.EDU


OPTIONS = {
    Kind.IGB: ("id", "net", "mac"),
    Kind.NVME: ("id", "image", "size", "vfs"),
    Kind.E1000E: ("id", "net", "mac"),
    Kind.EDU: ("id", "dma_mask"),
}
"""The keys of each kind."""


@dataclass(frozen=True)
class LabDevice:
    """One device of the lab. Each kind uses the fields that `OPTIONS` lists for it."""

    kind: Kind
    id: str = ""
    """By default the kind and a number: nvme0."""
    image: Path | None = None
    """What is on the disk; it is written to. By default a fresh sparse file that begins with a pattern."""
    size: int = 64 << 20
    """Bytes of a fresh disk."""
    vfs: int = 0
    """Virtual functions that the NVMe controller offers."""
    net: str = "user"
    """What the NIC is plugged into: `user` (QEMU's own network, 10.0.2.0/24), `hub` (the other NICs that say
    so), `unix:PATH` (a stream socket that listens: frames behind their length, u32 big-endian), or `none`."""
    mac: str = ""
    dma_mask: int = (1 << 28) - 1
    """The addresses that edu's DMA engine can reach."""


DEFAULT_DEVICES = (
    LabDevice(Kind.IGB),
    LabDevice(Kind.NVME),
    LabDevice(Kind.E1000E),
    LabDevice(Kind.EDU),
)


def parse_device(text: str) -> LabDevice:
    """`NAME[,key=value...]`; raises `IolaneError` in one line that quotes the argument."""
    name, *pairs = split_commas(text)
    if name not in tuple(Kind):
        close = difflib.get_close_matches(name, list(Kind), 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(Kind)}"
        raise IolaneError(f"device '{text}': the lab has no '{name}'", remedy=hint)
    kind = Kind(name)
    given: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not value or key not in OPTIONS[kind]:
            known = ", ".join(f"{option}=" for option in OPTIONS[kind])
            raise IolaneError(f"device '{text}': '{pair}' means nothing to {kind}", remedy=f"it has {known}")
        if key in given:
            raise IolaneError(f"device '{text}': {key} is given twice")
        given[key] = value
    try:
        return check_device(_from_words(kind, given))
    except IolaneError as error:
        raise IolaneError(f"device '{text}': {error.message}", remedy=error.remedy) from error


def _from_words(kind: Kind, given: dict[str, str]) -> LabDevice:
    device = LabDevice(kind, id=given.get("id", ""), net=given.get("net", "user"), mac=given.get("mac", ""))
    if "image" in given:
        if "size" in given:
            raise IolaneError("image= brings its own size", remedy="leave out size=")
        device = replace(device, image=Path(given["image"]))
    if "size" in given:
        device = replace(device, size=parse_size(given["size"]))
    if "vfs" in given:
        device = replace(device, vfs=_integer("vfs", given["vfs"]))
    if "dma_mask" in given:
        device = replace(device, dma_mask=_integer("dma_mask", given["dma_mask"]))
    return device


def _integer(key: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise IolaneError(f"{key}={text} is not a number") from None


def parse_size(text: str) -> int:
    """`64M`, `1G` or bytes.

    >>> parse_size("64M") == 64 << 20
    True
    """
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in SIZES else (text, "")
    if not number.isdecimal():
        raise IolaneError(f"'{text}' is not a size", remedy="for example 64M or 1G")
    return int(number) << SIZES.get(unit, 0)


def check_device(device: LabDevice) -> LabDevice:
    """The device itself; raises `IolaneError` for what QEMU would refuse or silently misunderstand."""
    if device.id and not IDENTIFIER.fullmatch(device.id):
        raise IolaneError(f"'{device.id}' is not an id", remedy="a letter, then letters, digits, _ . -")
    if device.image is not None and not device.image.is_file():
        raise IolaneError(f"{device.image}: no such image", remedy=f"truncate -s 64M {device.image}")
    if device.image is None and not (1 << 20 <= device.size <= LARGEST_DISK and device.size % 512 == 0):
        raise IolaneError(f"size {device.size} is not whole sectors between 1M and 1024G")
    if not 0 <= device.vfs <= 127:
        raise IolaneError(f"vfs={device.vfs} is not a number of virtual functions from 0 to 127")
    if device.mac and not re.fullmatch(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}", device.mac):
        raise IolaneError(f"{device.mac} is not the address of one station", remedy="52:54:00:12:34:56")
    if device.net not in ("user", "hub", "none") and not device.net.startswith("unix:"):
        raise IolaneError(f"net={device.net} is not known", remedy="user, hub, none or unix:PATH")
    if not 0 < device.dma_mask < 1 << 64:
        raise IolaneError(f"dma_mask={device.dma_mask:#x} is not a mask of 64 bits")
    return device


@dataclass(frozen=True)
class PlacedDevice:
    """A device with its id and its place."""

    device: LabDevice
    id: str
    address: PcieId
    port: int = 0
    """The number of its root port, from 1; 0: on bus 0."""


def place(devices: Iterable[LabDevice]) -> list[PlacedDevice]:
    """Each device with an id and the address it will have: the firmware numbers buses in the order of the
    root ports, and nothing else has a bus behind it."""
    placed: list[PlacedDevice] = []
    counts = dict.fromkeys(Kind, 0)
    ports = integrated = 0
    for device in devices:
        identity = device.id or f"{device.kind}{counts[device.kind]}"
        counts[device.kind] += 1
        if device.kind.express:
            ports += 1
            placed.append(PlacedDevice(device, identity, PcieId(0, ports, 0, 0), ports))
        else:
            address = PcieId(0, 0, FIRST_INTEGRATED + integrated, 0)
            integrated += 1
            placed.append(PlacedDevice(device, identity, address))
    if FIRST_PORT + ports - 1 > LAST_PORT or FIRST_INTEGRATED + integrated > FIRST_PORT:
        raise IolaneError(
            f"{len(placed)} devices are too many for one lab",
            remedy=f"at most {LAST_PORT - FIRST_PORT + 1} PCI Express devices and "
            f"{FIRST_PORT - FIRST_INTEGRATED} others",
        )
    names = [each.id for each in placed]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise IolaneError(f"two devices are called {doubled[0]}", remedy="give one another id=")
    return placed


def board(iommu: Iommu) -> Board:
    """q35 as a physical host has it: with its AHCI and SMBus controllers and, unless none, an IOMMU."""
    present = ("sata", "smbus")
    first = {
        Iommu.VTD: ("-device", "intel-iommu,intremap=on"),
        Iommu.AMD: ("-device", "amd-iommu,intremap=on,dma-remap=on"),
        Iommu.NONE: (),
    }[iommu]
    return Board(
        properties=() if iommu is Iommu.NONE else ("kernel-irqchip=split",),
        switched_off=[part for part in SWITCHED_OFF if part not in present],
        first=first,
        tcg=("thread=multi", "tb-size=512"),
    )


def kernel_parameters(iommu: Iommu) -> list[str]:
    """What the lab's kernel is told about its IOMMU. AMD-Vi is used without being asked."""
    return ["intel_iommu=on"] if iommu is Iommu.VTD else []


def device_arguments(devices: Sequence[PlacedDevice], images: dict[str, Path]) -> list[str]:
    """QEMU's arguments for all devices; `images` has the file of each disk, by id."""
    arguments: list[str] = []
    for each in devices:
        if each.port:
            number = FIRST_PORT + each.port - 1
            port = f"pcie-root-port,id=rp{each.port},bus=pcie.0,addr={number:#x},chassis={each.port}"
            arguments += ["-device", f"{port},slot={each.port}"]
    for each in devices:
        if each.device.kind is Kind.EDU:
            slot = f"addr={each.address.device:#x}"
            arguments += ["-device", f"edu,id={each.id},{slot},dma_mask={each.device.dma_mask:#x}"]
        elif each.device.kind is Kind.NVME:
            arguments += _nvme(each, images[each.id])
        else:
            arguments += _nic(each)
    return arguments


def _nvme(placed: PlacedDevice, image: Path) -> list[str]:
    name, vfs = placed.id, placed.device.vfs
    flexible = f",{_flexible(vfs)}" if vfs else ""
    # Private to one controller, it would be no disk of a virtual function; shared, Linux adds multipath.
    shared = "on" if vfs else "off"
    drive = f"if=none,id={name}.drive,file={escaped(image)},format=raw,discard=unmap"
    controller = f"nvme,id={name},serial=LAB-{name},bus=rp{placed.port},subsys={name}.subsys{flexible}"
    return [
        *("-drive", drive, "-device", f"nvme-subsys,id={name}.subsys", "-device", controller),
        *("-device", f"nvme-ns,drive={name}.drive,bus={name},shared={shared}"),
    ]


def _flexible(vfs: int) -> str:
    """What the controller can hand out to its virtual functions (NVMe 2.0, 8.26): each needs the admin queue,
    one for I/O, and an interrupt for either. It keeps what it has without them."""
    resources = VF_RESOURCES * vfs
    return (
        f"sriov_max_vfs={vfs},sriov_vq_flexible={resources},sriov_vi_flexible={resources},"
        f"max_ioqpairs={NVME_QUEUE_PAIRS + resources},msix_qsize={NVME_QUEUE_PAIRS + 1 + resources}"
    )


def _nic(placed: PlacedDevice) -> list[str]:
    name, device = placed.id, placed.device
    mac = device.mac or default_mac(placed.port)
    # Without a boot ROM: the firmware would run it, which takes a second.
    nic = f"{device.kind},id={name},bus=rp{placed.port},mac={mac},romfile="
    if device.net == "none":
        return ["-device", nic]
    if device.net == "user":
        netdev = f"user,id={name}.net"
    elif device.net == "hub":
        netdev = f"hubport,id={name}.net,hubid=0"
    else:
        path = escaped(Path(device.net.removeprefix("unix:")))
        netdev = f"stream,id={name}.net,server=off,addr.type=unix,addr.path={path}"
    return ["-netdev", netdev, "-device", f"{nic},netdev={name}.net"]


def default_mac(port: int) -> str:
    """The address of the NIC behind the root port `port`."""
    return f"52:54:00:1a:b0:{port:02x}"


def escaped(path: Path) -> str:
    """A path in one of QEMU's key=value lists."""
    return str(path.absolute()).replace(",", ",,")
