"""The network device without a control queue: whoever carries it keeps address, filters and link state."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from iolane.backends.net import Capture, NetBackend
from iolane.devices.virtio.net.device import Net
from iolane.devices.virtio.net.features import NetFeature
from iolane.devices.virtio.net.network import open_network
from iolane.model.registers import RegisterMap
from iolane.model.virtio.features import mask


class BareNet(Net):
    """The receive and transmit queues of a network device, and nothing else: what vhost-user carries.

    Args:
        tap: a tap of the host.
        peer: a unix socket, `unix:PATH`, `listen:PATH` or `fd:N`, as QEMU's `-netdev stream` speaks.
        passt: the unprivileged network of passt.
        forward: with passt, TCP ports of the host that lead into the guest: `8080:80`.
        queues: queue pairs; more than one needs a tap.
        queue_size: largest size of a queue, a power of two.
        mtu: the longest packet, less its Ethernet header, that the guest is told of.
        guest_announce: after a migration the guest announces itself, VLANs included, rather than the front
            end. A front end that has no control queue (User Mode Linux) can't drive such a device.
        pcap: a file for what passes.
    """

    Config: ClassVar[type[RegisterMap]] = RegisterMap

    def __init__(
        self,
        tap: str | None = None,
        *,
        peer: str | None = None,
        passt: bool = False,
        forward: list[str] | None = None,
        queues: int = 1,
        queue_size: int = 1024,
        mtu: int | None = None,
        guest_announce: bool = False,
        pcap: Path | None = None,
        backend: NetBackend | None = None,
        name: str | None = None,
    ) -> None:
        self.guest_announce = guest_announce
        capture = None if pcap is None else Capture(pcap)
        network = backend
        try:
            network = network or open_network(tap, peer, passt, forward or (), queues)
            super().__init__(
                network,
                queues=queues,
                queue_size=queue_size,
                mtu=mtu,
                control_queue=False,
                capture=capture,
                name=name or "net",
            )
        except BaseException:
            if capture is not None:
                capture.close()
            if network is not None:
                network.close()
            raise
        self.start()

    def offered_features(self) -> int:
        announce = mask((NetFeature.GUEST_ANNOUNCE,)) if self.guest_announce else 0
        return super().offered_features() | announce
