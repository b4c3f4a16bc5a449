"""A domain moves to another host of libvirt's, with its devices. libvirt does the moving and is the
transaction: it prepares the domain at the destination, where its hook has iolane serve the devices
(`hook.py`), moves memory, and ends one side. iolane refuses before what would lose a device's state, and
looks afterwards which side runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from iolane.devices.specification import Carrier
from iolane.engines.libvirt.binding import libvirt
from iolane.engines.libvirt.connection import Connection
from iolane.engines.libvirt.domain import Domain
from iolane.engines.libvirt.failure import LibvirtError, libvirt_errors
from iolane.errors import IolaneError
from iolane.operations.libvirt.hook import require_installed

LOOK_SECONDS = 0.5


class DomainProgress(msgspec.Struct, frozen=True):
    """How far a migration is (virDomainGetJobStats); sizes in bytes, rates in bytes a second."""

    total: int
    remaining: int
    rate: int
    dirty_rate: int
    passes: int

    @property
    def estimate(self) -> float | None:
        """Seconds until the guest runs at the destination; None while the guest writes faster than can be
        moved."""
        gain = self.rate - self.dirty_rate
        return self.remaining / gain if gain > 0 else None


class DomainMigration(msgspec.Struct, frozen=True, kw_only=True):
    """How it went."""

    domain: str
    source: str
    destination: str
    seconds: float
    downtime: float
    """Seconds in which the guest stood still, as libvirt counts them."""
    transferred: int
    """Bytes of memory that went over, repetitions included."""
    passes: int
    """How often memory was gone through."""


class MigrationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to move where."""

    domain: str
    destination: str
    """A URI of libvirt's: `qemu+ssh://HOST/system`."""
    uri: str | None = None
    data: str | None = None
    """Where memory is sent to, `tcp://HOST`; by default to the destination's name."""
    downtime: float | None = None
    """Seconds that the guest may stand still."""
    bandwidth: int | None = None
    """MiB a second."""
    timeout: float | None = None
    """Seconds; then it is given up, and the domain goes on at the source."""
    check_only: bool = False


ProgressFunction = Callable[[DomainProgress], None]


def is_libvirt_uri(text: str) -> bool:
    """Whether a place to go to is a host of libvirt's."""
    scheme = text.partition("://")[0]
    return "://" in text and (scheme == "qemu" or scheme.startswith("qemu+"))


def migrate_domain(
    request: MigrationRequest, on_progress: ProgressFunction | None = None
) -> DomainMigration | None:
    """Move it, and return when it runs at the destination; None where it was only to be checked.

    Raises:
        IolaneError: it goes on at the source, unless the message says otherwise.
    """
    with Connection(request.uri) as source, Connection(request.destination) as destination:
        domain = source.domain(request.domain)
        check_migration(domain)
        if source.is_local:
            require_installed()
        if request.check_only:
            return None
        if request.downtime is not None:
            with libvirt_errors(f"{domain.name}: a limit of {request.downtime:g} s"):
                domain.handle.migrateSetMaxDowntime(int(request.downtime * 1000), 0)
        started = time.monotonic()
        moving = _Moving(domain, destination, request)
        try:
            arrived = moving.finish(on_progress)
        except BaseException as error:
            _explain(error, source, destination, domain.name)
            raise
        figures = _completed(arrived)
        return DomainMigration(
            domain=domain.name,
            source=source.uri,
            destination=destination.uri,
            seconds=time.monotonic() - started,
            downtime=figures.get("downtime", 0) / 1000,
            transferred=figures.get("memory_processed", 0),
            passes=figures.get("memory_iteration", 0),
        )


