"""The presentation of a device that is plugged in: one with which it can be unplugged again.

QEMU 11 aborts when a vfio-user device with MSI-X is removed. So what is plugged in gets MSI in its place, or
the interrupt pin where it is a virtio function, which has no MSI; who asks for another presentation gets it.
"""

from __future__ import annotations

import msgspec

from iolane.devices.options import options_of
from iolane.devices.registry import carrier_of, resolve
from iolane.devices.specification import Carrier, DeviceSpecification
from iolane.model.pci import Msix, PciDevice, Presentation
from iolane.model.virtio import VirtioDevice
from iolane.model.virtio.pci import VirtioPci

OPTION = "presentation"
NAMES = {Presentation.MSI: "MSI", Presentation.INTX: "the interrupt pin"}


def removable(specification: DeviceSpecification) -> tuple[DeviceSpecification, str | None]:
    """The device as it is best plugged in, and what its user should know of that."""
    chosen = OPTION in specification.options
    if specification.socket is not None or chosen or carrier_of(specification) is Carrier.VHOST_USER:
        return specification, None
    kind = resolve(specification.name)
    virtio = issubclass(kind, VirtioDevice | VirtioPci)
    if not virtio and not (issubclass(kind, PciDevice) and kind.declares(Msix)):
        return specification, None
    if OPTION not in [each.name for each in options_of(kind)]:
        return specification, (
            "it presents MSI-X, with which QEMU does not survive an unplug; its class takes no presentation="
        )
    safe = Presentation.INTX if virtio else Presentation.MSI
    options = {**specification.options, OPTION: [safe.value]}
    note = f"it presents {NAMES[safe]} in place of MSI-X, so that it can be unplugged again"
    return msgspec.structs.replace(specification, options=options), note
