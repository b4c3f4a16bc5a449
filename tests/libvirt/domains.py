"""Domains with iolane's initramfs and agent, for tests."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iolane.engines.libvirt.connection import Connection
from iolane.engines.libvirt.description import DomainDescription, domain_xml
from iolane.engines.libvirt.domain import Domain
from iolane.engines.qemu.agent import GuestAgent
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.initramfs import InitramfsContent, build_initramfs
from iolane.engines.qemu.kernel import debian_kernel
from iolane.engines.qemu.vmlinux import uncompressed

SYSTEM_QEMU = Path("/usr/bin/qemu-system-x86_64")
"""The host's own, of the same release as its libvirt."""
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "nvme")


def description(
    name: str, emulator: Path, agent: Path | None, *, memory_mib: int = 256, programs: Sequence[Path] = ()
) -> DomainDescription:
    """A domain that boots in seconds, with a shell on its console."""
    cache = Cache()
    kernel = uncompressed(debian_kernel(cache=cache), cache)
    files = {f"/usr/bin/{path.name}": path for path in programs}
    initrd = build_initramfs(kernel, InitramfsContent(modules=list(MODULES), files=dict(files)), cache)
    return DomainDescription(
        name=name,
        accelerator=Accelerator.TCG,
        emulator=emulator,
        memory_mib=memory_mib,
        ports=5,
        kernel=kernel.image,
        initrd=initrd,
        append=["iolane.shell"],
        agent_socket=agent,
    )


@dataclass
class Guest:
    """A defined domain, and its agent once it runs."""

    domain: Domain
    agent_socket: Path
    agent: GuestAgent | None = None

    def start(self) -> None:
        """Start it and wait for its agent."""
        self.domain.start(paused=True)
        self.connect()
        self.domain.resume()
        assert self.agent is not None
        self.agent.wait_hello(120)

    def connect(self) -> None:
        """Speak with the agent from now on."""
        port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        port.connect(os.fspath(self.agent_socket))
        self.agent = GuestAgent(port)

    def check(self, command: str, timeout: float = 600.0) -> str:
        """The output of a command that must succeed in the guest, whose clock may be fast on a busy host."""
        assert self.agent is not None
        return self.agent.run(command, timeout=timeout).check().output

    def wait_for(self, command: str, seconds: float = 60.0) -> str:
        """Repeat a command until it succeeds."""
        assert self.agent is not None
        deadline = time.monotonic() + seconds
        while True:
            result = self.agent.run(command)
            if result.exit_code == 0 or time.monotonic() > deadline:
                return result.check().output


def define(connection: Connection, what: DomainDescription) -> Guest:
    """Have libvirt know it."""
    assert what.agent_socket is not None
    return Guest(connection.define(domain_xml(what)), what.agent_socket)
