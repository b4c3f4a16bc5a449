"""What compiled code may do of a network device by itself: plain packets, which nobody looks at."""

from __future__ import annotations

from iolane.backends.net import LARGEST_FRAME
from iolane.devices.virtio.net.features import NetFeature
from iolane.devices.virtio.net.header import ETHERNET_HEADER, VLAN_TAG
from iolane.devices.virtio.net.owner import WayOwner
from iolane.memory.ring import NetPath


def net_path(net: WayOwner, pair: int, *, receives: bool) -> NetPath | None:
    """The path of a queue, or None.

    With a control queue there are filters, and a capture sees every packet: these packets are Python's.
    """
    if net.has_control or net.capture is not None:
        return None
    port = net.backend.open_port(pair)
    return None if port is None else NetPath(port, receives=receives)


def agree(path: NetPath, net: WayOwner) -> None:
    """Tell a path what was negotiated. Its queue does not run."""
    mtu = net.negotiated_mtu
    path.agree(
        offloads=int(net.guest_offloads if path.receives else net.host_offloads),
        longest=LARGEST_FRAME if mtu is None else mtu + ETHERNET_HEADER + VLAN_TAG,
        mergeable=net.negotiated(NetFeature.MRG_RXBUF),
        checksums=net.negotiated(NetFeature.GUEST_CSUM),
    )
    path.open = net.link_up
