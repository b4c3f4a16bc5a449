"""Configuration of the network device (virtio 1.3, 5.1.4)."""

from __future__ import annotations

from iolane.model.registers import Register8, Register16, RegisterMap, register, register_array


class NetConfig(RegisterMap):
    """struct virtio_net_config, as far as it is offered."""

    MAC = register_array(0x0, Register8, 6, access="ro")
    STATUS = register(0x6, Register16, access="ro", doc="1: the link is up, 2: announce yourself")
    MAX_VIRTQUEUE_PAIRS = register(0x8, Register16, access="ro")
    MTU = register(0xA, Register16, access="ro")
