"""A connection to libvirt: its domains, and what happens to them."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

from iolane.engines.libvirt.binding import libvirt, libvirt_qemu
from iolane.engines.libvirt.domain import Domain
from iolane.engines.libvirt.event_loop import EVENT_LOOP
from iolane.engines.libvirt.events import LIFECYCLE, DomainEvent, DomainEventKind, Listener, Watch
from iolane.engines.libvirt.failure import libvirt_errors
from iolane.errors import IolaneError

DEFAULT_URI = "qemu:///system"
KEEPALIVE_SECONDS, KEEPALIVE_COUNT = 5, 6
"""A daemon that answers nothing for their product is gone."""


class Connection:
    """One connection. A context manager: entering opens it, leaving closes it; domains go with it."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or DEFAULT_URI
        self._connection: Any = None
        self._in_loop = False
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._callbacks: list[int] = []
        self._monitor_callback: int | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connect, and have libvirt tell what happens."""
        binding = libvirt()
        EVENT_LOOP.enter()
        self._in_loop = True
        try:
            with libvirt_errors(f"no connection to libvirt at {self.uri}"):
                self._connection = binding.open(self.uri)
                if self._connection.getType() != "QEMU":
                    raise IolaneError(
                        f"{self.uri} is libvirt's driver for {self._connection.getType()}, not for QEMU",
                        remedy="qemu:///system, qemu:///session or qemu+ssh://HOST/system",
                    )
                self._register(binding)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it. Harmless when repeated."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._end(connection)
        if self._in_loop:
            self._in_loop = False
            EVENT_LOOP.leave()

    def _end(self, connection: Any) -> None:
        binding = libvirt()
        with contextlib.suppress(binding.libvirtError):  # the daemon may have gone
            connection.unregisterCloseCallback()
            for number in self._callbacks:
                connection.domainEventDeregisterAny(number)
            if self._monitor_callback is not None:
                libvirt_qemu().qemuMonitorEventDeregister(connection, self._monitor_callback)
        with contextlib.suppress(binding.libvirtError):
            connection.close()

    @property
    def handle(self) -> Any:
        """libvirt's own object. Raises IolaneError where it is closed."""
        if self._connection is None:
            raise IolaneError(f"the connection to {self.uri} is closed")
        return self._connection

    @property
    def is_local(self) -> bool:
        """Whether its domains run on this host, so that their devices can be served from here."""
        return not urlsplit(self.uri).netloc

    @property
    def hostname(self) -> str:
        """The host's name, as libvirt knows it."""
        with libvirt_errors(f"{self.uri}"):
            return str(self.handle.getHostname())

    @property
    def version(self) -> int:
        """Of the libvirt at the other end: 9000000 for 9.0.0."""
        with libvirt_errors(f"{self.uri}"):
            return int(self.handle.getLibVersion())

    def qemu_owner(self) -> str:
        """The user and group that QEMU runs as, `64055:64055` (libvirt's formatcaps, <secmodel> dac); empty
        where libvirt does not say."""
        with libvirt_errors(f"{self.uri}"):
            capabilities = ET.fromstring(self.handle.getCapabilities())
        for model in capabilities.findall("host/secmodel"):
            if model.findtext("model") == "dac":
                found = re.fullmatch(r"\+(\d+):\+(\d+)", model.findtext("baselabel", ""))
                return f"{found[1]}:{found[2]}" if found else ""
        return ""

    # -- domains ------------------------------------------------------------------------------------------

    def domain(self, name: str) -> Domain:
        """The domain with this name or UUID. Raises IolaneError where there is none."""
        binding = libvirt()
        with libvirt_errors(f"{self.uri}"):
            try:
                return Domain(self, self.handle.lookupByName(name))
            except binding.libvirtError as error:
                if error.get_error_code() != binding.VIR_ERR_NO_DOMAIN:
                    raise
            with contextlib.suppress(binding.libvirtError):
                return Domain(self, self.handle.lookupByUUIDString(name))
            names = sorted(each.name() for each in self.handle.listAllDomains())
        raise IolaneError(
            f"{self.uri} has no domain '{name}'", remedy=f"there are: {', '.join(names) or 'none'}"
        )

    def domains(self) -> list[Domain]:
        """All of them."""
        with libvirt_errors(f"{self.uri}"):
            return [Domain(self, each) for each in self.handle.listAllDomains()]

    def define(self, document: str) -> Domain:
        """Make a domain known, or change the one with its name."""
        binding = libvirt()
        with libvirt_errors("the domain can't be defined"):
            return Domain(self, self.handle.defineXMLFlags(document, binding.VIR_DOMAIN_DEFINE_VALIDATE))

    def create(self, document: str, *, paused: bool = False) -> Domain:
        """Start a domain that is forgotten when it ends."""
        binding = libvirt()
        flags = binding.VIR_DOMAIN_START_VALIDATE | (binding.VIR_DOMAIN_START_PAUSED if paused else 0)
        with libvirt_errors("the domain can't be started"):
            return Domain(self, self.handle.createXML(document, flags))

    # -- events -------------------------------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """`listener` gets every event (in the loop's thread, which it must not hold up); the call returned
        ends that."""
        with self._lock:
            self._listeners.append(listener)

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return end

    def watch(self, domain: str) -> Watch:
        """Collects what happens to the domain of this name."""
        return Watch(self.subscribe, domain)

    def _register(self, binding: Any) -> None:
        connection = self._connection
        for number, call in (
            (binding.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle),
            (binding.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, self._device(DomainEventKind.DEVICE_ADDED)),
            (binding.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._device(DomainEventKind.DEVICE_REMOVED)),
            (
                binding.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED,
                self._device(DomainEventKind.DEVICE_REMOVAL_FAILED),
            ),
        ):
            self._callbacks.append(connection.domainEventRegisterAny(None, number, call, None))
        self._monitor_callback = libvirt_qemu().qemuMonitorEventRegister(
            connection, None, None, self._monitor, None
        )
        connection.registerCloseCallback(self._closed, None)
        connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)

    def _lifecycle(self, connection: Any, domain: Any, number: int, detail: int, opaque: object) -> None:
        if number < len(LIFECYCLE):
            self._tell(
                DomainEvent(kind=LIFECYCLE[number], domain=domain.name(), time=time.time(), detail=detail)
            )

    def _device(self, kind: DomainEventKind) -> Callable[[Any, Any, str, object], None]:
        def call(connection: Any, domain: Any, device: str, opaque: object) -> None:
            self._tell(DomainEvent(kind=kind, domain=domain.name(), time=time.time(), device=device))

        return call

    def _monitor(
        self,
        connection: Any,
        domain: Any,
        event: str,
        seconds: int,
        micros: int,
        details: str,
        opaque: object,
    ) -> None:
        try:
            data = json.loads(details) if details else {}
        except ValueError:
            data = {}
        device = str(data.get("device", "")) if isinstance(data, dict) else ""
        self._tell(
            DomainEvent(
                kind=DomainEventKind.MONITOR,
                domain=domain.name(),
                time=seconds + micros / 1e6,
                name=event,
                device=device,
                data=data if isinstance(data, dict) else {},
            )
        )

    def _closed(self, connection: Any, reason: int, opaque: object) -> None:
        self._tell(DomainEvent(kind=DomainEventKind.LOST, domain="", time=time.time(), detail=reason))

    def _tell(self, event: DomainEvent) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener(event)
