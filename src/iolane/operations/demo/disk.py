"""The NVMe disk of the demonstration: data both ways, compared by checksums made in the guest and here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from iolane.engines.qemu.cache import Report
from iolane.engines.qemu.machine import QemuMachine
from iolane.model.pci import PciDevice
from iolane.operations.demo.guest import GuestDevice, checksum, timed
from iolane.operations.demo.results import Check, Throughput, compare

DRIVER = "nvme"
CHUNK = 1 << 20
READ_SIZE = 4 << 10
READS = 2000
"""Reads, one after another, for the latency."""
STEP_LIMIT = 120.0


class DiskDemo:
    """The first half of the image is written here and read by the guest, the second half the other way round.

    Args:
        image: a file to make.
        payload: bytes that go each way.
    """

    def __init__(self, image: Path, payload: int) -> None:
        self.image = image
        self._payload = payload
        self._chunks = payload // CHUNK
        digest = hashlib.sha256()
        with image.open("wb") as file:
            for _ in range(self._chunks):
                piece = os.urandom(CHUNK)
                digest.update(piece)
                file.write(piece)
            file.truncate(2 * payload)
        self._host_digest = digest.hexdigest()

    def run(
        self, machine: QemuMachine, device: PciDevice, report: Report
    ) -> tuple[str, Throughput, list[Check]]:
        """The driver's name, what was measured, what must hold."""
        guest = GuestDevice(machine, device, "nvme[0-9]*n1")
        size = f"{self._payload >> 20} MiB"
        report(f"the guest reads {size} that were written here ({guest.path}, driver {guest.driver})")
        straight = f"dd if={guest.path} of=/dev/null bs={CHUNK} count={self._chunks} iflag=direct"
        read_seconds = timed(machine, straight, STEP_LIMIT)
        summed = f"head -c {self._payload} {guest.path} | sha256sum"
        checks = [
            compare(
                f"{size} written here, read by the guest",
                self._host_digest,
                checksum(machine.check(summed, timeout=STEP_LIMIT)),
            )
        ]
        report(f"the guest writes {size}")
        write_seconds, guest_digest = self._write(machine, guest)
        checks.append(compare(f"{size} written by the guest, read here", self._second_half(), guest_digest))
        report(f"the guest reads {READS} times {READ_SIZE >> 10} KiB, one after another")
        singly = f"dd if={guest.path} of=/dev/null bs={READ_SIZE} count={READS} iflag=direct"
        latency = timed(machine, singly, STEP_LIMIT) / READS
        throughput = Throughput(
            self._payload / write_seconds, self._payload / read_seconds, latency, "4 KiB read, mean"
        )
        return guest.driver, throughput, checks

    def _write(self, machine: QemuMachine, guest: GuestDevice) -> tuple[float, str]:
        """Random data made in the guest, written and flushed, its checksum taken before."""
        machine.check(
            f"dd if=/dev/urandom of=/tmp/payload bs={CHUNK} count={self._chunks}", timeout=STEP_LIMIT
        )
        digest = checksum(machine.check("sha256sum /tmp/payload", timeout=STEP_LIMIT))
        target = f"of={guest.path} bs={CHUNK} seek={self._chunks} oflag=direct conv=fsync,notrunc"
        seconds = timed(machine, f"dd if=/tmp/payload {target}", STEP_LIMIT)
        machine.check("rm /tmp/payload")
        return seconds, digest

    def _second_half(self) -> str:
        """The checksum of what is in the image file now, where the guest wrote."""
        digest = hashlib.sha256()
        with self.image.open("rb") as file:
            file.seek(self._payload)
            while piece := file.read(CHUNK):
                digest.update(piece)
        return digest.hexdigest()
