"""Labs of other kinds, each a boot of its own: AMD-Vi, other devices, the shell, what is left behind."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iolane.engines.qemu.agent import AgentError
from iolane.errors import IolaneError
from iolane.lab.hardware import Iommu, Kind, LabDevice
from iolane.lab.machine import Lab, LabConfig
from tests.lab.conftest import tell

pytestmark = pytest.mark.slow

IOLANE = (sys.executable, "-m", "iolane")
OUTPUT = 420
"""Seconds for a lab to say something, on a machine that may be busy."""


def test_amd_vi_with_other_devices(tmp_path: Path) -> None:
    """A disk with virtual functions from an image here; two NICs that are plugged into one another."""
    image = tmp_path / "disk,1.raw"
    image.write_bytes(b"mine".ljust(1 << 20, b"\0"))
    devices = [
        LabDevice(Kind.NVME, image=image, vfs=2),
        LabDevice(Kind.IGB, net="hub"),
        LabDevice(Kind.E1000E, net="hub", id="second"),
        LabDevice(Kind.EDU, dma_mask=0xFFFFFFFF),
    ]
    with Lab(LabConfig(iommu=Iommu.AMD, devices=devices, share=tmp_path), report=tell) as lab:
        log = lab.check("dmesg")
        assert "AMD-Vi" in log
        assert "IRQ remapping" in log or "Interrupt remapping enabled" in log
        groups = lab.check("cd /sys/kernel/iommu_groups && for g in *; do echo $(ls $g/devices); done")
        alone = {line.strip() for line in groups.splitlines()}
        assert {str(each.address) for each in lab.devices} <= alone
        assert lab.run("dd if=/dev/nvme0n1 bs=4 count=1 2>/dev/null").stdout == b"mine"
        lab.check("printf yours | dd of=/dev/nvme0n1 conv=sync oflag=direct bs=512; touch /lab/share/there")
        assert image.read_bytes()[:5] == b"yours"
        assert (tmp_path / "there").exists()
        assert lab.check(f"cat /sys/bus/pci/devices/{lab.address('nvme0')}/sriov_totalvfs").strip() == "2"
        assert _frames_arrive(lab)
        assert lab.iommu_trace() == []


def _frames_arrive(lab: Lab) -> bool:
    """What one NIC sends the other receives, seen by their counters."""
    one, other = (f"/sys/bus/pci/devices/{lab.address(name)}/net" for name in ("igb0", "second"))
    script = f"""
        a=$(ls {one}); b=$(ls {other})
        ifconfig $a 10.9.0.1 up; ifconfig $b up
        for i in $(seq 100); do [ "$(cat /sys/class/net/$a/carrier)" = 1 ] && break; sleep 0.1; done
        before=$(cat /sys/class/net/$b/statistics/rx_packets)
        /lab/bin/arping -c 3 -w 10 -I $a 10.9.0.2
        [ $(cat /sys/class/net/$b/statistics/rx_packets) -gt $before ]
    """
    return lab.run(script).exit_code == 0


def test_no_iommu_and_a_kernel_that_dies() -> None:
    """Without an IOMMU there are no groups. A panic is told with the end of the console."""
    with Lab(LabConfig(iommu=Iommu.NONE, devices=[LabDevice(Kind.EDU)]), report=tell) as lab:
        assert lab.check("ls /sys/kernel/iommu_groups") == ""
        with pytest.raises(IolaneError, match=r"the kernel said: .*Kernel panic.*sysrq") as caught:
            lab.run("echo c > /proc/sysrq-trigger")
        assert isinstance(caught.value.__cause__, AgentError)


def test_the_command_line_and_a_guest_inside() -> None:
    """`iolane run` in the lab: QEMU of the cache, on nested KVM."""
    inside = f"{sys.executable} -m iolane run -q -- 'cat /proc/cpuinfo; exit 7'"
    arguments = ("lab", "run", "--json", "--device", "none", "--", inside)
    done = subprocess.run([*IOLANE, *arguments], capture_output=True, text=True, timeout=800)
    assert done.returncode == 7, done.stderr
    result = json.loads(done.stdout)
    assert "hypervisor" in result["stdout"]
    assert (result["exit_code"], result["timed_out"], result["faults"]) == (7, False, [])
    assert result["kernel"]  # its exit code is not 0


def test_a_shell_at_a_terminal(tmp_path: Path) -> None:
    """Typed is typed in the lab; its exit code is ours; nothing is left here."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TERM": "dumb"}
    command = [*IOLANE, "lab", "shell", "--device", "none"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        try:
            _wait_for(ours, b"# ")  # the prompt, wherever the checkout is
            os.write(ours, b"echo $((40 + 2)) in $(hostname) at $(tty)\r")
            _wait_for(ours, b"42 in lab at /dev/ttyS0")
            os.write(ours, b"exit 9\r")
            assert process.wait(60) == 9
        finally:
            process.kill()
            os.close(ours)
    assert list(tmp_path.iterdir()) == []


def _wait_for(terminal: int, text: bytes) -> None:
    shown, deadline = b"", time.monotonic() + OUTPUT
    while text not in shown:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], shown
        shown += os.read(terminal, 4096)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_its_owner(end: signal.Signals, tmp_path: Path) -> None:
    """After Ctrl-C nothing is left. After kill -9 QEMU is gone, and the files wait for the next lab."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [*IOLANE, "lab", "run", "--share", str(tmp_path), "--", "echo $PPID; sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().strip().isdigit()
        children = Path(f"/proc/{owner.pid}/task").glob("*/children")
        [qemu] = [int(pid) for file in children for pid in file.read_text().split()]
        watch = os.pidfd_open(qemu)
        try:
            owner.send_signal(end)
            assert owner.wait(60) == (128 + end if end is signal.SIGINT else -end)
            assert select.select([watch], [], [], 30)[0]  # readable: the process has ended
        finally:
            os.close(watch)
    left = [path.name for path in tmp_path.iterdir()]
    assert all(name.startswith("iolane-lab-") for name in left)
    assert len(left) == (end is signal.SIGKILL)
