"""The header of a packet (virtio 1.3, 5.1.6), checked where it comes in."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from iolane.backends.net import LARGEST_FRAME, Offload
from iolane.uapi.virtio_net import HEADER, Gso, HeaderFlag

ETHERNET_HEADER = 14
VLAN_TAG = 4
_CHECKSUM = 2
_SEGMENTATION = {Gso.TCPV4: Offload.TSO4, Gso.TCPV6: Offload.TSO6}


class FrameRejection(StrEnum):
    """Why a packet of the driver's was not sent; each is counted under its name."""

    RUNT = "the frame is shorter than an Ethernet header"
    TOO_LONG = "the frame is longer than any packet"
    OVER_MTU = "the frame is longer than the MTU"
    CHECKSUM_NOT_NEGOTIATED = "a checksum is left to the device without the feature"
    CHECKSUM_OUTSIDE = "the checksum is not in the frame"
    SEGMENTATION_UNKNOWN = "segmentation of an unknown kind"
    SEGMENTATION_NOT_NEGOTIATED = "segmentation is left to the device without the feature"
    SEGMENTATION_WITHOUT_CHECKSUM = "segmentation without a checksum that is left to the device"
    SEGMENT_SIZE = "segments without a size"


class FrameRejectedError(Exception):
    """The driver may not send this."""

    def __init__(self, reason: FrameRejection) -> None:
        super().__init__(str(reason))
        self.reason = reason


class PacketHeader(NamedTuple):
    """struct virtio_net_hdr_v1."""

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int
    num_buffers: int

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> PacketHeader:
        """The header at the start of `data`."""
        return cls(*HEADER.unpack_from(data))

    def pack(self) -> bytes:
        """Its bytes."""
        return HEADER.pack(*self)


def checked(data: bytes, length: int, allowed: Offload, mtu: int | None) -> bytes:
    """The header of a frame of `length` bytes that the driver sends, less what means nothing to the network.

    Unknown flags are ignored, and `hdr_len` is a hint that must not be relied on (5.1.6.2).

    Args:
        allowed: what was negotiated.
        mtu: negotiated, or None.

    Raises:
        FrameRejectedError: the driver broke a rule.
    """
    header = PacketHeader.unpack(data)
    if length < ETHERNET_HEADER:
        raise FrameRejectedError(FrameRejection.RUNT)
    if length > LARGEST_FRAME:
        raise FrameRejectedError(FrameRejection.TOO_LONG)
    needs_checksum = header.flags & HeaderFlag.NEEDS_CSUM
    if needs_checksum:
        _check_checksum(header, length, allowed)
    if header.gso_type != Gso.NONE:
        _check_segmentation(header, allowed)
    elif mtu is not None and length > mtu + ETHERNET_HEADER + VLAN_TAG:
        raise FrameRejectedError(FrameRejection.OVER_MTU)
    return HEADER.pack(
        needs_checksum,
        header.gso_type,
        min(header.hdr_len, length),
        header.gso_size if header.gso_type != Gso.NONE else 0,
        header.csum_start if needs_checksum else 0,
        header.csum_offset if needs_checksum else 0,
        0,
    )


def _check_checksum(header: PacketHeader, length: int, allowed: Offload) -> None:
    if not allowed & Offload.CSUM:
        raise FrameRejectedError(FrameRejection.CHECKSUM_NOT_NEGOTIATED)
    if header.csum_start + header.csum_offset + _CHECKSUM > length:
        raise FrameRejectedError(FrameRejection.CHECKSUM_OUTSIDE)


def _check_segmentation(header: PacketHeader, allowed: Offload) -> None:
    needed = segmentation(header.gso_type)
    if needed is None:
        raise FrameRejectedError(FrameRejection.SEGMENTATION_UNKNOWN)
    if needed & ~allowed:
        raise FrameRejectedError(FrameRejection.SEGMENTATION_NOT_NEGOTIATED)
    if not header.flags & HeaderFlag.NEEDS_CSUM:
        raise FrameRejectedError(FrameRejection.SEGMENTATION_WITHOUT_CHECKSUM)
    if not header.gso_size:
        raise FrameRejectedError(FrameRejection.SEGMENT_SIZE)


def segmentation(gso_type: int) -> Offload | None:
    """What the other end must be able to do for segmentation of this kind; None: it is none that is known."""
    kind = gso_type & ~Gso.ECN
    if kind not in _SEGMENTATION:
        return None
    return _SEGMENTATION[Gso(kind)] | (Offload.TSO_ECN if gso_type & Gso.ECN else Offload(0))


def complete_checksum(frame: bytearray, start: int, offset: int) -> None:
    """Put the Internet checksum (RFC 1071) of the frame from `start` on at `start + offset`."""
    if start + offset + _CHECKSUM > len(frame):
        return
    words = frame[start:] + b"\0" * ((len(frame) - start) % 2)
    total = int.from_bytes(words, "big") % 0xFFFF
    frame[start + offset : start + offset + 2] = (~total & 0xFFFF).to_bytes(2, "big")
