"""An IOMMU group: the functions that the IOMMU can't tell apart, taken together through /dev/vfio/N."""

from __future__ import annotations

import errno
from collections.abc import Callable

from iolane.carriers.vfio.ioctl import LINUX, Descriptor, Kernel, VfioError, failure
from iolane.model.pci.pcie_id import PcieId
from iolane.uapi.vfio import GroupFlags, Ioctl
from iolane.uapi.vfio_layouts import GROUP_STATUS


class Group:
    """Group `number`, open. Nobody else can have it meanwhile.

    Args:
        number: of the IOMMU group.
        members: says which functions are in the group and who drives them, for error messages.

    Raises:
        VfioError: the group is in use, or no function of it is bound to a VFIO driver.
    """

    def __init__(
        self,
        number: int,
        *,
        kernel: Kernel = LINUX,
        members: Callable[[], list[str]] = list,
    ) -> None:
        self.number = number
        self.name = f"IOMMU group {number}"
        self._members = members
        try:
            fd = kernel.open(f"/dev/vfio/{number}")
        except OSError as error:
            raise self._unopened(error) from None
        self._device = Descriptor(kernel, fd, self.name)

    def _unopened(self, error: OSError) -> VfioError:
        remedy = {
            errno.ENOENT: "bind every function of the group to vfio-pci: iolane host take",
            errno.EBUSY: "another process has it: a machine that runs, or a driver of its own",
            errno.EACCES: f"run as root, or give the user access to /dev/vfio/{self.number}",
        }.get(error.errno or 0)
        return failure(f"{self.name}: /dev/vfio/{self.number} can't be opened", error, remedy)

    @property
    def fd(self) -> int:
        """The descriptor of /dev/vfio/N."""
        return self._device.fd

    @property
    def status(self) -> GroupFlags:
        """VFIO_GROUP_GET_STATUS."""
        request = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
        self._device.call(Ioctl.GROUP_GET_STATUS, request, "its status")
        return GroupFlags(GROUP_STATUS.unpack(request)[1])

    def check_viable(self) -> None:
        """Raises `VfioError` unless every function of the group is bound to a VFIO driver, or to none."""
        if self.status & GroupFlags.VIABLE:
            return
        listed = ", ".join(self._members()) or "unknown"
        raise VfioError(
            f"{self.name} is not viable: a function of it belongs to another driver; members: {listed}",
            errno=errno.EPERM,
            remedy="unbind every member from its driver, or bind it to vfio-pci: iolane host take",
        )

    def set_container(self, container: int) -> None:
        """VFIO_GROUP_SET_CONTAINER. Raises `VfioError`."""
        request = bytearray(container.to_bytes(4, "little"))
        try:
            self._device.kernel.ioctl(self._device.fd, Ioctl.GROUP_SET_CONTAINER, request)
        except OSError as error:
            listed = ", ".join(self._members()) or "unknown"
            raise failure(
                f"{self.name} does not go into the container",
                error,
                f"it may be in another one, or a member may belong to another driver; members: {listed}",
            ) from None

    def device(self, address: PcieId) -> Descriptor:
        """VFIO_GROUP_GET_DEVICE_FD: open a function of the group. Raises `VfioError`."""
        name = bytearray(f"{address}\0".encode())
        remedy = f"is {address} bound to vfio-pci, and in {self.name}?"
        fd = self._device.call(Ioctl.GROUP_GET_DEVICE_FD, name, f"function {address}", remedy)
        return Descriptor(self._device.kernel, fd, str(address))

    def close(self) -> None:
        """Close it; functions that are still open keep the group taken."""
        self._device.close()
