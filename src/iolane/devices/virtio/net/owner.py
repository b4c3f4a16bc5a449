"""What the parts of a network device know of the device."""

from __future__ import annotations

from typing import Protocol

from iolane.backends.net import Capture, NetBackend, Offload
from iolane.devices.virtio.net.filter import ReceiveFilter
from iolane.model.counters import Counters
from iolane.model.dma import DmaSpace


class PartOwner(Protocol):
    """Known to each part: memory, counts, and what was negotiated."""

    dma: DmaSpace
    counters: Counters
    filter: ReceiveFilter

    def negotiated(self, feature: int) -> bool: ...


class WayOwner(PartOwner, Protocol):
    """Known to those that move packets."""

    backend: NetBackend
    capture: Capture | None
    mac: bytes
    host_offloads: Offload
    guest_offloads: Offload

    @property
    def has_control(self) -> bool: ...
    @property
    def link_up(self) -> bool: ...
    @property
    def negotiated_mtu(self) -> int | None: ...
    def follow_link(self) -> None: ...


class ControlOwner(PartOwner, Protocol):
    """Known to the control queue, which changes the device."""

    max_pairs: int
    acknowledged: int

    def announced(self) -> None: ...
    def set_driver_mac(self, mac: bytes) -> None: ...
    def set_guest_offloads(self, features: int) -> None: ...
    def use_pairs(self, pairs: int) -> None: ...
