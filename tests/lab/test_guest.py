"""A stock Linux guest on QEMU, in the lab, with functions of the lab: one boot, many checks.

`tests/lab/guest/in_lab.py` runs in the lab. What the guest read and wrote is compared with the image here,
and what it fetched over its virtual function came from a web server here.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from iolane.lab.machine import Lab
from tests.lab.guest.in_lab import MAC, WHERE, WRITTEN

pytestmark = [pytest.mark.slow, pytest.mark.guest, pytest.mark.timeout(1500)]
SECONDS = 1200.0
PAGE = b"a page from outside the lab\n"
Told = dict[str, dict[str, Any]]


class OnePage(BaseHTTPRequestHandler):
    """Says the same to whoever asks."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web_server() -> Iterator[int]:
    """Its port here; in the lab's network this machine is 10.0.2.2."""
    with ThreadingHTTPServer(("127.0.0.1", 0), OnePage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


class Visit:
    """What the script said, and what was here before and after."""

    def __init__(self, lab: Lab, port: int) -> None:
        faults = len(lab.iommu_trace())
        self.image = lab.image("nvme0")
        self.checksum = hashlib.md5(self.image.read_bytes()).hexdigest()
        addresses = [str(lab.address(name)) for name in ("nvme0", "igb0")]
        command = [sys.executable, "-m", "tests.lab.guest.in_lab", *addresses, str(port)]
        result = lab.run(command, timeout=SECONDS)
        self.words = f"{result.output}\n{result.stderr.decode()}\n{result.kernel}"
        lines = [json.loads(line) for line in result.stdout.decode().splitlines() if line.startswith("{")]
        self.told: Told = {line.pop("what"): line for line in lines}
        self.faults = lab.iommu_trace()[faults:]
        self.exit_code = result.exit_code


@pytest.fixture(scope="module")
def visit(lab: Lab, web_server: int) -> Visit:
    return Visit(lab, web_server)


def test_it_came_up_and_went(visit: Visit) -> None:
    assert visit.exit_code == 0, visit.words
    print(visit.told["up"])


def test_the_disk_is_the_image(visit: Visit) -> None:
    """The stock driver's checksum of all of it, by interrupts of its own."""
    disk = visit.told["disk"]
    assert (disk["serial"], disk["checksum"]) == ("LAB-nvme0", visit.checksum)
    assert disk["interrupts"] >= 2


def test_what_the_guest_wrote_is_in_the_image(visit: Visit) -> None:
    assert visit.told["disk written"]["back"] == WRITTEN.decode()
    with visit.image.open("rb") as file:
        assert os.pread(file.fileno(), len(WRITTEN), WHERE) == WRITTEN


def test_the_virtual_function_has_its_address_and_carries_traffic(visit: Visit) -> None:
    """Plugged in while the guest ran."""
    nic = visit.told["nic"]
    assert (nic["mac"], nic["driver"]) == (MAC, "igbvf")
    assert nic["ping"] == 0, nic["output"]
    assert nic["page"].encode() == PAGE


def test_unplugged_and_plugged_while_it_runs(visit: Visit) -> None:
    """A function that the guest has let go of has the driver again that it had here."""
    assert visit.told["nic taken"] == {
        "function": "vfio-pci",
        "lane": "passthrough",
        "carrier": "vfio",
        "port": "port2",
    }
    assert visit.told["nic gone"] == {"there": False, "function": None}
    assert visit.told["disk gone"] == {"there": False, "nvme": "nvme", "held": 0}
    assert visit.told["disk again"]["written"] == WRITTEN.decode()


def test_plugged_behind_a_mediator_while_it_runs(visit: Visit) -> None:
    """A disk with MSI-X by vfio-user, which QEMU would not survive the unplug of (docs/hotplug.md)."""
    mediated = visit.told["disk mediated"]
    assert (mediated["lane"], mediated["carrier"]) == ("passthrough", "vfio-user")
    assert mediated["written"] == WRITTEN.decode()
    assert "MSI-X" in mediated["refused"]


def test_a_balloon_is_refused(visit: Visit) -> None:
    """It would give pages back that the IOMMU goes on to map (facts: pinning)."""
    assert "'virtio-balloon-pci' is refused" in visit.told["balloon"]["refused"]


def test_drivers_are_back(visit: Visit) -> None:
    assert visit.told["before"] == {"nvme": "nvme", "igb": "igb"}
    assert (visit.told["taken"]["nvme"], visit.told["taken"]["function"]) == ("vfio-pci", None)
    assert visit.told["after"] == {"nvme": "nvme", "igb": "igb", "function": None}


def test_the_iommu_had_nothing_to_block(visit: Visit) -> None:
    assert visit.faults == []
