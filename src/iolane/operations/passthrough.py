"""`--pass ADDRESS[,key=value...]`: functions of this host for a machine, taken before it starts and given
back after it has ended.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from iolane.carriers.control import RunDirectory
from iolane.carriers.vfio.holder import FunctionHolder
from iolane.devices.specification import IDENTIFIER, split_commas, suggestion
from iolane.engines.qemu.command_line import MachineDevice
from iolane.engines.qemu.vfio import VfioPciDevice
from iolane.errors import IolaneError
from iolane.host.taking import Taking
from iolane.model.pci import PcieId
from iolane.operations.interruption import INTERRUPTION
from iolane.operations.mediation import MediatedFunctionServer, Mediation, MediationRequest, load_mediation
from iolane.operations.served_device import ServedDevice
from iolane.operations.tracing import TraceRequest

BARS = ("0", "1", "2", "3", "4", "5")
KEYS = {
    "id": "the function's name in this machine",
    "rom": "off: the firmware does not see the function's option ROM",
    "force": "on: also what the host needs, and what can't be reset",
    "group": "whole: take along what else is in its IOMMU group",
    "mediate": "FILE.py:MAP: iolane in between, which names and traps registers",
    "bar": "the BAR that MAP is for, by default 0",
    "trap": "names of registers that trap; by default those that are traced, hooked or recorded",
    "record": "FILE in which the mediated session is recorded, for iolane replay",
}


class PassRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One `--pass`, taken apart."""

    text: str
    address: PcieId
    id: str
    rom: bool = True
    force: bool = False
    whole_group: bool = False
    mediation: MediationRequest | None = None


def parse_pass(text: str) -> PassRequest:
    """Take `ADDRESS[,key=value...]` apart; raises IolaneError in one line that quotes the argument."""
    first, *others = split_commas(text)
    try:
        address = PcieId.from_string(first)
    except IolaneError as error:
        raise IolaneError(f"pass '{text}': {error.message}", remedy=error.remedy) from None
    given: dict[str, str] = {}
    for other in others:
        key, equals, value = other.partition("=")
        if not equals or key not in KEYS:
            raise IolaneError(f"pass '{text}': '{other}' is not understood", remedy=suggestion(key, KEYS))
        if key in given:
            raise IolaneError(f"pass '{text}': {key} is given twice")
        given[key] = value
    identity = given.get("id") or default_id(address)
    if not IDENTIFIER.fullmatch(identity):
        raise IolaneError(f"pass '{text}': id '{identity}' is not a name")
    return PassRequest(
        text=text,
        address=address,
        id=identity,
        rom=_choice(text, given, "rom", "on", "off"),
        force=not _choice(text, given, "force", "off", "on"),
        whole_group=not _choice(text, given, "group", "alone", "whole"),
        mediation=_mediation(text, given),
    )


def _mediation(text: str, given: dict[str, str]) -> MediationRequest | None:
    registers, bar = given.get("mediate"), given.get("bar", "0")
    if registers is None:
        if beside := sorted({"bar", "trap", "record"} & given.keys()):
            raise IolaneError(f"pass '{text}': {beside[0]} goes with mediate")
        return None
    if bar not in BARS:
        raise IolaneError(f"pass '{text}': bar is one of {', '.join(BARS)}, not '{bar}'")
    return MediationRequest(
        registers=registers, bar=int(bar), trap=given.get("trap"), record=given.get("record")
    )


def default_id(address: PcieId) -> str:
    """What a passed function is called where nobody says: `pci-01-00.0`."""
    segment = f"{address.segment:04x}-" if address.segment else ""
    return f"pci-{segment}{address.bus:02x}-{address.device:02x}.{address.function}"


def _choice(text: str, given: dict[str, str], key: str, usual: str, other: str) -> bool:
    """Whether `key` is as usual."""
    value = given.get(key, usual)
    if value not in (usual, other):
        raise IolaneError(f"pass '{text}': {key} is {usual} or {other}, not '{value}'")
    return value == usual


