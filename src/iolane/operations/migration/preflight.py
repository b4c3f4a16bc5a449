"""What a destination checks of a machine that would like to come, before anything is made.

The offer is the other side's word. A device is one of iolane's own, never code of the other side's choice; a
path is used only below the folders that the operator opened, or where they named it themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from iolane.devices.registry import carrier_of, resolve
from iolane.devices.specification import Carrier, DeviceSpecification, parse
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.kernel import Flavour
from iolane.errors import IolaneError
from iolane.memory.available import available_memory
from iolane.operations.machine.description import DeviceDescription, MachineDescription
from iolane.operations.migration.failover import GivenFunctions
from iolane.operations.migration.images import image_findings
from iolane.operations.migration.offer import Finding, LaterDevice, Offer, OfferedDevice, OfferedFunction
from iolane.operations.passthrough import PassRequest

IMAGE, MAC, NET = "image", "mac", "net"
PREFIXES = ("unix:", "listen:")
"""In front of paths in options."""


@dataclass(frozen=True)
class Welcome:
    """What the operator of the destination says about machines that come."""

    name: str | None = None
    """What it is called here; by default as it was."""
    devices: Mapping[str, str] = field(default_factory=dict)
    """Id of a device -> what it is here."""
    kernel: Path | None = None
    """An image of the user's own."""
    initrd: Path | None = None
    folders: Sequence[Path] | None = ()
    """Where the source may name files; None: anywhere that this user may."""
    functions: Mapping[str, PassRequest] = field(default_factory=dict)
    """Id of a function that a machine leaves behind -> the one that takes its place."""


def findings(
    offer: Offer, welcome: Welcome, engine: str, accelerators: Collection[str]
) -> tuple[list[Finding], list[str]]:
    """Reasons to refuse, all of them, and what should be known otherwise.

    Args:
        engine: the version of QEMU here.
        accelerators: how guests can run here.
    """
    unknown = [f"{option}: the machine has no such device" for option in _unknown(offer, welcome)]
    problems = [
        *_engine(offer, engine, accelerators),
        *_memory(offer),
        *_kernel(offer, welcome),
        *(Finding(each) for each in unknown),
    ]
    for device in offer.devices:
        problems += _device(device, welcome)
    for later in offer.later:
        problems += _later(later, welcome)
    for function in offer.functions:
        problems += _function(function, welcome)
    return problems, _notes(offer, welcome)


def description_of(offer: Offer, welcome: Welcome, name: str) -> MachineDescription:
    """The machine as it is made here. Raises IolaneError where a device's text is wrong."""
    kernel = offer.kernel
    own = None if kernel is None or kernel.flavour is not None else welcome.kernel
    flavour = Flavour.CLOUD.value if kernel is None or kernel.flavour is None else kernel.flavour
    return MachineDescription(
        name=name,
        devices=[_described(device, welcome) for device in offer.devices],
        kernel=flavour if own is None else str(own),
        initrd=None if kernel is None or kernel.initrd is None else str(welcome.initrd),
        append="" if kernel is None else kernel.append,
        modules=[] if kernel is None else kernel.modules,
        passed=[DeviceDescription(welcome.functions[each.id].text, each.port) for each in offer.functions],
        boot=offer.boot,
        memory_mib=offer.memory_mib,
        cpus=offer.cpus,
        ports=offer.ports,
        iommu=offer.iommu,
        accelerator=Accelerator(offer.accelerator),
    )


def _described(device: OfferedDevice, welcome: Welcome) -> DeviceDescription:
    return DeviceDescription(_wanted(device, welcome).whole_text(), device.port)


def _wanted(device: OfferedDevice, welcome: Welcome) -> DeviceSpecification:
    """The device as it is made here: with its id, and a network device with its address."""
    wanted = parse(welcome.devices.get(device.id, device.text))
    if wanted.name == NET and device.mac is not None and MAC not in wanted.options:
        wanted = msgspec.structs.replace(wanted, options={**wanted.options, MAC: [device.mac]})
    return msgspec.structs.replace(wanted, id=device.id)


def _unknown(offer: Offer, welcome: Welcome) -> list[str]:
    known = {device.id for device in offer.devices} | {device.id for device in offer.later}
    known |= {function.id for function in offer.functions}
    return [
        *(f"--device {identity}" for identity in sorted(set(welcome.devices) - known)),
        *(f"--pass ...,id={identity}" for identity in sorted(set(welcome.functions) - known)),
    ]


def _engine(offer: Offer, engine: str, accelerators: Collection[str]) -> list[Finding]:
    problems = []
    if offer.engine != engine:
        problems.append(
            Finding(
                f"the source has QEMU {offer.engine}, this host {engine}",
                "have the same QEMU on both sides (IOLANE_QEMU names one)",
            )
        )
    if offer.accelerator not in accelerators:
        how = offer.accelerator.upper()
        problems.append(
            Finding(
                f"the source runs guests with {how}, which this host can't", "iolane run --accel tcg there"
            )
        )
    elif missing := sorted(set(offer.cpu_flags) - set(host_cpu_flags()))[:10]:
        what = " ".join(missing)
        problems.append(Finding(f"this host's processor lacks what the guest may use: {what}"))
    return problems


def host_cpu_flags() -> list[str]:
    """What Linux says of the first processor."""
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("flags"):
            return line.partition(":")[2].split()
    return []


