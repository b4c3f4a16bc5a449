"""What only network devices are told."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from iolane.carriers.vhost_user.protocol import U64
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection
from iolane.carriers.vhost_user.wire import Message
from iolane.errors import IolaneError

MAC_LENGTH = 6


@runtime_checkable
class Announcing(Protocol):
    """A device that can tell the network where a guest is now: protocol feature RARP."""

    def announce(self, mac: bytes) -> None: ...


@runtime_checkable
class TakesMtu(Protocol):
    """A device that is told its MTU: protocol feature MTU. IolaneError refuses it."""

    def set_mtu(self, mtu: int) -> None: ...


def announce(device: object, message: Message) -> None:
    """SEND_RARP: "the first 6 bytes of the payload contain the mac address"."""
    message.unpack(U64)
    assert isinstance(device, Announcing)
    device.announce(message.payload[:MAC_LENGTH])


def set_mtu(device: object, message: Message) -> None:
    """NET_SET_MTU."""
    mtu = message.u64()
    assert isinstance(device, TakesMtu)
    try:
        device.set_mtu(mtu)
    except IolaneError as error:
        raise RefusedError(Rejection.MTU, str(error)) from None