class PassedFunctions:
    """Takes functions while it is entered, at the beginning and by `add`; `remove`, or leaving it, gives each
    its driver again.

    Args:
        requests: what the user wrote for each.
        trace: what to trace of those with iolane in between.
        machine: the name of the machine they are for.

    Attributes:
        drivers: the drivers that they had here, which a guest of Debian's kernel has too.
        addresses: the functions that the machine has now.
    """

    def __init__(
        self,
        requests: Sequence[PassRequest],
        trace: TraceRequest | None = None,
        machine: str | None = None,
    ) -> None:
        for one, other in _pairs(requests):
            _refuse_same(one, other)
        self._requests = list(requests)
        self._trace = trace
        self._machine = machine or machine_name()
        self._mediations = [_loaded(each) for each in requests]
        self._owned: dict[str, _Passed] = {}
        self.drivers: list[str] = []
        self.addresses: set[PcieId] = set()

    @property
    def devices(self) -> list[MachineDevice]:
        """What a machine makes of them."""
        return [each.device for each in self._owned.values()]

    @property
    def mediated(self) -> list[ServedDevice]:
        """Those with iolane in between, as reports see them."""
        return [each.served for each in self._owned.values() if each.served is not None]

    @property
    def holders(self) -> list[FunctionHolder]:
        """Tell on the control socket which functions are whose, and what they reach."""
        return [each.holder for each in self._owned.values()]

    def __enter__(self) -> Self:
        try:
            for request, mediation in zip(self._requests, self._mediations, strict=True):
                with INTERRUPTION.held():
                    self._pass(request, mediation)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, request: PassRequest) -> MachineDevice:
        """Take one more function. Nothing is changed where that fails."""
        for other in self._owned.values():
            _refuse_same(request, other.request)
        with INTERRUPTION.held():
            self._pass(request, _loaded(request))
        return self._owned[request.id].device

    def remove(self, identity: str) -> None:
        """Give a function its driver again; the machine has let go of it."""
        with INTERRUPTION.held():
            passed = self._owned.pop(identity, None)
            if passed is not None:
                self.addresses.discard(passed.request.address)
                passed.stack.close()

    def holder(self, identity: str) -> FunctionHolder:
        """What tells of one function."""
        return self._owned[identity].holder

    def served(self, identity: str) -> ServedDevice | None:
        """One function as reports see it, where iolane is in between."""
        return self._owned[identity].served

    def _close(self) -> None:
        for identity in reversed(list(self._owned)):
            self.remove(identity)

    def _pass(self, request: PassRequest, mediation: Mediation | None) -> None:
        with ExitStack() as stack:
            taking = Taking([request.address], whole_group=request.whole_group, force=request.force)
            taken = stack.enter_context(taking).taken
            drivers = [each.driver for each in taken if each.address == request.address and each.driver]
            device: MachineDevice
            served, space = None, None
            if mediation is None:
                device = VfioPciDevice(request.id, request.address, rom=request.rom)
            else:
                socket = stack.enter_context(RunDirectory()).path / f"{request.id}.sock"
                server = MediatedFunctionServer(request.address, request.id, socket, mediation, self._trace)
                stack.enter_context(server)
                device, served, space = server.device, server.served, server.space
            holder = FunctionHolder(request.address, self._machine, space)
            self.drivers += drivers
            self.addresses.add(request.address)
            self._owned[request.id] = _Passed(request, device, served, holder, stack.pop_all())


@dataclass(frozen=True)
class _Passed:
    """One function with all that it takes."""

    request: PassRequest
    device: MachineDevice
    served: ServedDevice | None
    holder: FunctionHolder
    stack: ExitStack


def _loaded(request: PassRequest) -> Mediation | None:
    return None if request.mediation is None else load_mediation(request.mediation)


def _refuse_same(one: PassRequest, other: PassRequest) -> None:
    if one.address == other.address or one.id == other.id:
        raise IolaneError(f"pass '{one.text}' and '{other.text}': the same function, or the same id")


def machine_name() -> str:
    """What the machine of this process is called where functions are told apart by machine."""
    return f"iolane-{os.getpid()}"


def _pairs(requests: Sequence[PassRequest]) -> list[tuple[PassRequest, PassRequest]]:
    return [(one, other) for place, one in enumerate(requests) for other in requests[place + 1 :]]
