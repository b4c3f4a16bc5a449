"""What drivers wrote of the configuration, kept for as long as the server is there."""

from __future__ import annotations

from iolane.model.registers import Access, RegisterMap
from iolane.model.virtio import VirtioDevice


class WrittenConfig:
    """Bytes that SET_CONFIG brought.

    Front ends keep their own copy of what the guest wrote (QEMU: the write cache of a disk), and do not
    send it again after a pause, a reset or a reconnect. A device that forgot it would have the guest
    believe in a cache that is off. So it is written anew whenever the driver becomes ready, and shown to
    every front end.
    """

    def __init__(self) -> None:
        self._bytes: dict[int, int] = {}

    def note(self, config: RegisterMap, offset: int, content: bytes) -> None:
        """The driver wrote these bytes; those that it may not write are none of its."""
        for at, byte in enumerate(content, offset):
            if writable_bits(config, at):
                self._bytes[at] = byte

    def overlay(self, config: RegisterMap, offset: int, content: bytes) -> bytes:
        """The configuration as the driver shall see it."""
        shown = bytearray(content)
        for at, byte in self._bytes.items():
            if offset <= at < offset + len(shown):
                bits = writable_bits(config, at)
                shown[at - offset] = shown[at - offset] & ~bits | byte & bits
        return bytes(shown)

    def replay(self, device: VirtioDevice) -> None:
        """The driver is ready: the device gets what is different."""
        for at, byte in self._bytes.items():
            if (device.read_config(at, 1)[0] ^ byte) & writable_bits(device.config, at):
                device.write_config(at, bytes([byte]))


def writable_bits(config: RegisterMap, offset: int) -> int:
    """Which bits of a byte of the configuration the driver may write."""
    place = config.layout.find(offset)
    if place is None:
        return 0
    masks = place.spec.masks
    mask = masks[Access.RW] | masks[Access.WO] | masks[Access.W1C]
    return mask >> 8 * (offset - place.offset) & 0xFF