def _memory(offer: Offer) -> list[Finding]:
    available = available_memory() >> 20
    if offer.memory_mib <= available:
        return []
    return [Finding(f"the machine has {offer.memory_mib} MiB, this host {available} MiB to spare")]


def _kernel(offer: Offer, welcome: Welcome) -> list[Finding]:
    kernel, problems = offer.kernel, []
    if kernel is None:
        return []
    if kernel.flavour is None and welcome.kernel is None:
        problems.append(Finding("the guest boots an own kernel", "--kernel FILE names the same one here"))
    if kernel.flavour is not None and kernel.flavour not in tuple(Flavour):
        problems.append(Finding(f"there is no kernel '{kernel.flavour[:40]}'"))
    if kernel.initrd is not None and welcome.initrd is None:
        problems.append(Finding("the guest boots an own initrd", "--initrd FILE names the same one here"))
    return problems


def _device(device: OfferedDevice, welcome: Welcome) -> list[Finding]:
    """A device that moves with the machine."""
    try:
        wanted = _wanted(device, welcome)
    except IolaneError as error:
        return [Finding(f"device {device.id}: {error.message}", error.remedy)]
    if problems := _made_here(device.id, wanted, welcome):
        return problems
    if carrier_of(wanted) is not Carrier.VHOST_USER:
        return [
            Finding(
                f"device {device.id} is not carried by vhost-user: QEMU would lose its state",
                _says(device.id),
            )
        ]
    image = wanted.options.get(IMAGE)
    if device.image is not None and image:
        return image_findings(device.id, Path(image[-1]), device.image)
    return []


def _later(device: LaterDevice, welcome: Welcome) -> list[Finding]:
    """A device that is put in when the machine is here. What can be known of it before is."""
    try:
        if device.text is None:
            GivenFunctions(welcome.functions).check(device.id)
            return []
        wanted = later_device(device, welcome)
    except IolaneError as error:
        return [Finding(f"device {device.id}: {error.message}", error.remedy)]
    if problems := _made_here(device.id, wanted, welcome):
        return problems
    if wanted.socket is not None or wanted.state is not None:
        return [Finding(f"device {device.id} comes with its state, and is made here", _says(device.id))]
    missing = [image for image in wanted.options.get(IMAGE, []) if not Path(image).exists()]
    return [Finding(f"device {device.id}: there is no image {image}", _says(device.id)) for image in missing]


def _function(function: OfferedFunction, welcome: Welcome) -> list[Finding]:
    """A function that moves with the machine, into one of this host's."""
    try:
        GivenFunctions(welcome.functions).check(function.id, network=False)
    except IolaneError as error:
        return [Finding(f"function {function.id}: {error.message}", error.remedy)]
    return []


def later_device(device: LaterDevice, welcome: Welcome) -> DeviceSpecification:
    """The device as it is made here. Raises IolaneError where its text is wrong."""
    assert device.text is not None
    return msgspec.structs.replace(parse(welcome.devices.get(device.id, device.text)), id=device.id)


def _says(identity: str) -> str:
    return f"--device {identity}=... says what it is here"


def _made_here(identity: str, wanted: DeviceSpecification, welcome: Welcome) -> list[Finding]:
    """What the source may not have this host make, and what it can't."""
    own = identity in welcome.devices
    if not own and (":" in wanted.name or "/" in wanted.name):
        return [Finding(f"device {identity} is code of the source's: '{wanted.name[:80]}'", _says(identity))]
    try:
        if wanted.socket is None:
            resolve(wanted.name)
    except IolaneError as error:
        return [Finding(f"device {identity}: {error.message}", error.remedy)]
    if not own and (closed := _closed(wanted, welcome)):
        return [
            Finding(
                f"device {identity}: the source may name no files at {closed[0][:200]}",
                f"--folder FOLDER opens one; {_says(identity)}",
            )
        ]
    return []


def _closed(wanted: DeviceSpecification, welcome: Welcome) -> list[str]:
    """Paths that the source names where it may not: whatever has a slash in it is one, and so is an image."""
    options = [(key, value) for key, values in wanted.options.items() for value in values]
    if descriptors := [value for _, value in options if value.startswith("fd:")]:
        return descriptors
    if welcome.folders is None:
        return []
    texts = [value for key, value in options if key == IMAGE or "/" in value]
    if wanted.socket is not None:
        texts.append(wanted.socket)
    for prefix in PREFIXES:
        texts = [text.removeprefix(prefix) for text in texts]
    roots = [folder.resolve() for folder in welcome.folders]
    return [text for text in texts if not any(Path(text).resolve().is_relative_to(root) for root in roots)]


def _notes(offer: Offer, welcome: Welcome) -> list[str]:
    notes, kernel = [], offer.kernel
    if kernel is None:
        return []
    for what, path, digest in (
        ("kernel", welcome.kernel, kernel.digest),
        ("initrd", welcome.initrd, kernel.initrd),
    ):
        if path is not None and digest is not None and file_digest(path) != digest:
            notes.append(f"after a reset there it boots another {what} than here")
    if kernel.built:
        notes.append(f"after a reset there it lacks {kernel.built} kernel modules that were built here")
    return notes


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises IolaneError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IolaneError(f"{path}: {(error.strerror or str(error)).lower()}") from error
