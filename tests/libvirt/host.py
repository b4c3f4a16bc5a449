"""A host with a libvirtd of its own, without systemd: namespaces whose first process its owner ends, and
with it the daemon, its domains and whatever else runs there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.libvirt.provision import Libvirt

SCRIPT = Path(__file__).with_name("host.sh")
SOURCE = Path(__file__).resolve().parent.parent.parent / "src"
PATIENCE = 60.0
BRIDGE = "br0"


def python_paths(libvirt: Libvirt) -> str:
    """PYTHONPATH for an iolane on a host: this one, and libvirt's binding."""
    return ":".join([str(SOURCE), *([str(libvirt.binding)] if libvirt.binding else [])])


class LibvirtHost:
    """A context manager: entering starts the host, leaving ends it."""

    def __init__(self, libvirt: Libvirt, folder: Path, number: int, hook: str | None = None) -> None:
        self.libvirt = libvirt
        self.folder = folder
        self.name = f"host{number}"
        self.address = f"10.77.0.{number}"
        self._uuid = f"11111111-2222-4333-8444-5555555555{number:02x}"
        self._hook = hook
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Of its daemon, for a client outside."""
        return f"qemu:///system?socket={self.folder}/run/libvirt/libvirt-sock"

    def __enter__(self) -> Self:
        for program in ("unshare", "nsenter", "ip", "mount"):
            if shutil.which(program) is None:
                pytest.skip(f"NOT TESTED: {program} is missing, for a host of its own")
        self.folder.mkdir(parents=True)
        if self._hook is not None:
            hook = self.folder / "hook"
            hook.write_text(self._hook)
            hook.chmod(0o755)
        log = (self.folder / "libvirtd.log").open("wb")
        namespaces = ("--mount", "--uts", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
        command = ["unshare", *namespaces, "sh", str(SCRIPT), str(self.folder), self.name, self._uuid]
        if self.libvirt.tree is not None:
            command += [str(self.libvirt.tree), "above" if self.libvirt.later else "below"]
        with log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_socket()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it with all that runs there."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # --kill-child: the namespace's first process goes too
            process.wait()

    @property
    def log(self) -> str:
        """What its daemon has said."""
        return (self.folder / "libvirtd.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The first process of its namespaces, as it is known outside."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def command(self, arguments: Sequence[str]) -> list[str]:
        """What runs `arguments` on the host."""
        return [
            "nsenter",
            "--target",
            str(self.pid),
            "--mount",
            "--uts",
            "--net",
            "--ipc",
            "--pid",
            *arguments,
        ]

    def run(self, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        environment = {**os.environ, "PYTHONPATH": python_paths(self.libvirt)}
        environment.pop("XDG_RUNTIME_DIR", None)
        return subprocess.run(
            self.command(arguments), capture_output=True, text=True, timeout=timeout, env=environment
        )

    def iolane(self, *arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run an iolane there."""
        return self.run(sys.executable, "-m", "iolane", *arguments, timeout=timeout)

    def check(self, script: str, timeout: float = 60.0) -> str:
        """The output of a shell script that must succeed there."""
        done = self.run("sh", "-ec", script, timeout=timeout)
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout

    def _wait_socket(self) -> None:
        deadline = time.monotonic() + PATIENCE
        socket = self.folder / "run/libvirt/libvirt-sock"
        while not socket.exists():
            assert self._process is not None
            if self._process.poll() is not None:
                pytest.skip(f"NOT TESTED: no host of its own with libvirtd here: {self.log[-600:]}")
            if time.monotonic() > deadline:
                pytest.fail(f"libvirtd did not start: {self.log[-2000:]}")
            time.sleep(0.05)


def connect(one: LibvirtHost, other: LibvirtHost) -> None:
    """A cable between two hosts: a veth pair, whose ends are in a bridge on each, beside taps of guests."""
    ends = (f"iol{os.getpid() % 100000}a", f"iol{os.getpid() % 100000}b")
    _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    names = "".join(f"{host.address} {host.name}\\n" for host in (one, other))
    for host, end in ((one, ends[0]), (other, ends[1])):
        _ip("link", "set", end, "netns", str(host.pid))
        host.check(
            f"ip link add {BRIDGE} type bridge && ip addr add {host.address}/24 dev {BRIDGE} && "
            f"ip link set {end} master {BRIDGE} && ip link set {end} up && ip link set {BRIDGE} up && "
            f"printf '{names}' >>/etc/hosts"
        )


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NOT TESTED: no virtual cable here: {done.stderr.strip()}")
