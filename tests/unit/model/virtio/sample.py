"""A virtio device for the tests of the model: gives back what it gets, now or later."""

from __future__ import annotations

from iolane.errors import IolaneError
from iolane.model.registers import Register16, Register32, Register64, RegisterMap, register
from iolane.model.virtio import Chain, VirtioDevice, Virtqueue
from iolane.uapi.virtio import DeviceType


class EchoConfig(RegisterMap):
    LENGTH = register(0x0, Register64, access="ro")
    MODE = register(0x8, Register32)
    TAIL = register(0xC, Register16, access="ro")


class Echo(VirtioDevice):
    """`hold` keeps chains, `slow` answers from a task, `crash` is a bug in the device."""

    device_type = DeviceType.FS
    Config = EchoConfig
    config: EchoConfig

    def __init__(self, queues: int = 2, size: int = 16) -> None:
        super().__init__([size] * queues)
        self.hold = self.slow = self.crash = self.refuse = False
        self.held: list[tuple[Virtqueue, Chain]] = []
        self.length = 1 << 32
        self.events: list[str] = []
        self.fill_config()

    def offered_features(self) -> int:
        return 0b11

    def check_features(self, features: int) -> bool:
        """Feature 1 needs feature 0."""
        return features & 0b11 != 0b10

    def fill_config(self) -> None:
        self.config.LENGTH = self.length
        self.config.TAIL = 0xABCD

    def on_queue_start(self, queue: Virtqueue) -> None:
        if self.refuse:
            raise IolaneError("not now")
        self.events.append(f"start {queue.index}")

    def on_queue_stop(self, queue: Virtqueue) -> None:
        self.events.append(f"stop {queue.index}")

    def handle(self, queue: Virtqueue, chain: Chain) -> None:
        if self.crash:
            raise RuntimeError("a bug")
        if self.hold:
            self.held.append((queue, chain))
        elif self.slow:
            data = chain.read(self.dma)
            self.tasks.run(lambda: data, lambda done: self.answer(queue, chain, done), lambda error: None)
        else:
            self.answer(queue, chain, chain.read(self.dma))

    def answer(self, queue: Virtqueue, chain: Chain, data: bytes) -> None:
        queue.push(chain, chain.write(self.dma, data))
