"""Network devices for hostile rings, one on each data plane, and a network that sends all sorts of things."""

from __future__ import annotations

import contextlib
import os
import random

from iolane.devices.virtio.net import BareNet
from iolane.devices.virtio.net.features import NetFeature
from iolane.memory.signals import Signaller
from iolane.model.virtio import Virtqueue
from iolane.model.virtio.compiled_ring import CompiledRing, UnreachableRing, Wires
from iolane.model.virtio.features import mask
from iolane.model.virtio.queue import split_ring
from iolane.model.virtio.split_ring import Ring
from iolane.testing.drivers.virtio_hostile import HostileRing
from iolane.testing.drivers.virtio_hostile_net import HEADER, packet
from tests.hostile.ring_victims import Outcome, RingVictim
from tests.unit.devices.virtio.packet_socket import SocketTap

OFFLOADS = mask((NetFeature.CSUM, NetFeature.HOST_TSO4, NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO4))
PLAIN = bytes(HEADER + 60)
"""What arrives where the wrong chain is to have a packet of its own."""
ARRIVING = 24
"""Packets that arrive for a receive queue: more than a ring has chains."""


class NetVictim(RingVictim):
    """A network device, one of whose queues runs.

    Args:
        receives: it is the receive queue.
        mergeable: what is negotiated.
    """

    device: BareNet

    def __init__(self, *, receives: bool, mergeable: bool) -> None:
        self.tap = SocketTap(tells=False)
        self._receives = receives
        self._negotiated = OFFLOADS | (mask((NetFeature.MRG_RXBUF,)) if mergeable else 0)
        self._counted = 0
        super().__init__(BareNet(backend=self.tap, queue_size=256), 0 if receives else 1)

    def features(self, ring: HostileRing) -> int:
        return super().features(ring) | self._negotiated

    def play(self, ring: HostileRing, seed: int) -> Outcome:
        """`run`, with packets that arrive."""
        chance = random.Random(seed)
        for _ in range(ARRIVING if self._receives else 0):
            data = packet(chance) if ring.name == "random" else PLAIN
            self.tap.feed(data[HEADER:], header=data[:HEADER])
        outcome = self.run(ring)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(self.tap._fds[0], 1 << 17)
        return outcome

    def serve(self, ring: HostileRing) -> None:
        self.queue.start()
        self.queue.kick()

    def disk(self) -> bytes:
        """What was sent; and how many packets passed, by which reason others did not."""
        sent = [head + frame for _, head, frame in self.tap.sent]
        self.tap.take()
        counts = {
            key: value
            for key, value in self.device.counters.snapshot().items()
            if "mit_" in key or "ceive_" in key
        }
        shown = self.device.statistics()
        passed = [
            shown[f"{name}0.{what}"]
            for name in ("receive", "transmit")
            for what in ("packets", "packet_bytes")
        ]
        return b"".join(sent) + repr((sorted(counts.items()), passed)).encode()

    def close(self) -> None:
        super().close()
        self.tap.close()


class CompiledNetVictim(NetVictim):
    """The same on the compiled data plane, in the caller's thread or in one of its own.

    Attributes:
        compiled: rings that compiled code served.
        fast: chains of the last ring that it did by itself.
    """

    def __init__(self, *, receives: bool, mergeable: bool, thread: bool = False) -> None:
        super().__init__(receives=receives, mergeable=mergeable)
        self._thread = thread
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.compiled = self.fast = 0

    def serve(self, ring: HostileRing) -> None:
        queue, self.fast = self.queue, 0
        queue.make_ring = self._make
        queue.start()
        compiled = queue.ring
        if not isinstance(compiled, CompiledRing) or queue.rejection is not None:
            queue.kick()
            return
        if self._thread:
            self._serve_in_thread(compiled)
        else:
            compiled.drain()
        self.compiled += 1
        self.fast = compiled.counts["chains"]

    def _serve_in_thread(self, ring: CompiledRing) -> None:
        """For a moment; what is left then is done in the caller's thread."""
        ring.start()
        self.device.changed.wait(0.005)
        ring.pause()
        ring._engine.rearm()
        if self.queue.rejection is None:
            ring.drain()

    def _make(self, queue: Virtqueue, last: int, used: int | None) -> Ring:
        try:
            return CompiledRing(
                self.device,
                queue,
                last,
                used,
                self.device.compiled_path(queue),
                Wires(self.kick, -1, Signaller().signal),
            )
        except UnreachableRing:
            return split_ring(queue, last, used)

    def close(self) -> None:
        super().close()
        os.close(self.kick)
