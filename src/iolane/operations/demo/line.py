"""The serial line of the demonstration: its other end is a socket here."""

from __future__ import annotations

import hashlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from iolane.engines.qemu.cache import Report
from iolane.engines.qemu.machine import QemuMachine
from iolane.errors import IolaneError
from iolane.model.pci import PciDevice
from iolane.operations.demo.guest import GuestDevice, checksum
from iolane.operations.demo.results import Events, Seen, Throughput, between, compare
from iolane.operations.served_device import ServedDevice

DRIVER = "serial"
PAYLOAD = 8 << 10
ECHOES = 50
"""Single bytes that the guest sends back, for the latency."""
STEP_LIMIT = 60.0

_SCRIPT = """
set -e
exec 3<>{path}
stty -F {path} raw -echo 115200
echo ready >&3
head -c {payload} <&3 >/tmp/received
echo taken >&3
dd if=/dev/urandom of=/tmp/sent bs={payload} count=1 2>/dev/null
cat /tmp/sent >&3
dd bs=1 count={echoes} <&3 >&3 2>/dev/null
sha256sum </tmp/received
sha256sum </tmp/sent
rm /tmp/received /tmp/sent
"""


class LineDemo:
    """Random data both ways and single bytes echoed, through `/dev/ttyS*` of the guest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent = os.urandom(PAYLOAD)
        self._received = b""
        self._to_guest = self._from_guest = 1.0
        self._echoes: list[float] = []
        self._problem: Exception | None = None
        self._counters: Callable[[], Mapping[str, int]] = dict
        self._each = Events(0, 0, 0)

    def run(self, machine: QemuMachine, served: ServedDevice, report: Report) -> Seen:
        """What was measured, what must hold."""
        device = served.device
        assert isinstance(device, PciDevice)
        self._counters = lambda: served.report().counters
        guest = GuestDevice(machine, served.name, (device.vendor_id, device.device_id), "ttyS[0-9]*")
        report(f"{PAYLOAD >> 10} KiB each way through {guest.path}, driver {guest.driver}")
        host = threading.Thread(target=self._host_side, name="serial line", daemon=True)
        host.start()
        script = _SCRIPT.format(path=guest.path, payload=PAYLOAD, echoes=ECHOES)
        result = machine.run(script, timeout=STEP_LIMIT)
        host.join(STEP_LIMIT)
        if self._problem is not None or host.is_alive():
            raise IolaneError(
                f"the serial line stalled: {self._problem or 'no end in sight'}"
            ) from self._problem
        sums = [checksum(line) for line in result.check().output.splitlines() if checksum(line)]
        received, sent = [*sums, "", ""][:2]
        size = f"{PAYLOAD >> 10} KiB"
        checks = [
            compare(
                f"{served.name}: {size} sent here, received by the guest",
                hashlib.sha256(self._sent).hexdigest(),
                received,
            ),
            compare(
                f"{served.name}: {size} sent by the guest, received here",
                hashlib.sha256(self._received).hexdigest(),
                sent,
            ),
        ]
        latency = statistics.median(self._echoes)
        # To the device is what the guest sends.
        throughput = Throughput(
            PAYLOAD / self._from_guest, PAYLOAD / self._to_guest, latency, "1-byte echo, median"
        )
        return Seen(driver=guest.driver, throughput=throughput, each=self._each, checks=checks)

    def _host_side(self) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.settimeout(STEP_LIMIT)
                line.connect(os.fspath(self._path))
                self._talk(line)
        except (OSError, IolaneError) as error:
            self._problem = error

    def _talk(self, line: socket.socket) -> None:
        _expect(line, b"ready\n")
        started = time.monotonic()
        line.sendall(self._sent)
        _expect(line, b"taken\n")
        self._to_guest = time.monotonic() - started
        self._received = _exactly(line, 1)
        started = time.monotonic()
        self._received += _exactly(line, PAYLOAD - 1)
        self._from_guest = time.monotonic() - started
        before = self._counters()
        for number in range(ECHOES):
            started = time.monotonic()
            line.sendall(bytes([number]))
            if _exactly(line, 1) != bytes([number]):
                raise IolaneError(f"byte {number} came back as another")
            self._echoes.append(time.monotonic() - started)
        self._each = between(before, self._counters(), ECHOES)


def _exactly(line: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = line.recv(length - len(data))
        if not piece:
            raise IolaneError("the line was closed")
        data += piece
    return bytes(data)


def _expect(line: socket.socket, word: bytes) -> None:
    """Skip what the port says until `word` has come."""
    seen = b""
    while not seen.endswith(word):
        seen = seen[-64:] + _exactly(line, 1)
