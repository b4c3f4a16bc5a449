"""libvirt's errors as iolane's: one line, with the way out where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from iolane.engines.libvirt.binding import libvirt
from iolane.errors import IolaneError


class LibvirtError(IolaneError):
    """libvirt refused or failed. `code` is its error number (virErrorNumber of libvirt's virterror.h)."""

    def __init__(self, message: str, *, remedy: str | None = None, code: int = 0) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


REMEDIES = {
    "shared memory": "add <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
    "No more available PCI slots": "add <controller type='pci' model='pcie-root-port'/> to the domain",
    "Failed to connect socket": "is libvirtd (or virtqemud) running, and may you use its socket?",
    "authentication unavailable": "become a member of the group libvirt, or be root",
    "Failed to connect to": "is the device's server running, and may QEMU's user use its socket?",
    "unable to connect to": "is the device's server running, and may QEMU's user use its socket?",
}
"""Words of libvirt's messages -> what to do."""


@contextlib.contextmanager
def libvirt_errors(what: str) -> Iterator[None]:
    """What libvirt raises inside is said as an error of iolane: `what` with libvirt's reason."""
    binding = libvirt()
    try:
        yield
    except binding.libvirtError as error:
        reason = str(error)
        remedy = next((way for words, way in REMEDIES.items() if words.lower() in reason.lower()), None)
        code = error.get_error_code() or 0
        raise LibvirtError(f"{what}: {reason}", remedy=remedy, code=code) from error
