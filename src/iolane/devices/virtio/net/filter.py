"""Which packets the driver wants: modes, addresses, VLANs (virtio 1.3, 5.1.6.5.1 to 5.1.6.5.3)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from iolane.uapi.virtio_net import ControlRx

ADDRESS = 6
BROADCAST = b"\xff" * ADDRESS
TABLE_LIMIT = 1024
"""Addresses of a kind that are kept; with more, every packet of that kind passes (5.1.6.5.2)."""
VLANS = 4096
_TAGGED = b"\x81\x00"
_TYPE_AT = 12

MacAddress = Annotated[bytes, msgspec.Meta(min_length=ADDRESS, max_length=ADDRESS)]
Addresses = Annotated[list[MacAddress], msgspec.Meta(max_length=TABLE_LIMIT)]


class ReceiveFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Modes, address tables and the VLAN table. As made: what the rules say of a reset.

    Attributes:
        modes: bits by `ControlRx`.
        unicast, multicast: the tables.
        all_unicast, all_multicast: a table was too long.
        vlans: a bit for each that passes.
    """

    modes: Annotated[int, msgspec.Meta(ge=0, lt=1 << len(ControlRx))] = 0
    unicast: Addresses = msgspec.field(default_factory=list)
    multicast: Addresses = msgspec.field(default_factory=list)
    all_unicast: bool = False
    all_multicast: bool = False
    vlans: Annotated[bytes, msgspec.Meta(min_length=VLANS // 8, max_length=VLANS // 8)] = bytes(VLANS // 8)

    def set_mode(self, mode: ControlRx, on: bool) -> None:
        """Switch a mode."""
        self.modes = self.modes & ~(1 << mode) | int(on) << mode

    def has(self, mode: ControlRx) -> bool:
        """Whether a mode is on."""
        return bool(self.modes >> mode & 1)

    def set_tables(self, unicast: list[bytes], multicast: list[bytes]) -> None:
        """Other address tables."""
        self.all_unicast, self.all_multicast = len(unicast) > TABLE_LIMIT, len(multicast) > TABLE_LIMIT
        self.unicast = [] if self.all_unicast else unicast
        self.multicast = [] if self.all_multicast else multicast

    def set_vlan(self, vlan: int, passes: bool) -> None:
        """Let a VLAN pass, or no longer."""
        vlans = bytearray(self.vlans)
        bit = 1 << vlan % 8
        vlans[vlan // 8] = vlans[vlan // 8] | bit if passes else vlans[vlan // 8] & ~bit
        self.vlans = bytes(vlans)

    def passes_address(self, target: bytes, own: bytes) -> bool:
        """Whether frames for an address are wanted. Promiscuous mode comes before everything else."""
        if self.has(ControlRx.PROMISC):
            return True
        if target == BROADCAST:
            return not self.has(ControlRx.NOBCAST)
        if target[0] & 1:
            if self.has(ControlRx.NOMULTI):
                return False
            return self.has(ControlRx.ALLMULTI) or self.all_multicast or target in self.multicast
        if self.has(ControlRx.NOUNI):
            return False
        return target == own or self.has(ControlRx.ALLUNI) or self.all_unicast or target in self.unicast

    def passes_vlan(self, frame: bytes | memoryview) -> bool:
        """Whether a frame has no VLAN tag, or one that is in the table."""
        if frame[_TYPE_AT : _TYPE_AT + 2] != _TAGGED or len(frame) < _TYPE_AT + 4:
            return True
        vlan = int.from_bytes(frame[_TYPE_AT + 2 : _TYPE_AT + 4], "big") % VLANS
        return bool(self.vlans[vlan // 8] >> vlan % 8 & 1)
