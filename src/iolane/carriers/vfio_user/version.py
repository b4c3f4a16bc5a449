"""Negotiation: "VFIO_USER_VERSION".

Major versions must be equal, the lower minor version holds, and "the capability list must be a subset
of those proposed". Unknown keys are ignored. The reply is never longer than the request, because QEMU
takes a longer one for a broken server.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from iolane.carriers.vfio_user.protocol import (
    DEFAULT_MAX_DATA_XFER,
    DEFAULT_MAX_DMA_MAPS,
    DEFAULT_MAX_MSG_FDS,
    MAJOR,
    MAX_DATA_XFER,
    MAX_MSG_FDS,
    MINOR,
    PAGE_SIZE,
    VERSION,
)
from iolane.carriers.vfio_user.rejection import RefusedError, Rejection

MAX_VERSION_DATA = 64 << 10
"""Far above what any client sends; bounds the work of parsing."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class TwinSocket(msgspec.Struct, omit_defaults=True):
    """Whether server-to-client commands may go over a socket of their own, and where its descriptor is."""

    supported: bool = False
    fd_index: int | None = None


class MigrationCapability(msgspec.Struct, omit_defaults=True):
    """The page size of dirty logging (libvfio-user's and QEMU's key, in no table of the specification)."""

    pgsize: Count | None = None


class Capabilities(msgspec.Struct, omit_defaults=True):
    """The common capabilities; None is "not named". `max_*` are the sender's own limits."""

    max_msg_fds: Count | None = None
    max_data_xfer_size: Count | None = None
    max_dma_maps: Count | None = None
    pgsizes: Count | None = None
    twin_socket: TwinSocket | None = None
    write_multiple: bool | None = None
    migration: MigrationCapability | None = None


class VersionData(msgspec.Struct, omit_defaults=True):
    """The JSON object behind the version numbers."""

    capabilities: Capabilities | None = None


class Peer(msgspec.Struct, frozen=True):
    """What the other side can take."""

    minor: int = MINOR
    max_msg_fds: int = DEFAULT_MAX_MSG_FDS
    max_data_xfer_size: int = DEFAULT_MAX_DATA_XFER
    max_dma_maps: int = DEFAULT_MAX_DMA_MAPS
    write_multiple: bool = False


def peer_of(minor: int, capabilities: Capabilities) -> Peer:
    """The limits that a message named, defaults where it was silent."""
    return Peer(
        minor=min(minor, MINOR),
        max_msg_fds=_default(capabilities.max_msg_fds, DEFAULT_MAX_MSG_FDS),
        max_data_xfer_size=min(
            _default(capabilities.max_data_xfer_size, DEFAULT_MAX_DATA_XFER), MAX_DATA_XFER
        ),
        max_dma_maps=_default(capabilities.max_dma_maps, DEFAULT_MAX_DMA_MAPS),
        write_multiple=bool(capabilities.write_multiple),
    )


def _default(value: int | None, default: int) -> int:
    return default if value is None else value


def parse(payload: bytes) -> tuple[int, int, Capabilities]:
    """Major, minor and capabilities of a VERSION message.

    Raises:
        RefusedError: the data is no JSON object ending in NUL, or a capability has a value that can't be.
    """
    if len(payload) < VERSION.size:
        raise RefusedError(Rejection.PAYLOAD_SIZE, f"VERSION has {len(payload)} bytes")
    major, minor = VERSION.unpack_from(payload)
    data = payload[VERSION.size :]
    if not data:
        return major, minor, Capabilities()
    if data[-1] != 0 or len(data) > MAX_VERSION_DATA:
        raise RefusedError(Rejection.VERSION_DATA)
    try:
        parsed = msgspec.json.decode(data[:-1])
        if not isinstance(parsed, dict):
            raise RefusedError(Rejection.VERSION_DATA, f"it is of type {type(parsed).__name__}")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RefusedError(Rejection.VERSION_DATA, str(error)) from None
    try:
        version = msgspec.convert(parsed, VersionData)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise RefusedError(Rejection.VERSION_CAPABILITY, str(error)) from None
    return major, minor, version.capabilities or Capabilities()


def encode(minor: int, capabilities: Capabilities | None) -> bytes:
    """The payload of a VERSION message; the data is optional."""
    if capabilities is None:
        return VERSION.pack(MAJOR, minor)
    return VERSION.pack(MAJOR, minor) + msgspec.json.encode(VersionData(capabilities)) + b"\0"


def answer(payload: bytes, *, twin_socket: bool = False) -> tuple[Peer, bytes, bool]:
    """Check a client's proposal: what the client can take, the reply's payload, and whether a twin
    socket was agreed.

    Raises:
        RefusedError: an unknown major version, or what `parse` raises.
    """
    major, minor, proposed = parse(payload)
    if major != MAJOR:
        raise RefusedError(Rejection.VERSION_MAJOR, f"{major} proposed, {MAJOR} spoken")
    if proposed.pgsizes is not None and not proposed.pgsizes & PAGE_SIZE:
        raise RefusedError(Rejection.VERSION_CAPABILITY, f"pgsizes {proposed.pgsizes:#x} lacks {PAGE_SIZE}")
    peer = peer_of(minor, proposed)
    twin = (
        twin_socket and peer.max_msg_fds > 0 and bool(proposed.twin_socket and proposed.twin_socket.supported)
    )
    agreed = Capabilities(
        max_msg_fds=_if(proposed.max_msg_fds, MAX_MSG_FDS),
        max_data_xfer_size=_if(proposed.max_data_xfer_size, MAX_DATA_XFER),
        max_dma_maps=_if(proposed.max_dma_maps, min(DEFAULT_MAX_DMA_MAPS, peer.max_dma_maps)),
        pgsizes=_if(proposed.pgsizes, PAGE_SIZE),
        twin_socket=TwinSocket(True, 0) if twin else None,
        write_multiple=True if proposed.write_multiple else None,
        migration=MigrationCapability(_if(proposed.migration.pgsize, PAGE_SIZE))
        if proposed.migration
        else None,
    )
    return peer, encode(peer.minor, agreed if len(payload) > VERSION.size else None), twin


def _if(proposed: int | None, ours: int) -> int | None:
    return None if proposed is None else ours
