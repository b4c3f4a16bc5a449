"""A split ring that leaves traces: in the in-flight area, and in the log of the used ring."""

from __future__ import annotations

from collections.abc import Container

from iolane.carriers.vhost_user.inflight import InflightQueue
from iolane.carriers.vhost_user.log import SharedLog
from iolane.model.virtio import Chain, SplitRing

USED_HEADER = 4
USED_ELEMENT = 8


class TracedRing(SplitRing):
    """The readable ring as vhost-user needs it.

    Attributes:
        inflight: where chains that are in flight are noted, or None.
        log: where writes to the used ring are marked, or None.
        log_address: the guest address that stands for the used ring in the log.
    """

    inflight: InflightQueue | None = None
    log: SharedLog | None = None
    log_address = 0

    def pop(self, in_flight: Container[int] = ()) -> Chain | None:
        chain = super().pop(in_flight)
        if chain is not None and self.inflight is not None:
            self.inflight.take(chain.head)
        return chain

    def unpop(self, head: int) -> None:
        super().unpop(head)
        if self.inflight is not None:
            self.inflight.untake(head)

    def push(self, head: int, written: int) -> None:
        place = self.used_index % self.size
        super().push(head, written)
        if self.inflight is not None:
            self.inflight.give_back(head)
        if self.log is not None:
            self.log.mark(self.log_address + USED_HEADER + USED_ELEMENT * place, USED_ELEMENT)

    def publish(self) -> None:
        if not self.unpublished:
            return
        super().publish()
        if self.inflight is not None:
            self.inflight.published(self.used_index)

    def _store(self, address: int, value: int) -> None:
        """Single values are only ever stored in the used ring."""
        super()._store(address, value)
        if self.log is not None:
            self.log.mark(self.log_address + address - self.used, 2)
