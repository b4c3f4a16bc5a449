"""Serving devices: from what the user wrote to sockets that a machine connects to."""

from __future__ import annotations

import itertools
import os
import re
import select
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
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
from iolane.carriers.vhost_user import VhostUserServer
from iolane.devices.registry import carrier_of, create, create_virtio, resolve_virtio
from iolane.devices.specification import Carrier, DeviceSpecification, parse
from iolane.devices.virtio.block import Block
from iolane.devices.virtio.net import Net
from iolane.errors import IolaneError
from iolane.host.holding import Holder
from iolane.model.pci import PhysicalFunction
from iolane.model.virtio import VirtioDevice
from iolane.model.workers import Workers
from iolane.operations.device_process import DeviceProcess
from iolane.operations.interruption import INTERRUPTION
from iolane.operations.served_device import ServedDevice
from iolane.operations.served_virtio import ServedVirtio
from iolane.operations.tracing import TraceRequest
from iolane.uapi.virtio import DeviceType

Served = ServedDevice | ServedVirtio
MAC = re.compile(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}")
"""Of one interface, not of a group of them."""


class VirtioKind(msgspec.Struct, frozen=True):
    """What a vhost-user front end has to know of the device at the other end."""

    type: DeviceType
    queues: int = 1
    """As the user counts them: request queues of a disk, pairs of a network device."""
    queue_size: int | None = None
    mac: str | None = None
    """The front end keeps it."""
    standby: bool = False
    """Of a network device: it stands in for a function with the same address, when that is not there."""


class Endpoint(msgspec.Struct, frozen=True):
    """A socket a machine connects to, and what is behind it."""

    name: str
    socket: Path
    virtio: VirtioKind | None = None
    """What the machine's front end is told, where vhost-user carries the device; None for vfio-user."""
    served: Served | None = None
    """The device, where this process serves it."""
    process: DeviceProcess | None = None
    """Its own process, where it has one."""
    virtual: tuple[Path, ...] = ()
    """Sockets of its virtual functions, which are beside its own."""


