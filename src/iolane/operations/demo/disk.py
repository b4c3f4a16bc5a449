"""The disk of the demonstration: one image, shown to the same guest in one lane and then in another.

What was written here is read through the first lane, what is written through it is read through the second,
and what that writes is read here: by checksums made in the guest and here.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from iolane.engines.qemu.cache import Report
from iolane.engines.qemu.machine import QemuMachine
from iolane.operations.demo.guest import GuestDevice, checksum, timed
from iolane.operations.demo.results import Seen, Throughput, between, compare
from iolane.operations.serving import Served

CHUNK = 1 << 20
READ_SIZE = 4 << 10
READS = 2000
"""Reads, one after another, for the latency."""
STEP_LIMIT = 120.0
PAYLOAD = "/tmp/payload"
"""In the guest: what it writes."""


class DiskLane(msgspec.Struct, frozen=True):
    """How the guest sees the image."""

    device: str
    lane: str
    carrier: str
    driver: str
    """The guest's stock driver."""
    identity: tuple[int, int]
    """PCI vendor and device."""
    node: str


PARAVIRTUAL = DiskLane("block", "paravirtual", "vhost-user", "virtio_blk", (0x1AF4, 0x1042), "vd[a-z]")
EMULATED = DiskLane("nvme", "emulated", "vfio-user", "nvme", (0x1234, 0x0010), "nvme[0-9]*n1")


class DiskDemo:
    """An image of two halves: each lane reads one, made elsewhere, and writes the other.

    Args:
        image: a file to make.
        payload: bytes of a half.
    """

    def __init__(self, image: Path, payload: int) -> None:
        self.image = image
        self._payload = payload
        self._chunks = payload // CHUNK
        self._size = f"{payload >> 20} MiB"
        digest = hashlib.sha256()
        with image.open("wb") as file:
            for _ in range(self._chunks):
                piece = os.urandom(CHUNK)
                digest.update(piece)
                file.write(piece)
            file.truncate(2 * payload)
        self._expected = digest.hexdigest()
        """Of the half that is read next."""
        self._origin = "here"
        self._half = 0

    def run(self, machine: QemuMachine, served: Served, lane: DiskLane, report: Report) -> Seen:
        """Read one half, write the other, read it here."""
        guest = GuestDevice(machine, served.name, lane.identity, lane.node)
        report(
            f"{lane.lane}: the guest reads {self._size} written {self._origin} ({guest.path}, {guest.driver})"
        )
        source, target = self._half * self._chunks, (1 - self._half) * self._chunks
        straight = f"dd if={guest.path} bs={CHUNK} skip={source} count={self._chunks}"
        read_seconds = timed(machine, f"{straight} of=/dev/null iflag=direct", STEP_LIMIT)
        summed = checksum(machine.check(f"{straight} 2>/dev/null | sha256sum", timeout=STEP_LIMIT))
        checks = [
            compare(
                f"{served.name}: {self._size} written {self._origin}, read by the guest",
                self._expected,
                summed,
            )
        ]
        report(f"{lane.lane}: the guest writes {self._size}")
        guest_digest = self._payload_digest(machine)
        written = f"dd if={PAYLOAD} of={guest.path} bs={CHUNK} seek={target} oflag=direct conv=fsync,notrunc"
        write_seconds = timed(machine, written, STEP_LIMIT)
        self._half = 1 - self._half
        checks.append(
            compare(
                f"{served.name}: {self._size} written by the guest, read here",
                self._half_digest(),
                guest_digest,
            )
        )
        self._expected, self._origin = guest_digest, f"through {served.name}"
        report(f"{lane.lane}: the guest reads {READS} times {READ_SIZE >> 10} KiB, one after another")
        before = served.report().counters
        singly = f"dd if={guest.path} of=/dev/null bs={READ_SIZE} count={READS} iflag=direct"
        latency = timed(machine, singly, STEP_LIMIT) / READS
        each = between(before, served.report().counters, READS)
        throughput = Throughput(
            self._payload / write_seconds, self._payload / read_seconds, latency, "4 KiB read, mean"
        )
        return Seen(driver=guest.driver, throughput=throughput, each=each, checks=checks)

    def _payload_digest(self, machine: QemuMachine) -> str:
        """Random data made in the guest, once."""
        make = f"dd if=/dev/urandom of={PAYLOAD} bs={CHUNK} count={self._chunks}"
        machine.check(f"[ -e {PAYLOAD} ] || {make}", timeout=STEP_LIMIT)
        return checksum(machine.check(f"sha256sum {PAYLOAD}", timeout=STEP_LIMIT))

    def _half_digest(self) -> str:
        """The checksum of what is in the image file now, where the guest wrote."""
        digest, left = hashlib.sha256(), self._payload
        with self.image.open("rb") as file:
            file.seek(self._half * self._payload)
            while left and (piece := file.read(min(CHUNK, left))):
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest()
