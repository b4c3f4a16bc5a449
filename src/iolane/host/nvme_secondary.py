"""Secondary controllers: what the virtual functions of an NVMe controller are. They work once they have been
given queues and interrupts and are online (NVMe Base 2.0, 8.26 "Virtualization Enhancements")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Self

from iolane.host.nvme_admin import NvmeAdmin
from iolane.host.sysfs import HostError

VIRTUALIZATION_MANAGEMENT = 0x1C
"""5.28."""
CONTROLLER, PRIMARY, SECONDARIES = 0x01, 0x14, 0x15
"""Values of CNS (5.17.1): Identify Controller, Primary Controller Capabilities, Secondary Controller List."""
OACS, OACS_VIRTUALIZATION = Struct("<256xH"), 1 << 7
"""Optional Admin Command Support in Identify Controller: bit 7, there is Virtualization Management."""


class Action(IntEnum):
    """ACT, bits 3:0 of Command Dword 10 (5.28)."""

    SECONDARY_OFFLINE = 0x7
    SECONDARY_ASSIGN = 0x8
    SECONDARY_ONLINE = 0x9


class Resource(IntEnum):
    """RT, bits 10:8 of Command Dword 10 (5.28). In the primary controller's CRT each is a bit."""

    QUEUES = 0
    INTERRUPTS = 1

    @property
    def words(self) -> str:
        return "queue pairs" if self is Resource.QUEUES else "interrupts"

    @property
    def needed(self) -> int:
        """The fewest that a controller works with: an admin queue and one for I/O; one interrupt for both."""
        return 2 if self is Resource.QUEUES else 1


@dataclass(frozen=True)
class Flexible:
    """What the primary controller can hand out of one resource (Primary Controller Capabilities)."""

    total: int
    primary: int
    """Of these, what the primary controller has for itself."""
    most: int
    """For one secondary controller."""
    granularity: int

    @classmethod
    def parse(cls, data: bytes, resource: Resource) -> Self | None:
        """None where this resource can't be handed out: secondary controllers have their own."""
        if not data[4] >> resource & 1:
            return None
        total, _, primary, _, most, granularity = Struct("<IIHHHH").unpack_from(data, 32 + 32 * resource)
        return cls(total, primary, most, max(granularity, 1))

    def share(self, controllers: int, elsewhere: int) -> int:
        """Of each of `controllers`, when `elsewhere` has been given to others."""
        each = min((self.total - self.primary - elsewhere) // controllers, self.most)
        return max(each - each % self.granularity, 0)


@dataclass(frozen=True)
class Secondary:
    """An entry of the Secondary Controller List."""

    controller: int
    online: bool
    virtual_function: int
    """From 1; 0: it belongs to none."""
    queues: int
    interrupts: int

    def has(self, resource: Resource) -> int:
        """How many of a resource it has been given."""
        return self.queues if resource is Resource.QUEUES else self.interrupts


_ENTRY = Struct("<HHB3xHHH18x")
_FIRST_ENTRY = 32


def parse_secondaries(data: bytes) -> list[Secondary]:
    """The Secondary Controller List: a number of entries, then up to 127 of 32 bytes."""
    count = min(data[0], (len(data) - _FIRST_ENTRY) // _ENTRY.size)
    entries = _ENTRY.iter_unpack(data[_FIRST_ENTRY : _FIRST_ENTRY + count * _ENTRY.size])
    return [Secondary(each[0], bool(each[2] & 1), *each[3:]) for each in entries]


def bring_online(admin: NvmeAdmin, count: int) -> list[Secondary]:
    """Give virtual functions 1 to `count` equal shares of what the controller can hand out, and bring their
    controllers online. What they had before does not matter. Where the controller has no Virtualization
    Management, nothing is done: its virtual functions need none.

    Raises:
        HostError: there is not enough for all of them, or the controller refused.
    """
    if not OACS.unpack_from(admin.identify(CONTROLLER))[0] & OACS_VIRTUALIZATION:
        return []
    listed = parse_secondaries(admin.identify(SECONDARIES))
    ours = [each for each in listed if 1 <= each.virtual_function <= count]
    if len(ours) != count:
        raise HostError(f"the controller lists {len(ours)} secondary controllers for {count} functions")
    others = [each for each in listed if each not in ours]
    shares = _shares(admin.identify(PRIMARY), count, others)
    for each in ours:
        if each.online:
            _manage(admin, Action.SECONDARY_OFFLINE, each, "taking it offline")
        for resource, share in shares.items():
            _manage(admin, Action.SECONDARY_ASSIGN, each, f"{share} {resource.words}", resource, share)
        _manage(admin, Action.SECONDARY_ONLINE, each, "bringing it online")
    numbers = {each.controller for each in ours}
    return [each for each in parse_secondaries(admin.identify(SECONDARIES)) if each.controller in numbers]


def _shares(primary: bytes, count: int, others: Sequence[Secondary]) -> dict[Resource, int]:
    shares: dict[Resource, int] = {}
    for resource in Resource:
        flexible = Flexible.parse(primary, resource)
        if flexible is None:
            continue
        share = flexible.share(count, sum(each.has(resource) for each in others))
        if share < resource.needed:
            raise HostError(
                f"{flexible.total} {resource.words} to hand out, of which the physical function has "
                f"{flexible.primary}, are not {resource.needed} for each of {count} virtual functions",
                remedy="make fewer; or `nvme virt-mgmt -c 0 -a 1 -r 0 -n 0`, the same with -r 1, and "
                "`nvme reset` take them from the physical function",
            )
        shares[resource] = share
    return shares


def _manage(
    admin: NvmeAdmin,
    action: Action,
    secondary: Secondary,
    what: str,
    resource: Resource = Resource.QUEUES,
    number: int = 0,
) -> None:
    admin.command(
        VIRTUALIZATION_MANAGEMENT,
        f"virtual function {secondary.virtual_function} (controller {secondary.controller}): {what}",
        cdw10=action | resource << 8 | secondary.controller << 16,
        cdw11=number,
    )
