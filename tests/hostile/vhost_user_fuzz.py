"""A campaign against a vhost-user server: named attacks, and random messages in between."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from iolane.carriers.vhost_user import DataPlane, FrontEnd, SharedMemory, VhostUserServer
from iolane.carriers.vhost_user.protocol import HEADER, HeaderFlag, Request
from iolane.model.virtio import VirtioDevice
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio import DriverMemory
from tests.hostile.vhost_user_attacks import ATTACKS, FEATURES, Attack, Scene
from tests.hostile.vhost_user_link import GUARD, GUEST, RAM, USER, Found, Link, Ram
from tests.unit.carriers.vhost_user.sample import WANTED, Driver, Network

INTERESTING = (
    0,
    1,
    2,
    7,
    8,
    0xFF,
    0x100,
    0xFFFF,
    1 << 31,
    0xFFFF_FFFF,
    GUEST,
    USER,
    RAM,
    GUARD,
    (1 << 64) - 1,
)


def descriptors() -> Counter[str]:
    """Open descriptors by what they are."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[os.readlink(f"/proc/self/fd/{name}").partition(":[")[0]] += 1
    return found


class Fuzz:
    """Each session is a connection with some attacks and much noise; after it everything is as before."""

    def __init__(
        self, device: VirtioDevice, folder: Path, *, seed: int, plane: Callable[[VirtioDevice], DataPlane]
    ) -> None:
        self.dice = random.Random(seed)
        self.device = device
        self.path = folder / "s"
        self.plane = plane
        self.ram = Ram()
        self.sent = 0
        self.sessions = 0

    def run(self, messages: int) -> Counter[str]:
        """Send at least that many; how often each rejection was met."""
        with Workers(2) as workers:
            with VhostUserServer(self.device, self.path, workers=workers, plane=self.plane) as server:
                self._probe(server)
                before = descriptors()
                while self.sent < messages:
                    self._session(server)
                    if descriptors() != before:
                        left = descriptors() - before
                        raise Found(f"left after session {self.sessions}: {dict(left)}")
                self._probe(server)
                hits = Counter({kind.name: count for kind, count in server.statistics.rejections.items()})
        self.device.close()
        self.ram.close()
        return hits

    def _session(self, server: VhostUserServer) -> None:
        dice = self.dice
        self.sessions += 1
        self.ram.restore()
        self.ram.fill(dice)
        first = ATTACKS[self.sessions % len(ATTACKS)]
        running = first.running or dice.random() < 0.2
        others = [attack for attack in ATTACKS if attack.running <= running]
        chosen = [first, *dice.sample(others, dice.randrange(5))]
        self._refuse(chosen[0].rejection == "VRING_REFUSED")
        link = Link(self.path)
        scene = Scene(link, self.ram, dice)
        try:
            self._play(scene, chosen, running)
        finally:
            self.sent += link.sent
            scene.close()
        if not server.wait_idle(10):
            raise Found("the server does not come to an end with its front end")
        self._check(server)

    def _play(self, scene: Scene, attacks: list[Attack], running: bool) -> None:
        scene.link.negotiate(FEATURES)
        if running:
            scene.run()
        for attack in attacks:
            attack.run(scene)
            for _ in range(self.dice.randrange(4)):
                if scene.link.ended:
                    return
                self._noise(scene)
            if scene.link.ended:
                return
        if self.dice.random() < 0.1:
            os.ftruncate(self.ram.fd, self.dice.randrange(GUARD + RAM))
            os.eventfd_write(scene.kick, 1)
            scene.link.ask(Request.GET_FEATURES)

    def _check(self, server: VhostUserServer) -> None:
        if os.fstat(self.ram.fd).st_size == RAM + 2 * GUARD:
            self.ram.check()
        device = self.device
        if device.dma.maps or any(queue.ring is not None for queue in device.queues):
            raise Found("memory or rings are left")
        if device.error_count:
            raise Found(f"{device.error_count} exceptions in the device")
        if server.statistics.device_errors or not server.running:
            raise Found("an exception came out of a handler, or the server is dead")

    def _noise(self, scene: Scene) -> None:
        """A random message: its request, payload and descriptors likely, or anything."""
        dice = self.dice
        request = dice.choice(list(Request)) if dice.random() < 0.95 else dice.getrandbits(32)
        length = dice.choice([0, 8, 8, 8, 12, 20, 24, 40, 40, 40, 72, dice.randrange(400)])
        words = [dice.choice(INTERESTING) if dice.random() < 0.8 else dice.getrandbits(64) for _ in range(50)]
        payload = b"".join((word & (1 << 64) - 1).to_bytes(8, "little") for word in words)[:length]
        if length == 8 and dice.random() < 0.7:
            payload = dice.randrange(3).to_bytes(4, "little") + dice.choice(INTERESTING[:8]).to_bytes(
                4, "little"
            )
        fds = dice.sample(scene.descriptors, dice.choice([0, 0, 0, 1, 1, 1, 2, 8]))
        if dice.random() < 0.05:
            mutated = bytearray(
                HEADER.pack(request & 0xFFFF_FFFF, 1 | HeaderFlag.NEED_REPLY, length) + payload
            )
            mutated[dice.randrange(HEADER.size)] ^= 1 << dice.randrange(8)
            scene.link.socket.sendall(mutated)
            scene.link.sent += 1
            scene.link.ended = True
            return
        scene.link.ask(request, payload, fds)

    def _refuse(self, refuse: bool) -> None:
        if isinstance(self.device, Network):
            self.device.refuse = refuse

    def _probe(self, server: VhostUserServer) -> None:
        """A well-behaved front end is served."""
        self._refuse(False)
        with SharedMemory(1 << 20) as memory:
            with FrontEnd(self.path, [memory], wanted=WANTED) as front:
                heap = DriverMemory(memory.view, memory.guest_address)
                driver = Driver(heap, front.kicker(0), front.rings[0].wait_call)
                front.start(0, driver.ring)
                request = bytes(16)  # of a disk: the first sector
                driver.ring.send(request, [512, 1])
                driver.ring.kick()
                driver.answers(1)
            if not server.wait_idle(10):
                raise Found("the server hangs")
