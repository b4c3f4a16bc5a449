"""A port of a console: a byte stream each way (virtio 1.3, 5.3.6)."""

from __future__ import annotations

from collections.abc import Callable

from iolane.backends.stream import StreamBackend
from iolane.devices.virtio.console.state import PortState
from iolane.model.dma import DmaSpace
from iolane.model.virtio import Chain, Virtqueue

CHUNK = 4096
BUDGET = 1 << 20
"""Bytes that one service moves before others get their turn."""


class Port:
    """One port; its queues and its stream both call for `service`, in their directions.

    Attributes:
        ready: the driver has made the port (PORT_READY).
        guest_open: somebody in the guest has it open; without MULTIPORT the driver is that.
        host_open: the guest was told that the stream has a peer.
    """

    def __init__(
        self,
        index: int,
        name: str,
        stream: StreamBackend,
        receive: Virtqueue,
        transmit: Virtqueue,
        *,
        console: bool,
    ) -> None:
        self.index = index
        self.name = name
        self.stream = stream
        self.receive = receive
        self.transmit = transmit
        self.console = console
        self.ready = self.guest_open = self.host_open = False
        self._pending = b""
        self._current: Chain | None = None
        self._sent = 0

    def reset(self) -> None:
        """The driver is gone; input that it has not taken stays for the next."""
        self.ready = self.guest_open = self.host_open = False
        self._current = None
        self._sent = 0

    def fill(self, dma: DmaSpace, later: Callable[[], None]) -> None:
        """Move input into the guest's buffers. Without a buffer it stays with the stream."""
        budget = BUDGET
        while self.guest_open and budget > 0:
            if not self._pending:
                self._pending = self.stream.read(CHUNK)
            if not self._pending:
                return
            chain = self.receive.pop()
            if chain is None:
                return
            count = chain.write(dma, self._pending)
            self.receive.push(chain, count)
            self._pending = self._pending[count:]
            budget -= max(count, CHUNK // 16)
        if budget <= 0:
            later()

    def drain(self, dma: DmaSpace, later: Callable[[], None]) -> None:
        """Move the guest's output into the stream; a chain goes back when all of it was taken."""
        budget = BUDGET
        while budget > 0:
            if self._current is None:
                self._current = self.transmit.pop()
            if self._current is None:
                return
            data = self._current.read(dma, self._sent, CHUNK)
            taken = self.stream.write(data) if data else 0
            self._sent += taken
            budget -= max(taken, CHUNK // 16)
            if taken < len(data):
                return  # the stream tells when it takes more
            if self._sent >= self._current.readable_length:
                self.transmit.push(self._current)
                self._current, self._sent = None, 0
        later()

    def give_up(self) -> None:
        """The port goes away: what the guest still had to say has nowhere to go."""
        if self._current is not None:
            self.transmit.push(self._current)
        self._current, self._sent = None, 0

    def save(self) -> PortState:
        """Everything but the stream, as data."""
        return PortState(
            index=self.index,
            name=self.name,
            console=self.console,
            ready=self.ready,
            guest_open=self.guest_open,
            host_open=self.host_open,
            pending=self._pending,
            sent=self._sent,
        )

    def load(self, state: PortState) -> None:
        """Become what was saved; the chain that `sent` is about is the first that the queue gives again."""
        self.ready, self.guest_open, self.host_open = state.ready, state.guest_open, state.host_open
        self._pending = state.pending
        self._current, self._sent = None, state.sent

    def statistics(self) -> dict[str, int | float | str]:
        """What the stream counted, and who has the port open."""
        shown = {f"port{self.index}.{key}": value for key, value in self.stream.statistics().items()}
        return {**shown, f"port{self.index}.guest_open": int(self.guest_open)}
