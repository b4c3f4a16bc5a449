"""Serving devices: from what the user wrote to vfio-user sockets that a machine connects to."""

from __future__ import annotations

import json
import os
import re
import select
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import msgspec

from iolane.carriers.control import (
    ControlServer,
    DeviceReport,
    RunDirectory,
    check_socket_path,
    is_served,
    serving,
)
from iolane.carriers.vfio_user import VfioUserServer
from iolane.devices.registry import create
from iolane.devices.specification import DeviceSpecification, parse
from iolane.errors import IolaneError
from iolane.model.workers import Workers
from iolane.operations.device_process import DeviceProcess
from iolane.operations.interruption import INTERRUPTION
from iolane.operations.served_device import ServedDevice
from iolane.operations.tracing import TraceRequest


class Endpoint(msgspec.Struct, frozen=True):
    """A vfio-user socket a machine connects to, and what is behind it."""

    name: str
    socket: Path
    served: ServedDevice | None = None
    """The device, where this process serves it."""
    process: DeviceProcess | None = None
    """Its own process, where it has one."""


class DeviceServers:
    """Serves several devices while it is entered; leaving it ends all of it.

    Args:
        devices: what the user wrote for each.
        socket: where the only device is served; else each gets a socket in a private folder.
        name: the only device's name, where the user gave none.
        trace: what to trace from the start, to stderr.
    """

    def __init__(
        self,
        devices: Sequence[str],
        *,
        socket: Path | None = None,
        name: str | None = None,
        trace: TraceRequest | None = None,
    ) -> None:
        self._wanted = _named([parse(device) for device in devices], name)
        self._socket = socket
        self._trace = trace
        self._stack = ExitStack()
        self.endpoints: list[Endpoint] = []

    @property
    def served(self) -> list[ServedDevice]:
        """The devices that this process serves itself."""
        return [endpoint.served for endpoint in self.endpoints if endpoint.served is not None]

    def __enter__(self) -> DeviceServers:
        try:
            self._start(self._stack)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        with INTERRUPTION.held():  # half of it done would leave the other half behind
            self._stack.close()

    def reports(self) -> list[DeviceReport]:
        """Every device as it is now, but those that others serve."""
        processes = {endpoint.process.pid for endpoint in self.endpoints if endpoint.process is not None}
        others = [server for _, server in serving() if server.pid in processes] if processes else []
        return [
            *(served.report() for served in self.served),
            *(device for server in others for device in server.devices),
        ]

    def _start(self, stack: ExitStack) -> None:
        with INTERRUPTION.held():
            folder = stack.enter_context(RunDirectory()).path
        workers: Workers | None = None
        for specification in self._wanted:
            name = specification.id or ""
            socket = self._socket or folder / f"{name}.sock"
            with INTERRUPTION.held():
                if specification.socket is not None:
                    self.endpoints.append(Endpoint(name, _check_served(specification)))
                elif specification.own_process:
                    process = DeviceProcess(specification.device_text(), name, check_socket_path(socket))
                    stack.callback(process.stop)
                    self.endpoints.append(Endpoint(name, socket, process=process))
                else:
                    workers = workers or stack.enter_context(Workers(name="device"))
                    served = self._serve(stack, specification, socket.absolute(), workers)
                    self.endpoints.append(Endpoint(name, socket, served=served))
        if self.served:
            with INTERRUPTION.held():
                stack.enter_context(ControlServer(self.served))
        for endpoint in self.endpoints:
            if endpoint.process is not None:
                endpoint.process.wait_ready()

    def _serve(
        self, stack: ExitStack, specification: DeviceSpecification, socket: Path, workers: Workers
    ) -> ServedDevice:
        check_socket_path(socket)
        device = create(specification)
        stack.callback(device.close)
        server = stack.enter_context(VfioUserServer(device, socket, workers=workers))
        served = ServedDevice(device.name, device, server, socket)
        if self._trace is not None:
            stack.callback(served.trace_to_stderr(self._trace))
        return served


def _named(specifications: list[DeviceSpecification], only: str | None) -> list[DeviceSpecification]:
    """Every device has an id: the given one, or its kind with a number."""
    taken: Counter[str] = Counter(specification.id for specification in specifications if specification.id)
    for name, count in taken.items():
        if count > 1:
            raise IolaneError(f"two devices have the id '{name}'")
    named = []
    for specification in specifications:
        name = specification.id or only or _free_name(specification, taken)
        taken[name] += 1
        named.append(msgspec.structs.replace(specification, id=name))
    return named


def _free_name(specification: DeviceSpecification, taken: Counter[str]) -> str:
    stem = re.sub(r"\W", "", specification.name.rpartition(":")[2].lower()) or "device"
    number = 0
    while taken[f"{stem}{number}"]:
        number += 1
    return f"{stem}{number}"


def _check_served(specification: DeviceSpecification) -> Path:
    path = Path(specification.socket or "").absolute()
    if not path.exists():
        remedy = f"start it: iolane serve DEVICE --socket {path}"
        raise IolaneError(f"device '{specification.text}': there is no socket {path}", remedy=remedy)
    if not os.access(path, os.W_OK):
        raise IolaneError(f"device '{specification.text}': no permission for {path}")
    if not is_served(path):
        remedy = f"start it: iolane serve DEVICE --socket {path}"
        raise IolaneError(f"device '{specification.text}': nobody serves {path}", remedy=remedy)
    return path


class Ready(msgspec.Struct, frozen=True):
    """How to use a served device."""

    name: str
    type: str
    socket: str
    pid: int
    qemu: list[str]
    """Arguments for QEMU >= 10.1; guest RAM must be shared memory for the device to reach it."""
    libvirt: str
    """Elements for a libvirt domain."""


def ready_lines(served: ServedDevice) -> Ready:
    """What to give to QEMU or to libvirt."""
    socket = str(served.socket.absolute())
    device = {"driver": "vfio-user-pci", "id": served.name, "socket": {"type": "unix", "path": socket}}
    argument = json.dumps(device, separators=(",", ":"))
    memory = ["-object", "memory-backend-memfd,id=ram,size=1G,share=on", "-machine", "q35,memory-backend=ram"]
    libvirt = "\n".join(
        (
            '<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">',
            '  <memoryBacking><source type="memfd"/><access mode="shared"/></memoryBacking>',
            "  <qemu:commandline>",
            '    <qemu:arg value="-device"/>',
            f"    <qemu:arg value='{_attribute(argument)}'/>",
            "  </qemu:commandline>",
            "</domain>",
        )
    )
    return Ready(served.name, served.type, socket, os.getpid(), [*memory, "-device", argument], libvirt)


def _attribute(text: str) -> str:
    """`text` inside an XML attribute in single quotes."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&apos;")


def wait_for_end(lifeline: int | None = None) -> None:
    """Until a signal ends the process, or until the lifeline's other end is closed."""
    if lifeline is None:
        while True:
            signal.pause()
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.poll()