def check_migration(domain: Domain) -> None:
    """Refuse what would lose something. Raises IolaneError."""
    if not domain.running:
        raise IolaneError(
            f"the domain {domain.name} does not run", remedy="virsh migrate --offline moves its XML"
        )
    document = domain.document()
    emulated = [each.id for each in domain.attached() if each.carrier == Carrier.VFIO_USER.value]
    emulated += [] if emulated or "vfio-user-pci" not in document else ["what is on its command line"]
    if emulated:
        raise IolaneError(
            f"migrating is refused: QEMU would silently drop the state of {', '.join(emulated)}",
            remedy=f"iolane detach {domain.name} ID first, and attach it again on the other side",
        )
    functions = ET.fromstring(document).findall("devices/hostdev[@type='pci']")
    if functions:
        raise IolaneError(
            f"migrating is refused: {len(functions)} physical functions can't move",
            remedy=f"iolane detach {domain.name} ID first, and attach one on the other side",
        )


class _Moving:
    """The migration in a thread of its own: libvirt's call returns at its end."""

    def __init__(self, domain: Domain, destination: Connection, request: MigrationRequest) -> None:
        self._domain = domain
        self._destination = destination
        self._request = request
        self._done = threading.Event()
        self._arrived: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"migrate {domain.name}")
        self._thread.start()

    def finish(self, on_progress: ProgressFunction | None) -> Domain:
        """Wait for the end; whatever interrupts the waiting cancels it first. Raises IolaneError."""
        limit = self._request.timeout
        deadline = None if limit is None else time.monotonic() + limit
        try:
            while not self._done.wait(LOOK_SECONDS):
                if on_progress is not None and (progress := self._progress()) is not None:
                    on_progress(progress)
                if deadline is not None and time.monotonic() > deadline:
                    self._cancel()
                    deadline = None
        except BaseException:
            self._cancel()
            raise
        finally:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return Domain(self._destination, self._arrived)

    def _run(self) -> None:
        try:
            self._arrived = self._move()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def _move(self) -> Any:
        binding, request = libvirt(), self._request
        flags = binding.VIR_MIGRATE_LIVE | binding.VIR_MIGRATE_ABORT_ON_ERROR
        if self._domain.persistent:
            flags |= binding.VIR_MIGRATE_PERSIST_DEST | binding.VIR_MIGRATE_UNDEFINE_SOURCE
        parameters: dict[str, object] = {}
        if request.data is not None:
            parameters[binding.VIR_MIGRATE_PARAM_URI] = request.data
        if request.bandwidth is not None:
            parameters[binding.VIR_MIGRATE_PARAM_BANDWIDTH] = request.bandwidth
        with libvirt_errors(f"{self._domain.name} does not move to {request.destination}"):
            return self._domain.handle.migrate3(self._destination.handle, parameters, flags)

    def _cancel(self) -> None:
        """It may be over already."""
        try:
            with libvirt_errors("cancelling"):
                self._domain.handle.abortJob()
        except LibvirtError:
            return

    def _progress(self) -> DomainProgress | None:
        try:
            with libvirt_errors("asking"):
                figures = self._domain.handle.jobStats()
        except LibvirtError:  # it is over just now
            return None
        if not figures.get("memory_total"):
            return None
        return DomainProgress(
            total=figures["memory_total"],
            remaining=figures.get("memory_remaining", 0),
            rate=figures.get("memory_bps", 0),
            dirty_rate=figures.get("memory_dirty_rate", 0) * figures.get("memory_page_size", 4096),
            passes=figures.get("memory_iteration", 0),
        )


def _completed(domain: Domain) -> dict[str, int]:
    try:
        with libvirt_errors("asking"):
            return dict(domain.handle.jobStats(libvirt().VIR_DOMAIN_JOB_STATS_COMPLETED))
    except LibvirtError:
        return {}


def _explain(error: BaseException, source: Connection, destination: Connection, name: str) -> None:
    """Say with the error which side runs; libvirt never runs two, but it may have lost sight of one."""
    if not isinstance(error, IolaneError):
        return
    here, there = _state(source, name), _state(destination, name)
    error.message = f"{error.message}; the source has it {here}, the destination {there}"


def _state(connection: Connection, name: str) -> str:
    try:
        domain = connection.domain(name)
        if not domain.running:
            return "defined only"
        return "paused" if domain.paused else "running"
    except LibvirtError:
        return "nobody knows how"
    except IolaneError:
        return "not at all"
