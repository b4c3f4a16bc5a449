"""Random accesses to virtio functions, in and out of order: no exception, no byte outside of the memory."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.backends.stream import MemoryStream
from iolane.devices.virtio.block import BlockFunction
from iolane.devices.virtio.console import ConsoleFunction
from iolane.devices.virtio.rng import RngFunction
from iolane.model.virtio import Feature, Status
from iolane.model.virtio.pci import VirtioPci
from iolane.model.virtio.pci.registers import CommonRegisters
from iolane.testing.drivers.function import MEMORY_START
from iolane.testing.drivers.virtio_hostile import PAGE
from iolane.testing.drivers.virtio_pci import VirtioPciDriver

pytestmark = pytest.mark.hostile

STEPS = 4000
MEMORY = 64 * PAGE
MAKERS: dict[str, Callable[[], VirtioPci]] = {
    "block": lambda: BlockFunction(backend=MemoryBackend(1 << 16), queues=2, queue_size=16),
    "console": lambda: ConsoleFunction(MemoryStream(64), port=["a=memory", "b=null"], max_ports=4),
    "rng": lambda: RngFunction(rate=4096),
}
VALUES = (0, 1, 2, 3, 4, 8, 0xF, 0x10, 0x40, 0x80, 0xFF, 0xFFFF, 0x8000_0000, 0xFFFF_FFFF)


class Fuzzer:
    """A driver that has forgotten what it wanted: sets up, offers, scribbles, kicks, resets, starts over."""

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
        if pick < 0.45 and self.guest.rings:
            self.offer()
        elif pick < 0.7 and self.guest.rings:
            last = self.guest.rings[-1]
            at = chance.randrange(last.used + 4 + 8 * last.size - MEMORY_START)
            self.guest.memory[at : at + 4] = chance.choice(
                (chance.randbytes(4), self.value().to_bytes(4, "little"))
            )
        elif pick < 0.85:
            self.guest.notify(chance.randrange(len(self.function.virtio.queues)))
        elif pick < 0.9:
            self.function.clock.advance(10_000_000)
        elif pick < 0.92:
            offset = chance.choice([spec.offset for spec in CommonRegisters.layout.registers])
            self.guest.write(offset, chance.choice((1, 2, 4)), self.value() & 0xFF)
        elif pick < 0.95:
            self.anywhere()
        else:
            self.start_over()

    def offer(self) -> None:
        """A chain that may make sense, as far as the rings still do."""
        chance = self.chance
        ring = chance.choice(self.guest.rings)
        header = struct.pack("<IIQ", chance.choice((0, 1, 4, 8, 11, 13)), 0, chance.randrange(130))
        control = struct.pack("<IHH", chance.randrange(4), chance.choice((0, 3, 6)), 1)
        data = chance.choice((header, control, header + bytes(512), b""))
        try:
            room = chance.choice((0, 1, 21, 513)) if data else 64
            indirect = self.guest.has(Feature.INDIRECT_DESC) and chance.random() < 0.3
            ring.send(data, room, indirect=indirect)
            ring.collect()
        except (MemoryError, KeyError, AssertionError):
            ring.used_seen = ring._u16(ring.used + 2)
        ring.kick()

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
        features = self.chance.choice(((1 << 64) - 1, (1 << 64) - 1, 1 << 32, 1 << 32 | 1 << 28))
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
    chains = sum(queue.chains for queue in function.virtio.queues)
    broken = sum(queue.rejections for queue in function.virtio.queues)
    assert chains > 50
    assert broken > 0
    document = function.save()
    other = MAKERS[name]()
    other.load(document)
    assert other.save() == document
    fuzzer.start_over()
    other.close()
    fuzzer.guest.close()
