"""The network device as a PCI function."""

from __future__ import annotations

from pathlib import Path

from iolane.backends.net import Capture, NetBackend
from iolane.devices.virtio.net.device import Net
from iolane.devices.virtio.net.network import open_network
from iolane.model.pci import Presentation
from iolane.model.virtio.pci import VirtioPci


class NetFunction(VirtioPci):
    """A virtio network device on PCI; Linux's virtio_net makes it eth0.

    Args:
        tap: a tap of the host.
        peer: a unix socket, `unix:PATH`, `listen:PATH` or `fd:N`, as QEMU's `-netdev stream` speaks.
        passt: the unprivileged network of passt.
        forward: with passt, TCP ports of the host that lead into the guest: `8080:80`.
        mac: the guest's address; by default one made of the network's name.
        queues: queue pairs; more than one needs a tap.
        queue_size: largest size of a queue, a power of two.
        mtu: the longest packet, less its Ethernet header, that the guest is told of.
        link: whether the link is up at the start.
        pcap: a file for what passes.
    """

    virtio: Net

    def __init__(
        self,
        tap: str | None = None,
        *,
        peer: str | None = None,
        passt: bool = False,
        forward: list[str] | None = None,
        mac: str | None = None,
        queues: int = 1,
        queue_size: int = 256,
        mtu: int | None = None,
        link: bool = True,
        pcap: Path | None = None,
        backend: NetBackend | None = None,
        presentation: Presentation | str = Presentation.AUTO,
        name: str | None = None,
    ) -> None:
        capture = None if pcap is None else Capture(pcap)
        network = backend
        try:
            network = network or open_network(tap, peer, passt, forward or (), queues)
            net = Net(
                network,
                mac=mac,
                queues=queues,
                queue_size=queue_size,
                mtu=mtu,
                link=link,
                capture=capture,
            )
            super().__init__(net, presentation=presentation, name=name or "net")
        except BaseException:
            if capture is not None:
                capture.close()
            if network is not None:
                network.close()
            raise
        net.start()
