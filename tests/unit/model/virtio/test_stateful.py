"""Both sides of a queue in any order of steps: nothing is lost, doubled, mixed up, or left asleep."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iolane.model.virtio import Chain
from tests.unit.model.virtio.ring_pair import RingPair


class Ring(RuleBasedStateMachine):
    """The driver offers and collects; the device pops, uses in any order, publishes, and goes to sleep.

    Sleep is the point of 2.7.7 and 2.7.10: who sleeps must be woken, by a kick or an interrupt, whenever
    there is something to do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = RingPair()
        self.offered: dict[int, bytes] = {}
        self.popped: list[Chain] = []
        self.used: dict[int, bytes] = {}
        self.device_sleeps = self.driver_sleeps = False
        self.number = 0

    @initialize(
        event_idx=st.booleans(), size=st.sampled_from([1, 2, 4, 16]), start=st.sampled_from([0, 0xFFFD])
    )
    def make(self, event_idx: bool, size: int, start: int) -> None:
        pair = self.pair = RingPair(size, event_idx=event_idx)
        driver = pair.driver
        driver.available_index = driver.used_seen = driver._announced = start
        pair.put(driver.available + 2, start)
        pair.put(driver.used + 2, start)
        driver.ask_interrupt(start)
        pair.device = pair.attach(start)
        pair.device.enable_kicks()

    # The driver.

    @rule(pieces=st.integers(1, 3), room=st.integers(0, 2), indirect=st.booleans())
    def offer(self, pieces: int, room: int, indirect: bool) -> None:
        count = 1 if indirect else pieces + room
        if count > len(self.pair.driver._free) or pieces + room > self.pair.device.chain_limit:
            return
        self.number += 1
        data = [b"%d.%d" % (self.number, place) for place in range(pieces)]
        head = self.pair.driver.send(data, [7] * room, indirect=indirect)
        self.offered[head] = b"".join(data)

    @rule()
    def kick(self) -> None:
        before = self.pair.kicked
        self.pair.driver.kick()
        if self.pair.kicked > before:
            self.device_sleeps = False

    @rule()
    def collect(self) -> None:
        for used in self.pair.driver.collect():
            assert self.used.pop(used.head) == used.data
        self.driver_sleeps = True

    # The device.

    @precondition(lambda self: not self.device_sleeps)
    @rule()
    def pop(self) -> None:
        chain = self.pair.device.pop()
        if chain is None:
            self.device_sleeps = not self.pair.device.enable_kicks()
            return
        assert chain.read(self.pair.dma) == self.offered[chain.head]
        self.popped.append(chain)

    @precondition(lambda self: self.popped)
    @rule(choice=st.randoms(use_true_random=False))
    def push(self, choice: st.DrawFn) -> None:
        chain = self.popped.pop(choice.randrange(len(self.popped)))  # type: ignore[attr-defined]
        data = b"answer %d" % chain.head
        count = chain.write(self.pair.dma, data)
        self.pair.device.push(chain.head, count)
        self.used[chain.head] = data[:count]
        del self.offered[chain.head]

    @rule()
    def publish(self) -> None:
        pair = self.pair
        pair.device.publish()
        assert pair.u16(pair.driver.used + 2) == pair.device.used_index
        if pair.device.needs_interrupt():
            self.driver_sleeps = False

    @rule()
    def go_on_elsewhere(self) -> None:
        """Save and load: a new device side from the indices alone, its chains fetched again."""
        device, heads = self.pair.device, [chain.head for chain in self.popped]
        device.publish()
        self.pair.device = self.pair.attach(device.last_available, device.used_index)
        self.popped = [self.pair.device.fetch(head) for head in heads]
        self.device_sleeps = self.driver_sleeps = False
        self.pair.device.enable_kicks()

    @invariant()
    def nobody_sleeps_for_ever(self) -> None:
        """Everything announced and published: then whoever has something to do is awake."""
        pair = self.pair
        driver, device = pair.driver, pair.device
        if self.device_sleeps and driver._announced == driver.available_index:
            assert device.last_available == driver.available_index
        if self.driver_sleeps and not device.unpublished and device._signalled == device.used_index:
            assert driver.used_seen == device.used_index


TestRing = Ring.TestCase
TestRing.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
