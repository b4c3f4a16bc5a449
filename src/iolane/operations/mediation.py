"""`--pass ADDRESS,mediate=FILE.py:MAP`: iolane between the guest and the function.

MAP names the registers of one BAR. What does not trap is mapped by the guest as it would be without a
mediator: by default nothing traps, with `--trace` what is traced, and everything in MAP where the session is
recorded, or where FILE has a function `mediate(mediator)`, which is called before the guest connects and puts
hooks in.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from iolane.carriers.control import check_socket_path
from iolane.carriers.vfio import open_function
from iolane.carriers.vfio.address_space import DmaAddressSpace
from iolane.carriers.vfio.mediator import Mediator
from iolane.devices.nvme.recorded_memory import NvmeMemory
from iolane.devices.nvme.registers import NvmeRegisters
from iolane.devices.source import load_file
from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.errors import IolaneError
from iolane.model.pci import PcieId
from iolane.model.registers import RegisterMap
from iolane.model.trace.recording import RecordedMemory, Recorder
from iolane.operations.served_device import ServedDevice
from iolane.operations.tracing import TraceRequest

HOOKS = "mediate"
"""The function in the user's file that puts hooks in."""
MEMORY = "RecordedMemory"
"""The class in the user's file that says which memory is recorded."""
KNOWN_MEMORY: dict[type[RegisterMap], Callable[[], RecordedMemory]] = {NvmeRegisters: NvmeMemory}
MESSAGE_TIMEOUT_MS = 120_000
"""QEMU waits 5 s for an answer; pinning a guest's memory can take longer, and a hook may delay."""
ALL = "*"
OFF = "off"


class MediationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """How a function is mediated, as the user writes it."""

    registers: str
    """`FILE.py:MAP` or `package.module:MAP`."""
    bar: int = 0
    """The BAR that MAP is for."""
    trap: str | None = None
    """Names of registers that must trap; None: see above."""
    record: str | None = None
    """The file that the session is recorded in."""


class Mediation(msgspec.Struct, frozen=True):
    """The same, with what it names."""

    request: MediationRequest
    registers: type[RegisterMap]
    hooks: Callable[[Mediator], object] | None = None
    memory: RecordedMemory | None = None

    def trap(self, trace: TraceRequest | None) -> str | None:
        """The registers that trap."""
        if self.request.trap is not None:
            return self.request.trap
        if self.hooks is not None or self.request.record is not None:
            return ALL
        return None if trace is None or trace.level == OFF else trace.registers or ALL


def load_mediation(request: MediationRequest) -> Mediation:
    """Find the map and the hooks. Raises IolaneError in one line."""
    where, colon, name = request.registers.rpartition(":")
    if not colon:
        raise IolaneError(f"mediate={request.registers}: no register map is named", remedy="FILE.py:MAP")
    found: Any = getattr(_module(where), name, None)
    if not (isinstance(found, type) and issubclass(found, RegisterMap)):
        raise IolaneError(f"mediate={request.registers}: {where} has no register map '{name}'")
    module = _module(where)
    return Mediation(request, found, getattr(module, HOOKS, None), recorded_memory(module, found))


def _module(where: str) -> Any:
    if where.endswith(".py"):
        return load_file(Path(where))
    try:
        return importlib.import_module(where)
    except ImportError as error:
        raise IolaneError(f"mediate={where}: {error}", remedy="FILE.py:MAP or package.module:MAP") from error


def recorded_memory(module: Any, registers: type[RegisterMap]) -> RecordedMemory | None:
    """Says which memory of a session is recorded: an instance of MEMORY of the map's module, or of what
    iolane has for the map; None where there is none.
    """
    make = getattr(module, MEMORY, None)
    if make is None:
        make = next((make for kind, make in KNOWN_MEMORY.items() if issubclass(registers, kind)), None)
    if make is None:
        return None
    memory: RecordedMemory = make()
    return memory


class MediatedFunctionServer:
    """Holds a function that is taken, and serves it to a guest, while it is entered.

    Attributes:
        mediator: what is in between.
        served: as the control socket and reports see it.
        device: what a machine makes of it.
        space: what its DMA reaches.
    """

    mediator: Mediator
    served: ServedDevice
    device: VfioUserDevice
    space: DmaAddressSpace

    def __init__(
        self, address: PcieId, name: str, socket: Path, mediation: Mediation, trace: TraceRequest | None
    ) -> None:
        self._address = address
        self._name = name
        self._socket = check_socket_path(socket)
        self._mediation = mediation
        self._trace = trace
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            function = stack.enter_context(open_function(self._address))
            mediation = self._mediation
            recorder = None
            if mediation.request.record is not None:
                recorder = stack.enter_context(Recorder(mediation.request.record, memory=mediation.memory))
            mediator = Mediator(
                function,
                self._socket,
                maps={mediation.request.bar: mediation.registers},
                trap=mediation.trap(self._trace),
                name=self._name,
                recorder=recorder,
            )
            if mediation.hooks is not None:
                mediation.hooks(mediator)
            stack.enter_context(mediator)
            assert mediator.server is not None
            self.mediator = mediator
            self.space = function.space
            self.served = ServedDevice(
                self._name, mediator.device, mediator.server, self._socket, mediator.tracer
            )
            if self._trace is not None:
                stack.callback(self.served.trace_to_stderr(self._trace))
            self.device = VfioUserDevice(
                self._name, self._socket, physical=True, message_timeout_ms=MESSAGE_TIMEOUT_MS
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
