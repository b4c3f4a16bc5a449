"""Regions: what they are, and the accesses that the trap loop does not take."""

from __future__ import annotations

from iolane.carriers.vfio_user.protocol import (
    CAPABILITY_HEADER,
    CAPABILITY_SPARSE_MMAP,
    MAX_DATA_XFER,
    REGION_ACCESS,
    REGION_INFO,
    REGION_IO_FDS,
    SPARSE_AREA,
    SPARSE_MMAP,
    WRITE_MULTI,
    WRITE_ONE,
    RegionFlag,
)
from iolane.carriers.vfio_user.rejection import RefusedError, Rejection
from iolane.carriers.vfio_user.session import Reply, Request, Session
from iolane.model.pci import PciDevice, SriovCapability
from iolane.model.pci.config_space import EXTENDED_START
from iolane.model.region import Area, Region, RegionIndex

CAPABILITY_OFFSET = REGION_INFO.size
WIDTHS = (1, 2, 4, 8)


class RegionCommands:
    """GET_REGION_INFO, GET_REGION_IO_FDS, REGION_READ, REGION_WRITE, REGION_WRITE_MULTI."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def info(self, request: Request) -> Reply:
        """ "VFIO_USER_DEVICE_GET_REGION_INFO".

        Capabilities, and the descriptor to map with them, only come where `argsz` has room for them
        ("Message sizes"). QEMU asks first with the fixed size, reads the needed one, and asks again.
        """
        argsz, _, index, _, _, _ = request.unpack(REGION_INFO)
        if argsz < REGION_INFO.size:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for region info")
        region = self._session.region(index)
        if region is None or not region.size:
            return Reply(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
        flags = RegionFlag.READ | RegionFlag.WRITE
        capabilities = b""
        fds: tuple[int, ...] = ()
        if region.fd >= 0 and region.mappable and self._session.peer.max_msg_fds:
            flags |= RegionFlag.MMAP
            fds = (region.fd,)
            if region.mappable != (Area(0, region.size),):
                flags |= RegionFlag.CAPS
                capabilities = sparse_capability(region.mappable)
        needed = REGION_INFO.size + len(capabilities)
        if argsz < needed:
            capabilities, fds = b"", ()
        offset = CAPABILITY_OFFSET if flags & RegionFlag.CAPS else 0
        fixed = REGION_INFO.pack(needed, flags, index, offset, region.size, region.fd_offset)
        return Reply(fixed + capabilities, fds)

    def io_fds(self, request: Request) -> Reply:
        """ "VFIO_USER_DEVICE_GET_REGION_IO_FDS": an optional feature; we have no sub-regions to offer."""
        argsz, flags, index, count = request.unpack(REGION_IO_FDS)
        if flags or count:
            raise RefusedError(Rejection.REGION_FLAGS, f"flags {flags:#x}, count {count}")
        if not REGION_IO_FDS.size <= argsz <= MAX_DATA_XFER:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for region I/O descriptors")
        self._session.region(index)
        return Reply(REGION_IO_FDS.pack(REGION_IO_FDS.size, 0, index, 0))

    def read(self, request: Request) -> Reply:
        """ "VFIO_USER_REGION_READ" of any length."""
        offset, index, count = request.unpack(REGION_ACCESS, exact=True)
        region = self._checked(index, offset, count)
        if count > self._session.peer.max_data_xfer_size:
            raise RefusedError(Rejection.REGION_COUNT, f"read of {count} bytes")
        self._session.statistics.reads += 1
        data = b""
        if region is not None and count:
            with self._session.device.lock:
                data = region.read_bytes(offset, count)
                if region.index is RegionIndex.CONFIG and count > WIDTHS[-1]:
                    data = self._set_up_by(offset, data)
        return Reply(REGION_ACCESS.pack(offset, index, count) + data)

    def _set_up_by(self, offset: int, data: bytes) -> bytes:
        """Config space as a client may see it that reads it in one go, to set itself up.

        QEMU 11 (hw/vfio/pci.c, vfio_add_ext_cap) drops SR-IOV and ARI from the extended capabilities that it
        finds so, and virtualises the chain of the rest. Finding none it leaves all of them to us. So of a
        function with SR-IOV it finds none, and the guest, which reads by accesses, finds what there is.
        """
        head = EXTENDED_START - offset
        device = self._session.device
        if not isinstance(device, PciDevice) or not 0 <= head <= len(data) - 4:
            return data
        if not any(isinstance(item, SriovCapability) for item in device.config.capabilities):
            return data
        return data[:head] + bytes(4) + data[head + 4 :]

    def write(self, request: Request) -> Reply:
        """ "VFIO_USER_REGION_WRITE" of any length."""
        offset, index, count = request.unpack(REGION_ACCESS)
        data = request.payload[REGION_ACCESS.size :]
        if len(data) != count:
            raise RefusedError(Rejection.REGION_COUNT, f"count {count} with {len(data)} bytes of data")
        self._write(self._checked(index, offset, count), offset, data)
        return Reply(REGION_ACCESS.pack(offset, index, count))

    def write_multi(self, request: Request) -> Reply:
        """ "VFIO_USER_REGION_WRITE_MULTI": all writes are checked before the first is made."""
        (count,) = request.unpack(WRITE_MULTI)
        if len(request.payload) != WRITE_MULTI.size + count * WRITE_ONE.size:
            raise RefusedError(Rejection.WRITE_MULTI_COUNT, f"{count} writes in {len(request.payload)} bytes")
        writes = []
        for offset, index, length, data in WRITE_ONE.iter_unpack(request.payload[WRITE_MULTI.size :]):
            if length > len(data):
                raise RefusedError(Rejection.WRITE_MULTI_COUNT, f"a write of {length} bytes")
            writes.append((self._checked(index, offset, length), offset, data[:length]))
        for region, offset, data in writes:
            self._write(region, offset, data)
        return Reply(WRITE_MULTI.pack(count))

    def _checked(self, index: int, offset: int, count: int) -> Region | None:
        region = self._session.region(index)
        if count > MAX_DATA_XFER:
            raise RefusedError(Rejection.REGION_COUNT, f"{count} bytes")
        size = 0 if region is None else region.size
        if offset + count > size:
            raise RefusedError(
                Rejection.REGION_RANGE, f"{offset:#x} + {count:#x} in region {index} of {size:#x}"
            )
        return region

    def _write(self, region: Region | None, offset: int, data: bytes | memoryview) -> None:
        self._session.statistics.writes += 1
        if region is None or not len(data):
            return
        with self._session.device.lock:
            self._session.check_writable(region)
            region.write_bytes(offset, data)


def sparse_capability(areas: tuple[Area, ...]) -> bytes:
    """ "VFIO region info cap sparse mmap": the areas that may be mapped."""
    header = CAPABILITY_HEADER.pack(CAPABILITY_SPARSE_MMAP, 1, 0)
    listed = b"".join(SPARSE_AREA.pack(area.offset, area.size) for area in areas)
    return header + SPARSE_MMAP.pack(len(areas), 0) + listed
