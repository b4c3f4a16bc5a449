"""Runs attacks against a server in this process, and looks for what must never happen."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import tests.hostile.vfio_user_attacks_commands
import tests.hostile.vfio_user_attacks_features  # noqa: F401  (they register)
from iolane.model.interrupts import InterruptIndex
from iolane.model.workers import Workers
from tests.hostile.vfio_user_attacks import ATTACKS, Attack, Kit, read, write
from tests.hostile.vfio_user_link import Found, Link, message
from tests.unit.carriers.vfio_user.sample import Sample

CHECK_EVERY = 500
WARM_UP = 0.2
GROWTH = 4 << 20
"""Bytes of resident memory that the allocator may come to keep after the warm-up."""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def areas() -> int:
    """Mappings of memory files."""
    return Path("/proc/self/maps").read_text().count("/memfd:")


class Guarded(Sample):
    """A device that sees whether it is asked for what is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        for region in self.regions:
            if region is not None:
                region.read = self._watch(region.size, region.read)
                region.write = self._watch(region.size, region.write)

    def _watch(self, size: int, inner: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(offset: int, length: int, *rest: int) -> Any:
            if length not in (1, 2, 4, 8) or not 0 <= offset <= size - length:
                self.outside.append(f"{offset:#x} + {length} of {size:#x}")
                return 0
            return inner(offset, length, *rest)

        return guarded


class Fuzz:
    """One campaign.

    Args:
        package: `iolane.carriers.vfio_user`, or a copy of it.
        seed: the campaign's; the same seed sends the same messages.
        timeout: seconds that a living server may take to answer.
    """

    def __init__(self, package: ModuleType, path: Path, *, seed: int, timeout: float = 10.0) -> None:
        self.package = package
        self.device = Guarded()
        self.hits: Counter[str] = Counter()
        self.sent: Counter[bool] = Counter()
        """Attacks made, by whether they pass the header's check."""
        self.rss: list[int] = []
        self._path = path
        self._timeout = timeout
        self._rng = random.Random(seed)
        by_header = {
            passes: [item for item in ATTACKS if item.passes_header is passes] for passes in (True, False)
        }
        self._attacks = by_header
        self._link: Link | None = None

    def connect(self, *, negotiate: bool = True) -> Link:
        """A connection; the server serves one at a time, so the present one goes."""
        if self._link is not None:
            self._link.close()
        self._link = Link(self._path, timeout=self._timeout, negotiate=negotiate)
        return self._link

    def run(self, count: int) -> None:
        """Make `count` attacks. Raises Found."""
        threads = threading.active_count()
        with Workers(1) as workers:
            server = self.package.VfioUserServer(self.device, self._path, workers=workers)
            server.start()
            kit = Kit(self._rng, self.connect)
            try:
                self._campaign(kit, server, count)
            finally:
                kit.close()
                if self._link is not None:
                    self._link.close()
                server.stop()
                self.hits.update({kind.name: hits for kind, hits in server.statistics.rejections.items()})
                self.device.close()
        if threading.active_count() != threads:
            raise Found("a thread is left")

    def _campaign(self, kit: Kit, server: Any, count: int) -> None:
        self._check(server)
        fds, maps = len(os.listdir("/proc/self/fd")), areas()
        for number in range(1, count + 1):
            self._attack(kit)
            if number % CHECK_EVERY == 0 or number == count:
                self._check(server)
                self._check_level("descriptors", len(os.listdir("/proc/self/fd")), fds)
                self._check_level("mappings of memory files", areas(), maps)
                self.rss.append(resident())
        warm = self.rss[int(len(self.rss) * WARM_UP) :]
        if len(warm) > 4:
            half = len(warm) // 2
            self._check_level("bytes of resident memory", max(warm[half:]), max(warm[:half]) + GROWTH)

    def _check_level(self, what: str, now: int, most: int) -> None:
        if now > most:
            raise Found(f"{now} {what}, where {most} should be the most")

    def _attack(self, kit: Kit) -> None:
        attack: Attack = self._rng.choice(self._attacks[self._rng.random() < 0.5])
        self.sent[attack.passes_header] += 1
        link = self._link
        if link is None or link.socket.fileno() < 0 or not self._alive(link):
            link = self.connect()
        try:
            attack.run(kit, link)
        except Found as found:
            raise Found(f"{attack.name}: {found}") from None

    def _alive(self, link: Link) -> bool:
        """Whether the server has not thrown this connection out."""
        link.socket.setblocking(False)
        try:
            return bool(link.socket.recv(1, 2))  # MSG_PEEK
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            link.socket.settimeout(self._timeout)

    def _check(self, server: Any) -> None:
        """A good client is served, and a client that went has left nothing."""
        link = self.connect()
        link.expect(message(13))
        link.expect(write(0, 0, b"\x11\x22\x33\x44"))
        if link.expect(read(0, 0, 4))[16:] != b"\x11\x22\x33\x44":
            raise Found("a register does not hold what was written")
        link.close()
        self._link = None
        if not server.wait_idle(self._timeout) or not server.running:
            raise Found("the server does not come to rest")
        if self.device.outside:
            raise Found(f"the device was asked for {self.device.outside[0]}")
        device = self.device
        if device.dma.maps or device.paused or device.dma.indirect is not None:
            raise Found("memory or a pause of a client that went is left")
        if any(device.interrupts.group(index).connected for index in InterruptIndex):
            raise Found("eventfds of a client that went are left")
        gc.collect()