class DeviceServers:
    """Serves devices while it is entered: those it begins with, and those that are added. Each device owns
    what it takes, and gives it back when it is removed; leaving ends all of it.

    Args:
        devices: what the user wrote for each.
        socket: where the only device is served; else each gets a socket in a private folder.
        name: the only device's name, where the user gave none.
        carrier: for devices that name none.
        trace: what to trace from the start, to stderr.
        beside: what others serve in this process, for the control socket and the reports.
        control: the control socket of this process, where its owner has one; else it is made when there is
            something to tell.
    """

    def __init__(
        self,
        devices: Sequence[str],
        *,
        socket: Path | None = None,
        name: str | None = None,
        carrier: Carrier | None = None,
        trace: TraceRequest | None = None,
        beside: Sequence[Served] = (),
        holders: Sequence[Holder] = (),
        control: ControlServer | None = None,
    ) -> None:
        wanted = [_carried(parse(device), carrier) for device in devices]
        self._wanted = _named(wanted, name)
        self._socket = socket
        self._trace = trace
        self._beside = list(beside)
        self._holders = holders
        self._stack = ExitStack()
        self._telling = ExitStack()
        self._owned: dict[str, ExitStack] = {}
        self._workers: Workers | None = None
        self._control = control
        self._folder = Path()
        self.endpoints: list[Endpoint] = []

    @property
    def served(self) -> list[Served]:
        """The devices that this process serves itself."""
        return [endpoint.served for endpoint in self.endpoints if endpoint.served is not None]

    def __enter__(self) -> DeviceServers:
        try:
            self._start()
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
            self._telling.close()
            for name in reversed(list(self._owned)):
                self._owned.pop(name).close()
            self._stack.close()

    def reports(self) -> list[DeviceReport]:
        """Every device as it is now, but those that others serve."""
        processes = {endpoint.process.pid for endpoint in self.endpoints if endpoint.process is not None}
        others = [server for _, server in serving() if server.pid in processes] if processes else []
        return [
            *(served.report() for served in [*self.served, *self._beside]),
            *(device for server in others for device in server.devices),
        ]

    def add(self, specification: DeviceSpecification) -> Endpoint:
        """Serve one more device from now on. Nothing of it is left when that fails."""
        [named] = _named([specification], None, taken=[each.name for each in self.endpoints])
        try:
            with INTERRUPTION.held():
                endpoint = self._begin(named)
            if endpoint.process is not None:
                endpoint.process.wait_ready()
            endpoint = msgspec.structs.replace(endpoint, virtual=_virtual_of(endpoint.socket))
            if endpoint.served is not None and self._control is not None:
                self._control.add_device(endpoint.served)
        except BaseException:
            self._end(named.id or "")
            raise
        self.endpoints.append(endpoint)
        return endpoint

    def remove(self, name: str) -> None:
        """Serve a device no longer: its server, its back end and its process end."""
        for endpoint in [each for each in self.endpoints if each.name == name]:
            self.endpoints.remove(endpoint)
            if self._control is not None:
                self._control.remove_device(name)
        self._end(name)

    def add_beside(self, served: Served) -> None:
        """Another serves one more device in this process."""
        self._beside.append(served)
        if self._control is not None:
            self._control.add_device(served)

    def remove_beside(self, name: str) -> None:
        """It does no longer."""
        self._beside = [each for each in self._beside if each.name != name]
        if self._control is not None:
            self._control.remove_device(name)

    def _end(self, name: str) -> None:
        with INTERRUPTION.held():
            stack = self._owned.pop(name, None)
            if stack is not None:
                stack.close()

    def _start(self) -> None:
        with INTERRUPTION.held():
            self._folder = self._stack.enter_context(RunDirectory()).path
        for specification in self._wanted:
            with INTERRUPTION.held():
                self.endpoints.append(self._begin(specification))
        here = [*self.served, *self._beside]
        if self._control is not None:
            for served in here:
                self._control.add_device(served)
        elif here or self._holders:
            with INTERRUPTION.held():
                self._control = self._telling.enter_context(ControlServer(here))
        for holder in self._holders:
            assert self._control is not None
            self._control.add_holder(holder)
        for endpoint in self.endpoints:
            if endpoint.process is not None:
                endpoint.process.wait_ready()
        self.endpoints = [
            msgspec.structs.replace(each, virtual=_virtual_of(each.socket)) for each in self.endpoints
        ]

    def _begin(self, specification: DeviceSpecification) -> Endpoint:
        """One device; what it takes belongs to it alone, but for the threads."""
        name = specification.id or ""
        socket = self._socket or self._folder / f"{name}.sock"
        if specification.socket is not None:
            return Endpoint(name, _check_served(specification), virtio_kind(specification))
        with ExitStack() as stack:
            if specification.own_process:
                process = DeviceProcess(specification, name, check_socket_path(socket))
                stack.callback(process.stop)
                endpoint = Endpoint(name, socket, virtio_kind(specification), process=process)
            else:
                if self._workers is None:
                    self._workers = self._stack.enter_context(Workers(name="device"))
                endpoint = self._serve(stack, specification, socket.absolute(), self._workers)
            self._owned[name] = stack.pop_all()
        return endpoint

    def _serve(
        self, stack: ExitStack, specification: DeviceSpecification, socket: Path, workers: Workers
    ) -> Endpoint:
        check_socket_path(socket)
        kind: VirtioKind | None = None
        served: Served
        if carrier_of(specification) is Carrier.VHOST_USER:
            bare, mac, standby = _for_front_end(specification)
            virtio = create_virtio(bare)
            stack.callback(virtio.close)
            kind = msgspec.structs.replace(_kind_of(virtio, mac), standby=standby)
            vhost_user = stack.enter_context(VhostUserServer(virtio, socket, workers=workers))
            served = ServedVirtio(virtio.name, virtio, vhost_user, socket)
        else:
            device = create(specification)
            stack.callback(device.close)
            server = stack.enter_context(VfioUserServer(device, socket, workers=workers))
            served = ServedDevice(device.name, device, server, socket)
            if isinstance(device, PhysicalFunction):
                for vf in device.vfs.all:
                    path = _virtual_socket(socket, vf.number)
                    check_socket_path(path)
                    stack.enter_context(VfioUserServer(vf, path, workers=workers))
        if self._trace is not None:
            stack.callback(served.trace_to_stderr(self._trace))
        return Endpoint(served.name, socket, kind, served)


def _virtual_socket(socket: Path, number: int) -> Path:
    """Where a virtual function is served: `x-vf0.sock` beside `x.sock`."""
    return socket.with_name(f"{socket.stem}-vf{number}{socket.suffix}")


def _virtual_of(socket: Path) -> tuple[Path, ...]:
    """The sockets of the virtual functions of what is served at `socket`, whichever process serves them."""
    numbers = itertools.count()
    return tuple(itertools.takewhile(is_served, (_virtual_socket(socket, number) for number in numbers)))


def _carried(specification: DeviceSpecification, carrier: Carrier | None) -> DeviceSpecification:
    """With the carrier that is wanted for all, where it does not name another."""
    if carrier is None or specification.carrier is carrier:
        return specification
    if specification.carrier is not None:
        raise IolaneError(f"two carriers: carrier={specification.carrier} and --carrier {carrier}")
    return msgspec.structs.replace(specification, carrier=carrier)


