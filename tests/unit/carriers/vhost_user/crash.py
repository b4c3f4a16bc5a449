"""A block back end that is killed at full depth, again and again, and a front end that survives it.

Every block holds its number and a sequence number in each of its sectors, so that a write that is lost, torn
or done again after a newer one shows.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from iolane.carriers.vhost_user import FrontEnd, SharedMemory
from iolane.testing.drivers.virtio import DriverMemory, DriverRing
from iolane.uapi.virtio import BlockRequest

BLOCK = 4096
SECTOR = 512
SECTORS = BLOCK // SECTOR
HEADER = struct.Struct("<IIQ")
TAG = struct.Struct("<IIQ")
RING = 256

NURSERY = """
import os, signal, sys
from pathlib import Path
from iolane.carriers.vhost_user import VhostUserServer
from iolane.devices.virtio.block import Block
from iolane.model.workers import Workers
def serve(image, path):
    device = Block(image, queues=2)
    with Workers(4) as workers, VhostUserServer(device, path, workers=workers):
        print("ready", os.getpid(), flush=True)
        signal.pause()
for line in sys.stdin:
    if line.strip() == "start":
        child = os.fork()
        if not child:
            serve(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        os.waitpid(child, 0)
        print("gone", child, flush=True)
"""


class BackEnd:
    """Back ends, one after another, each a process of its own."""

    def __init__(self, image: Path, socket: Path, plane: str) -> None:
        self._nursery = subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(image), str(socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "IOLANE_DATAPLANE": plane},
            text=True,
        )
        self.pid = 0

    def _tell(self, word: str) -> str:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(word + "\n")
        self._nursery.stdin.flush()
        return self._nursery.stdout.readline()

    def start(self) -> None:
        """Start one, and wait until it listens."""
        word, pid = self._tell("start").split()
        assert word == "ready"
        self.pid = int(pid)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        os.kill(self.pid, 9)
        assert self._tell("wait").split() == ["gone", str(self.pid)]
        self.pid = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, 9)
        self._nursery.kill()
        self._nursery.communicate()


def content(block: int, sequence: int) -> bytes:
    """A block as written: its tag in each sector, and a pattern that follows from it."""
    return b"".join(
        TAG.pack(block, number, sequence) + bytes([(block + number + sequence) & 0xFF]) * (SECTOR - TAG.size)
        for number in range(SECTORS)
    )


class Outstanding:
    """A request on its way: of a block, with the sequence number that a write bears."""

    def __init__(self, kind: int, block: int, sequence: int) -> None:
        self.kind = kind
        self.block = block
        self.sequence = sequence


class Disk:
    """The driver of one queue: keeps a number of requests outstanding, at most one a block."""

    def __init__(self, front: FrontEnd, heap: DriverMemory, index: int, blocks: range, seed: int) -> None:
        self.front = front
        self.index = index
        self.ring = DriverRing(
            heap,
            RING,
            front.kicker(index),
            event_idx=bool(front.features >> 29 & 1),
            indirect=bool(front.features >> 28 & 1),
        )
        self.dice = random.Random(seed)
        self.acknowledged = dict.fromkeys(blocks, 0)
        """Block -> sequence number of its last write that came back."""
        self.sequence = 0
        self.outstanding: dict[int, Outstanding] = {}
        self.finished = 0
        self._idle = list(blocks)
        front.start(index, self.ring)

    def fill(self, depth: int) -> None:
        """Submit until `depth` requests are outstanding."""
        while len(self.outstanding) < depth:
            self._submit()
        self.ring.kick()

    def _submit(self) -> None:
        if self.dice.random() < 0.02:
            head = self.ring.send([HEADER.pack(BlockRequest.FLUSH, 0, 0)], [1])
            self.outstanding[head] = Outstanding(BlockRequest.FLUSH, -1, 0)
            return
        block = self._idle.pop(self.dice.randrange(len(self._idle)))
        indirect = self.ring.indirect and self.dice.random() < 0.5
        if self.dice.random() < 0.3:
            header = HEADER.pack(BlockRequest.IN, 0, block * SECTORS)
            head = self.ring.send([header], [BLOCK, 1], indirect=indirect)
            self.outstanding[head] = Outstanding(BlockRequest.IN, block, self.acknowledged[block])
            return
        self.sequence += 1
        header = HEADER.pack(BlockRequest.OUT, 0, block * SECTORS)
        head = self.ring.send([header, content(block, self.sequence)], [1], indirect=indirect)
        self.outstanding[head] = Outstanding(BlockRequest.OUT, block, self.sequence)

    def collect(self) -> int:
        """Take what came back, each request once."""
        found = self.ring.collect()
        for used in found:
            request = self.outstanding.pop(used.head)
            assert used.data[-1] == 0, f"status {used.data[-1]}"
            if request.kind == BlockRequest.OUT:
                self.acknowledged[request.block] = request.sequence
            elif request.kind == BlockRequest.IN:
                assert used.data[:-1] == expected(request.block, request.sequence)
            if request.block >= 0:
                self._idle.append(request.block)
        self.finished += len(found)
        return len(found)

    def drain(self, timeout: float = 20) -> None:
        """Wait until everything came back."""
        deadline = time.monotonic() + timeout
        while self.outstanding:
            if not self.collect():
                left = deadline - time.monotonic()
                assert left > 0, f"{len(self.outstanding)} requests never came back"
                self.front.rings[self.index].wait_call(min(left, 0.5))

    def check(self, image: Path) -> None:
        """Every acknowledged write is in the image, whole."""
        with image.open("rb") as file:
            for block, sequence in self.acknowledged.items():
                file.seek(block * BLOCK)
                assert file.read(BLOCK) == expected(block, sequence)


def expected(block: int, sequence: int) -> bytes:
    """What a block holds after the write of that number; 0: it was never written."""
    return content(block, sequence) if sequence else bytes(BLOCK)


class Result:
    """What a run did."""

    def __init__(self) -> None:
        self.kills = 0
        self.finished = 0
        self.outstanding_at_kills = 0


def run(folder: Path, plane: str, *, kills: int, seed: int, depth: int = 32, blocks: int = 512) -> Result:
    """Kill the back end `kills` times with two queues at full depth."""
    image, result, dice = folder / "disk.raw", Result(), random.Random(seed)
    image.write_bytes(bytes(blocks * BLOCK))
    with (
        BackEnd(image, folder / "s", plane) as back_end,
        SharedMemory(8 << 20) as memory,
        FrontEnd(folder / "s", [memory], rings=2, inflight_size=RING) as front,
    ):
        heap = DriverMemory(memory.view, memory.guest_address)
        halves = (range(blocks // 2), range(blocks // 2, blocks))
        disks = [Disk(front, heap, index, halves[index], seed + index) for index in range(2)]
        for _ in range(kills):
            _work(disks, dice, depth)
            result.outstanding_at_kills += sum(len(disk.outstanding) for disk in disks)
            back_end.kill()
            result.kills += 1
            back_end.start()
            front.reconnect()
        for disk in disks:
            disk.drain()
            disk.check(image)
            result.finished += disk.finished
    return result


def _work(disks: list[Disk], dice: random.Random, depth: int) -> None:
    """Keep the queues full for a moment; return with both full."""
    for _ in range(dice.randrange(4, 24)):
        for disk in disks:
            disk.collect()
            disk.fill(depth)
        disks[dice.randrange(2)].front.rings[dice.randrange(2)].wait_call(dice.random() * 0.002)
    for disk in disks:
        disk.collect()
        disk.fill(depth)
