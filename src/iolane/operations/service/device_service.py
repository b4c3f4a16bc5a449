"""One device served by this process from its start to its end, as a service manager or a script wants it."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from iolane.carriers.vfio_user.server import FDS_BESIDE_VECTORS
from iolane.devices.specification import Carrier, DeviceSpecification, parse
from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptIndex
from iolane.model.pci import PhysicalFunction
from iolane.model.virtio import VirtioDevice
from iolane.operations.interruption import INTERRUPTION
from iolane.operations.ready import Ready, ready_lines
from iolane.operations.service.daemon import detach
from iolane.operations.service.health import problem_of
from iolane.operations.service.limits import keep_private, limit_files, limit_memory
from iolane.operations.service.logs import LogSettings, is_structured, logged, take_stderr
from iolane.operations.service.notify import Notifier
from iolane.operations.service.paths import absolute, descriptors, text_of
from iolane.operations.service.pid_file import PidFile
from iolane.operations.service.watchdog import Watchdog
from iolane.operations.serving import DeviceServers, Served, free_name, images_in_use
from iolane.operations.supervisor import SupervisedServer, Supervisor
from iolane.operations.tracing import TraceRequest

FDS_OF_A_QUEUE = 4
"""Kick, call, error, and what wakes its thread up."""
Until = Callable[[int | None], None]
"""Returns when the service is to end: by a signal, or when the descriptor (if there is one) can be read."""

_log = logging.getLogger("iolane.service")


class ServiceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `iolane serve` is asked for."""

    device: str
    socket: Path
    carrier: Carrier | None = None
    name: str | None = None
    trace: TraceRequest | None = None
    pid_file: Path | None = None
    log: LogSettings = LogSettings()
    memory_limit: int | None = None
    """Bytes."""
    supervised: bool = False
    """The device is served by a child that is started anew when it ends."""


class Started(msgspec.Struct, frozen=True):
    """The service is ready."""

    ready: Ready
    notes: list[str] = []
    """What may matter later."""


def serve_in_background(request: ServiceRequest, until: Until) -> Started:
    """Serve in a daemon, and return once it is ready. Without a log it gets one beside its socket.

    Raises:
        IolaneError: it could not start, and nothing of it is left.
    """
    folder = Path.cwd()
    device = absolute(_checked(request.device), folder)
    log = request.log.path or request.socket.with_suffix(".log")
    there = msgspec.structs.replace(
        request,
        device=text_of(device),
        socket=folder / request.socket,
        pid_file=None if request.pid_file is None else folder / request.pid_file,
        log=msgspec.structs.replace(request.log, path=folder / log),
    )

    def service(announce: Callable[[bytes], None]) -> None:
        serve_device(there, lambda started: announce(msgspec.json.encode(started)), until, background=True)

    said = detach(service, keep=descriptors(device), log=str(log))
    return msgspec.json.decode(said, type=Started)


def serve_device(
    request: ServiceRequest,
    announce: Callable[[Started], None],
    until: Until,
    *,
    background: bool = False,
) -> None:
    """Serve until `until` returns.

    Args:
        request: what.
        announce: called once clients can connect.
        until: returns at the end.
        background: this process is a daemon, which a service manager did not start itself.

    Raises:
        IolaneError: it could not start; or it was supervised, and was given up. A structured log has it too.
    """
    device = _checked(request.device)
    keep_private()
    with logged(request.log), ExitStack() as stack:
        if background and request.log.path is not None:
            take_stderr(request.log.path)
        try:
            notifier = stack.enter_context(Notifier.from_environment(os.environ, inherited=not background))
            if request.pid_file is not None:
                with INTERRUPTION.held():
                    stack.enter_context(PidFile(request.pid_file))
            serve = _serve_supervised if request.supervised else _serve_here
            serve(request, device, notifier, announce, until)
        except IolaneError as error:
            if is_structured(request.log):
                _log.error("%s", error)
            raise
        except Exception:
            _log.exception("the service failed")
            raise


def _serve_here(
    request: ServiceRequest,
    device: DeviceSpecification,
    notifier: Notifier,
    announce: Callable[[Started], None],
    until: Until,
) -> None:
    with DeviceServers(
        [text_of(device)],
        socket=request.socket,
        name=request.name,
        carrier=request.carrier,
        trace=request.trace,
    ) as servers:
        notes = [f"for now {problem.message}" for problem in images_in_use(servers)]
        lacking = limit_files(files_needed(servers.served))
        notes += [] if lacking is None else [lacking]
        if request.memory_limit is not None:
            limit_memory(request.memory_limit)
        started = Started(ready_lines(servers.endpoints[0]), notes)
        with Watchdog(notifier, lambda patience: problem_of(servers.served, patience)):
            _until_the_end(started, notifier, announce, lambda: until(None))


def _serve_supervised(
    request: ServiceRequest,
    device: DeviceSpecification,
    notifier: Notifier,
    announce: Callable[[Started], None],
    until: Until,
) -> None:
    name = device.id or request.name or free_name(device, Counter())
    if device.carrier is not None and request.carrier not in (None, device.carrier):
        raise IolaneError(f"two carriers: carrier={device.carrier} and --carrier {request.carrier}")
    carried = msgspec.structs.replace(device, carrier=device.carrier or request.carrier)
    options = request.log.options()
    if request.memory_limit is not None:
        options += ["--memory-limit", f"{-(-request.memory_limit >> 10)}K"]
    if request.trace is not None:
        options += ["--trace", ",".join(filter(None, (request.trace.level, request.trace.registers)))]
    server = SupervisedServer(carried, name, request.socket.absolute(), tuple(options))
    with Supervisor([server]) as supervisor, Watchdog(notifier, lambda _: supervisor.problem()):
        ready = msgspec.json.decode(supervisor.ready[name], type=Ready)
        started = Started(msgspec.structs.replace(ready, pid=os.getpid()))
        _until_the_end(started, notifier, announce, lambda: until(supervisor.dead))
        problem = supervisor.problem()
    if problem is not None:
        raise IolaneError(problem, remedy="its log says more")


def _until_the_end(
    started: Started, notifier: Notifier, announce: Callable[[Started], None], until: Callable[[], None]
) -> None:
    ready = started.ready
    for note in started.notes:
        _log.info("%s", note)
    _log.info("%s is served on %s", ready.name, ready.socket, extra={"device": ready.name, "event": "ready"})
    try:
        announce(started)
        notifier.ready(f"{ready.name} ({ready.type}) is served on {ready.socket}")
        until()
    finally:
        notifier.stopping()
        _log.info("%s is served no more", ready.name, extra={"device": ready.name, "event": "ending"})


def files_needed(served: list[Served]) -> int:
    """Descriptors that the devices and their servers may have open at once."""
    needed: int = FDS_BESIDE_VECTORS
    for each in served:
        device = each.device
        if isinstance(device, VirtioDevice):
            needed += len(device.queues) * FDS_OF_A_QUEUE
            continue
        functions = [device, *(device.vfs.all if isinstance(device, PhysicalFunction) else ())]
        for function in functions:
            needed += sum(function.interrupts.group(index).count for index in InterruptIndex)
    return needed


def _checked(text: str) -> DeviceSpecification:
    device = parse(text)
    if device.socket is not None:
        raise IolaneError(f"device '{text}' is served elsewhere", remedy="leave socket= out")
    return msgspec.structs.replace(device, own_process=False)
