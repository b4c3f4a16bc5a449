"""Random accesses to virtio functions, in and out of order: no exception, no byte outside of the memory."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.backends.stream import MemoryStream
from iolane.devices.virtio.block import BlockFunction
from iolane.devices.virtio.console import ConsoleFunction
from iolane.devices.virtio.rng import RngFunction
from iolane.model.virtio import Status
from iolane.model.virtio.pci import VirtioPci
from iolane.model.virtio.pci.registers import CommonRegisters
from iolane.testing.drivers.function import MEMORY_START
from iolane.testing.drivers.virtio_hostile import PAGE
from iolane.testing.drivers.virtio_pci import VirtioPciDriver

pytestmark = pytest.mark.hostile

STEPS = 3000
MEMORY = 64 * PAGE
MAKERS: dict[str, Callable[[], VirtioPci]] = {
    "block": lambda: BlockFunction(backend=MemoryBackend(1 << 16), queues=2, queue_size=16),
    "console": lambda: ConsoleFunction(MemoryStream(64), port=["a=memory", "b=null"], max_ports=4),
    "rng": lambda: RngFunction(rate=4096),
}
VALUES = (0, 1, 2, 3, 4, 8, 0xF, 0x10, 0x40, 0x80, 0xFF, 0xFFFF, 0x8000_0000, 0xFFFF_FFFF)


class Fuzzer:
    """A driver that has forgotten what it wanted: sets up, scribbles, kicks, resets, and starts over."""

    def __init__(self, function: VirtioPci, seed: int) -> None:
        self.chance = random.Random(seed)
        self.guest = VirtioPciDriver(function, memory=MEMORY, queue_size=8)
        self.function = function

    def value(self) -> int:
        chance = self.chance
        address = MEMORY_START + chance.randrange(MEMORY)
        return chance.choice((chance.choice(VALUES), chance.getrandbits(32), address))

    def step(self) -> None:
        chance = self.chance
        pick = chance.random()
        if pick < 0.35:
            offset = chance.choice([spec.offset for spec in CommonRegisters.layout.registers])
            self.guest.write(offset, chance.choice((1, 2, 4)), self.value() & 0xFF)
        elif pick < 0.5:
            self.anywhere()
        elif pick < 0.75:
            at = chance.randrange(MEMORY - 16)
            self.guest.memory[at : at + 16] = chance.randbytes(16)
        elif pick < 0.95:
            self.guest.notify(chance.randrange(len(self.function.virtio.queues)))
        elif pick < 0.98:
            self.function.clock.advance(10_000_000)
        else:
            self.start_over()

    def anywhere(self) -> None:
        """Any region, any offset, any size."""
        regions = [region for region in self.function.regions if region is not None]
        region = self.chance.choice(regions)
        size = self.chance.choice((1, 2, 4, 8) if region.widest == 8 else (1, 2, 4))
        offset = self.chance.randrange(region.size - size + 1)
        with self.function.lock:
            region.read(offset, size)
            if region is not self.function.config:
                region.write(offset, size, self.value() & ((1 << 8 * size) - 1))

    def start_over(self) -> None:
        self.guest.reset()
        self.guest.memory[:] = bytes(MEMORY)
        features = self.chance.choice(((1 << 64) - 1, 1 << 32, 1 << 32 | 1 << 28))
        self.guest.negotiate(features)
        self.guest.set_up_queues(self.chance.choice((1, 2, 8)))
        if self.chance.random() < 0.9:
            self.guest.add_status(Status.DRIVER_OK)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MAKERS)
def test_nothing_a_driver_does_is_an_error(name: str, seed: int) -> None:
    function = MAKERS[name]()
    fuzzer = Fuzzer(function, seed)
    for _ in range(STEPS):
        fuzzer.step()
        assert function.error_count == 0
    document = function.save()
    other = MAKERS[name]()
    other.load(document)
    assert other.save() == document.replace(function.name.encode(), other.name.encode())
    fuzzer.start_over()
    other.close()
    fuzzer.guest.close()