def virtio_kind(specification: DeviceSpecification) -> VirtioKind | None:
    """What a front end is told, by what the user wrote: the device is in another process."""
    if carrier_of(specification) is not Carrier.VHOST_USER:
        return None
    kind = resolve_virtio(specification.name)
    bare, mac, standby = _for_front_end(specification)
    [*_, queues] = bare.options.get("queues", ["1"])
    return VirtioKind(kind.device_type, int(queues) if queues.isdecimal() else 1, mac=mac, standby=standby)


def _for_front_end(specification: DeviceSpecification) -> tuple[DeviceSpecification, str | None, bool]:
    """With vhost-user a network device's address, and that it is a stand-in, are told to the front end, not
    to the device.
    """
    if specification.name != "net":
        return specification, None, False
    options = dict(specification.options)
    mac = options.pop("mac", [None])
    standby = options.pop("standby", ["off"])
    if len(mac) > 1 or (mac[0] is not None and not MAC.fullmatch(mac[0])):
        raise IolaneError(
            f"net: '{mac[-1]}' is no address for a network device", remedy="mac=02:00:00:00:00:01"
        )
    if standby not in (["on"], ["off"]):
        raise IolaneError(f"net: standby is on or off, not '{standby[-1]}'")
    if standby == ["on"] and mac[0] is None:
        raise IolaneError(
            "net: a stand-in has the address of the function that it stands in for", remedy="add mac="
        )
    return msgspec.structs.replace(specification, options=options), mac[0], standby == ["on"]


def _kind_of(device: VirtioDevice, mac: str | None) -> VirtioKind:
    """The same by the device itself."""
    queues = len(device.queues)
    if isinstance(device, Net):
        return VirtioKind(device.device_type, max(1, queues // 2), mac=mac or device.permanent_mac.hex(":"))
    return VirtioKind(device.device_type, queues, device.queues[0].max_size)


def _named(
    specifications: list[DeviceSpecification], only: str | None, taken: Iterable[str] = ()
) -> list[DeviceSpecification]:
    """Every device has an id: the given one, or its kind with a number; none of those that are `taken`."""
    counts: Counter[str] = Counter(taken)
    counts.update(specification.id for specification in specifications if specification.id)
    for name, count in counts.items():
        if count > 1:
            raise IolaneError(f"two devices have the id '{name}'", remedy="id=NAME gives one another")
    named = []
    for specification in specifications:
        name = specification.id or only or free_name(specification, counts)
        counts[name] += 1
        named.append(msgspec.structs.replace(specification, id=name))
    return named


def free_name(specification: DeviceSpecification, taken: Counter[str]) -> str:
    """Its kind with the first number that is free: `nvme0`."""
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


def images_in_use(servers: DeviceServers) -> list[IolaneError]:
    """Why disks can't be used now. They lock their images only while a guest does, so that another guest may
    move here together with its disk; who expects none may as well know it at once.
    """
    problems: list[IolaneError] = []
    for place, served in enumerate(servers.served):
        problems += image_problems(served, servers.served[:place])
    return problems


def image_problems(served: Served, others: Iterable[Served]) -> list[IolaneError]:
    """Why a disk can't be used now beside others of this process; nothing for what is no disk."""
    disk = served.device
    if not isinstance(disk, Block):
        return []
    problems: list[IolaneError] = []
    try:
        disk.check_image()
    except IolaneError as error:
        problems.append(IolaneError(f"{served.name}: {error.message}", remedy=error.remedy))
    for other in others:
        written = _written(other.device) if isinstance(other.device, Block) else None
        if written is not None and written == _written(disk):
            problems.append(IolaneError(f"{other.name} and {served.name} both write to {disk.image}"))
    return problems


def _written(disk: Block) -> tuple[int, int] | None:
    """The file that a disk writes to."""
    if disk.image is None or disk.read_only:
        return None
    status = disk.image.stat()
    return status.st_dev, status.st_ino


def wait_for_end(lifeline: int | None = None) -> None:
    """Until a signal ends the process, or until the lifeline's other end is closed.

    The kernel may give a signal to any thread, after SIGCONT for instance; its handler runs in the main one,
    which is woken for that.
    """
    waiting, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    try:
        poll = select.poll()
        poll.register(waiting, select.POLLIN)
        if lifeline is not None:
            poll.register(lifeline, select.POLLIN)
        while all(ready == waiting for ready, _ in poll.poll()):
            os.read(waiting, 512)
    finally:
        signal.set_wakeup_fd(before)
        os.close(waiting)
        os.close(waking)
