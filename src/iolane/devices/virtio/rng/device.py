"""An entropy device: fills the guest's buffers with the host's randomness (virtio 1.3, 5.4)."""

from __future__ import annotations

import os
from pathlib import Path

from iolane.errors import IolaneError
from iolane.model.clock import Timer
from iolane.model.reset import ResetKind
from iolane.model.virtio import Chain, VirtioDevice, Virtqueue
from iolane.uapi.virtio import DeviceType

QUEUE_SIZE = 64
LARGEST = 1 << 16
"""Bytes for one buffer; a device may fill less than a buffer (5.4.6.2)."""
PERIOD_NS = 100_000_000
"""With a rate, how often what it allows is handed out."""


class Rng(VirtioDevice):
    """The entropy device.

    Args:
        source: a file to read from, /dev/hwrng for instance; by default the kernel's generator.
        rate: bytes a second at most; 0 for no limit.
    """

    device_type = DeviceType.RNG

    def __init__(self, source: Path | None = None, *, rate: int = 0, name: str | None = None) -> None:
        if rate < 0:
            raise IolaneError(f"a rate is bytes a second, not {rate}", remedy="leave it out for no limit")
        super().__init__([QUEUE_SIZE], queue_names=["requests"], name=name)
        self.rate = rate
        self.source = source
        self._fd = -1 if source is None else _open(source)
        self._period = 0
        """When the present period began, in the device's time."""
        self._budget = self._allowance()
        self._timer: Timer | None = None

    def _allowance(self) -> int:
        """Bytes that a period allows."""
        return max(1, self.rate * PERIOD_NS // 1_000_000_000)

    def on_kick(self, queue: Virtqueue) -> None:
        """Serve what the rate allows; the rest stays in the ring until the next period."""
        if not self.rate:
            super().on_kick(queue)
            return
        now = self.clock.now_ns()
        if now - self._period >= PERIOD_NS:
            self._period, self._budget = now, self._allowance()
        while self._budget > 0:
            chain = queue.pop()
            if chain is None:
                return
            self.handle(queue, chain)
        if self._timer is None or not self._timer.active:
            self._timer = self.clock.call_at(self._period + PERIOD_NS, queue.service)

    def handle(self, queue: Virtqueue, chain: Chain) -> None:
        """One or more random bytes into the buffer (5.4.6.2)."""
        count = min(chain.writable_length, LARGEST)
        if self.rate:
            count = min(count, self._budget)
            self._budget -= max(count, 1)
        if not count:
            self.counters.add("empty_buffers")
            queue.push(chain, 0)
        elif self._fd < 0:
            self._deliver(queue, chain, os.urandom(count))
        else:
            self.tasks.run(
                lambda: os.read(self._fd, count),
                lambda data: self._deliver(queue, chain, data),
                lambda error: self._failed(queue, chain),
            )

    def _deliver(self, queue: Virtqueue, chain: Chain, data: bytes) -> None:
        if not data:
            self._failed(queue, chain)
            return
        with queue.batch():
            self.counters.add("bytes_delivered", len(data))
            queue.push(chain, chain.write(self.dma, data))

    def _failed(self, queue: Virtqueue, chain: Chain) -> None:
        """The source gives nothing: the kernel's generator stands in, a buffer never comes back empty."""
        self.counters.add("source_failures")
        self._deliver(queue, chain, os.urandom(min(chain.writable_length, LARGEST)))

    def on_reset(self, kind: ResetKind) -> None:
        """The timer is gone; what the period still allows is not given twice."""
        self._timer = None

    def on_load(self) -> None:
        super().on_load()
        self._timer, self._period = None, self.clock.now_ns()

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _open(source: Path) -> int:
    try:
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise IolaneError(f"{source}: {(error.strerror or str(error)).lower()}") from error
