"""What a source tells of its machine, and what a destination finds about it.

The destination does not trust it: every field is bounded here, and means nothing before `preflight` has
checked it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$")]
Text = Annotated[str, msgspec.Meta(max_length=4000)]
Mac = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$")]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
DEVICES = 64


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One reason why a machine can't move, and the way out."""

    problem: Text
    remedy: Text | None = None

    def __str__(self) -> str:
        return f"{self.problem} ({self.remedy})" if self.remedy else self.problem


class OfferedImage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The image of a disk, as the source sees it."""

    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    read_only: bool
    locked: bool
    """The source holds its lock: where that can be taken, another image is meant."""
    inode: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Hosts that share a file system see the same one."""


class OfferedDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device that moves along."""

    id: Name
    text: Text
    """As its user wrote it, with absolute paths."""
    port: Name | None = None
    """The root port it sits behind."""
    mac: Mac | None = None
    image: OfferedImage | None = None


class LaterDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device that is taken out before the machine moves, and put in again when it is there."""

    id: Name
    text: Text | None = None
    """As its user wrote it, with absolute paths; None: a physical function, of which the other side has its
    own.
    """


class OfferedFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A physical function whose state QEMU and the host's driver move with the machine, to one of the other
    side's own of the same kind.
    """

    id: Name
    port: Name | None = None


class OfferedKernel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the guest boots when it is reset."""

    flavour: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """Of Debian's kernels; None: an image of the user's own."""
    digest: Digest | None = None
    """SHA-256 of an own image."""
    initrd: Digest | None = None
    """The same of an own initrd."""
    append: Text = ""
    modules: Annotated[list[Annotated[str, msgspec.Meta(max_length=256)]], msgspec.Meta(max_length=64)] = []
    """Those that are the kernel's, by name."""
    built: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How many others its initramfs has, which do not come along."""


class Offer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine that would like to come."""

    name: Name
    engine: Annotated[str, msgspec.Meta(max_length=64)]
    """Version of QEMU."""
    accelerator: Annotated[str, msgspec.Meta(max_length=16)]
    memory_mib: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    cpus: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    ports: Annotated[int, msgspec.Meta(ge=0, le=256)]
    iommu: bool = False
    cpu_flags: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=1024)
    ] = []
    """What the guest's processor may use of the host's, where it is the host's."""
    kernel: OfferedKernel | None = None
    """None: the system on `boot`."""
    boot: Name | None = None
    paused: bool = False
    """Its user has paused it: it stands still at the destination too."""
    devices: Annotated[list[OfferedDevice], msgspec.Meta(max_length=DEVICES)] = []
    functions: Annotated[list[OfferedFunction], msgspec.Meta(max_length=DEVICES)] = []
    later: Annotated[list[LaterDevice], msgspec.Meta(max_length=DEVICES)] = []
    """Devices that do not move with the machine, and come back when it is there."""
