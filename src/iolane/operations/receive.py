"""Receiving a machine from another host, and running it until it ends or goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iolane.devices.specification import IDENTIFIER
from iolane.engines.qemu.credentials import TlsCredentials
from iolane.errors import IolaneError
from iolane.operations.machine import Machine
from iolane.operations.migration.arriving import ArrivingGuest, GuestMaker
from iolane.operations.migration.preflight import Welcome
from iolane.operations.migration.receiver import Receiver
from iolane.operations.migration.uri import Place, parse_place
from iolane.operations.passthrough import parse_pass


@dataclass(frozen=True)
class ReceiveRequest:
    """What the operator of the destination wants."""

    uri: str
    name: str | None = None
    devices: Sequence[str] = ()
    """ID=NAME[,key=value...]: what a device of the machine is here."""
    kernel: Path | None = None
    initrd: Path | None = None
    folders: Sequence[Path] = field(default_factory=tuple)
    """Where the source may name files; over a unix socket, anywhere."""
    tls: Path | None = None
    passed: Sequence[str] = ()
    """ADDRESS,id=NAME[,key=value...]: a function for each that the machine leaves behind."""


def welcome(request: ReceiveRequest, place: Place) -> Welcome:
    """Who listens on a unix socket hears this user alone, who may name any file. Raises IolaneError."""
    for path in (request.kernel, request.initrd):
        if path is not None and not path.is_file():
            raise IolaneError(f"{path}: no such file")
    anywhere = place.path is not None and not request.folders
    return Welcome(
        name=request.name,
        devices=dict(_override(text) for text in request.devices),
        kernel=request.kernel,
        initrd=request.initrd,
        folders=None if anywhere else request.folders,
        functions={each.id: each for each in map(parse_pass, request.passed)},
    )


def _override(text: str) -> tuple[str, str]:
    identity, equals, device = text.partition("=")
    if not equals or not device or not IDENTIFIER.fullmatch(identity):
        raise IolaneError(
            f"device '{text}' does not say which", remedy="ID=NAME[,key=value...], e.g. net0=net,tap=tap1"
        )
    return identity, device


def receive(
    request: ReceiveRequest,
    tell: Callable[[str], None],
    *,
    waiting: Callable[[Place], object] = lambda place: None,
    arrived: Callable[[Machine], object] = lambda machine: None,
) -> Machine:
    """Wait for a machine, run it until it ends; returns it, ended. What was refused or failed is told of, and
    the next one waited for.

    Args:
        tell: gets a line about what happens.
        waiting: called when sources can connect.
        arrived: called when a machine runs here.
    """
    place = parse_place(request.uri)
    maker = GuestMaker(welcome(request, place), tell=tell)
    credentials = None if request.tls is None else TlsCredentials(request.tls)
    if credentials is None and place.path is None:
        tell("without --tls nothing is encrypted, and whoever reaches the port may send a machine")
    with Receiver(place, maker, credentials=credentials, tell=tell) as receiver:
        waiting(place)
        arrival = receiver.receive()
        assert arrival is not None
        assert isinstance(arrival.machine, ArrivingGuest)
        machine = arrival.machine.machine
        try:
            arrived(machine)
            machine.wait_end()
        finally:
            machine.stop()
    return machine
