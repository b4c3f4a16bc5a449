"""An emulated NVMe and the adder leave a guest and come back in other processes, with their state.

One boot. MSI in place of MSI-X, because QEMU 11 aborts when it removes a vfio-user function with MSI-X.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from iolane.carriers.control import ControlClient, find_device
from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.engines.qemu.guest_address import guest_address
from iolane.engines.qemu.initramfs import MKFS_EXT4, NVME, InitramfsContent
from iolane.engines.qemu.kernel import build_module, debian_kernel
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.errors import IolaneError
from iolane.operations.migration.disk_use import look, refuse_in_use
from iolane.operations.serving import DeviceServers

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

EXAMPLES = Path(__file__).parents[2] / "examples"
MIB = 1 << 20
PORTS = {"adder": 1, "disk": 2}
"""Number of the root port of each."""
COUNTERS = (
    *("data_units_written", "data_units_read", "host_write_commands", "host_read_commands"),
    *("num_err_log_entries", "unsafe_shutdowns", "power_cycles"),
)
WAIT = "for i in $(seq 200); do sleep 0.1;"
SUM = "/sys/bus/pci/drivers/adder/0000:*/sum"


@dataclass
class Replugged:
    """A machine whose devices are served one process after another."""

    machine: QemuMachine
    texts: dict[str, str]
    folder: Path
    servers: dict[str, DeviceServers]

    def check(self, command: str) -> str:
        return self.machine.check(command, timeout=120)

    def serve(self, name: str, state: Path | None = None) -> None:
        """Each time a new process."""
        text = self.texts[name] + ("" if state is None else f",state={state}")
        self.servers[name] = DeviceServers([f"{text},process=own"]).__enter__()

    def device(self, name: str) -> VfioUserDevice:
        [endpoint] = self.servers[name].endpoints
        return VfioUserDevice(name, endpoint.socket, port=f"port{PORTS[name]}")

    def leave(self, name: str) -> Path:
        """Unplug it, and end its process; the state that it had."""
        self.machine.unplug(name, timeout=60).require(name)
        state = self.folder / f"{name}-{len(list(self.folder.iterdir()))}.state"
        path, _ = find_device(name)
        with ControlClient(path) as client:
            client.save(name, state)
        self.servers.pop(name).__exit__(None, None, None)
        return state

    def come(self, name: str, state: Path | None) -> None:
        self.serve(name, state)
        self.machine.plug(self.device(name))

    def smart(self) -> dict[str, int]:
        log = json.loads(self.check("nvme smart-log /dev/nvme0 -o json"))
        return {name: int(log[name]) for name in COUNTERS}

    def identity(self) -> str:
        return self.check(
            "nvme id-ctrl /dev/nvme0 | grep -E '^(sn|mn|subnqn)'; nvme id-ns /dev/nvme0n1 | tail -30"
        )


def end(servers: dict[str, DeviceServers]) -> None:
    for each in servers.values():
        each.__exit__(None, None, None)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replugged]:
    image = tmp_path_factory.mktemp("image") / "disk.raw"
    image.write_bytes(bytes(32 * MIB))
    texts = {
        "adder": f"{EXAMPLES / 'adder.py'}:Adder,id=adder,presentation=msi",
        "disk": f"nvme,image={image},id=disk,presentation=msi,serial=REPLUGGED",
    }
    content = InitramfsContent(
        modules=["nvme", "ext4", "loop"],
        extra_modules=[build_module(debian_kernel(), EXAMPLES / "adder_driver")],
        programs=[NVME, MKFS_EXT4],
    )
    with contextlib.ExitStack() as stack:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        runtime = stack.enter_context(tempfile.TemporaryDirectory(prefix="iolane-test-"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        folder = tmp_path_factory.mktemp("states")
        servers: dict[str, DeviceServers] = {}
        stack.callback(end, servers)
        guest = Replugged(None, texts, folder, servers)  # type: ignore[arg-type]
        for name in texts:
            guest.serve(name)
        config = MachineConfig(
            name="replug", content=content, ports=4, devices=[guest.device(name) for name in texts]
        )
        guest.machine = stack.enter_context(QemuMachine(config))
        yield guest


def test_the_adder_comes_back_with_its_registers(guest: Replugged) -> None:
    assert guest.check(f"echo 40 2 >$(echo {SUM}); cat {SUM}") == "42\n"
    state = guest.leave("adder")
    assert guest.check("ls /sys/bus/pci/drivers/adder").find("0000:") == -1
    guest.come("adder", state)
    assert guest.check(f"{WAIT} [ -e {SUM} ] && break; done; cat {SUM}") == "42\n"
    assert guest.check(f"echo 1 2 >$(echo {SUM}); cat {SUM}") == "3\n", "and it works, interrupts too"


def test_without_its_state_it_comes_back_empty(guest: Replugged) -> None:
    """The mutant: it proves that the test above sees the state."""
    assert guest.check(f"echo 40 2 >$(echo {SUM}); cat {SUM}") == "42\n"
    guest.leave("adder")
    guest.come("adder", None)
    assert guest.check(f"{WAIT} [ -e {SUM} ] && break; done; cat {SUM}") == "0\n"


def test_a_disk_in_use_is_not_unplugged(guest: Replugged) -> None:
    """Mounted, swapped to, held open: each is seen, and each can be given up."""
    function = guest_address(guest.machine.qmp, "disk")
    assert look(guest.machine, function).disks == ("nvme0n1",)
    assert look(guest.machine, function).users == ()
    guest.check("mkfs.ext4 -q /dev/nvme0n1 && mkdir -p /srv && mount -t ext4 /dev/nvme0n1 /srv")
    with pytest.raises(
        IolaneError, match=r"unplugging disk is refused: .*: nvme0n1 mounted on /srv \(unmount"
    ):
        refuse_in_use("disk", look(guest.machine, function))
    guest.check("umount /srv; mkswap /dev/nvme0n1 >/dev/null; swapon /dev/nvme0n1")
    assert look(guest.machine, function).users == ("nvme0n1 swap",)
    guest.check("swapoff /dev/nvme0n1; sleep 1000 </dev/nvme0n1 >/dev/null 2>&1 & sleep 0.5")
    [user] = look(guest.machine, function).users
    assert user.startswith("nvme0n1 open in sleep (")
    guest.check("killall sleep; losetup /dev/loop0 /dev/nvme0n1")
    assert look(guest.machine, function).users == ("nvme0n1 behind loop0",)
    guest.check("losetup -d /dev/loop0")
    refuse_in_use("disk", look(guest.machine, function))


def test_the_nvme_comes_back_with_counters_namespaces_and_data(guest: Replugged) -> None:
    """What its life counted goes on; what the driver's own reset takes away (Base 3.7.2) is the driver's."""
    data = guest.check(
        "dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null; sha256sum </tmp/data"
    ).split()[0]
    guest.check("dd if=/tmp/data of=/dev/nvme0n1 bs=1M oflag=direct 2>/dev/null")
    guest.check("nvme read /dev/nvme0n1 -s 999999 -z 512 -c 0 >/dev/null 2>&1; true")  # an error to be logged
    before, identity = guest.smart(), guest.identity()
    errors = guest.check("nvme error-log /dev/nvme0 -e 4 | grep -E 'error_count|status_field' | head -4")
    assert before["host_write_commands"] >= 8
    assert before["num_err_log_entries"] >= 1
    state = guest.leave("disk")
    assert guest.check("ls /dev/nvme* 2>/dev/null || echo gone") == "gone\n"
    guest.come("disk", state)
    guest.check(f"{WAIT} [ -b /dev/nvme0n1 ] && break; done; [ -b /dev/nvme0n1 ]")
    after = guest.smart()
    print(before, after, errors)
    reads = {name for name in COUNTERS if "read" in name}  # the guest looks at what it finds
    assert {name: after[name] for name in COUNTERS if name not in reads} == {
        name: before[name] for name in COUNTERS if name not in reads
    }
    assert all(after[name] >= before[name] > 0 for name in reads)
    assert guest.identity() == identity
    logged = guest.check("nvme error-log /dev/nvme0 -e 4 | grep -E 'error_count|status_field' | head -4")
    assert logged == errors
    read = guest.check("dd if=/dev/nvme0n1 bs=1M count=8 iflag=direct 2>/dev/null | sha256sum")
    assert read.split()[0] == data
    assert guest.machine.dead_servers() == []
