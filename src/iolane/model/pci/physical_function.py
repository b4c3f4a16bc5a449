"""A physical function: one with an SR-IOV capability, and the owner of its virtual functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Self, TypeVar, overload

from iolane.model.pci.capability import Capability
from iolane.model.pci.caps.ari import Ari
from iolane.model.pci.caps.sriov import Layout, SriovCapability
from iolane.model.pci.function import PciDevice, Presentation
from iolane.model.pci.owner import Owner
from iolane.model.pci.virtual_function import VirtualFunction
from iolane.model.region import Region
from iolane.model.state import StateError

V = TypeVar("V", bound=VirtualFunction)

SAVED_AS = "virtual_functions"
MAX_VFS = 0xFFFF


class Sriov(Capability[SriovCapability], Generic[V]):
    """Declare SR-IOV. On a device the attribute is its `VirtualFunctions`.

    Args:
        vf: the class of the VFs, called with `number=` and `name=`.
        total: TotalVFs (9.3.3.6); a VF is made for each, and exists for the guest while it is enabled.
        first_offset, stride: routing ids of the VFs (9.3.3.9, 9.3.3.10). The usual 1 and 1 make them the
            functions behind the PF's; more than 7 of them take ARI.
        function: function number of the PF, for the Function Dependency Link (9.3.3.8).
    """

    def __init__(
        self, vf: type[V], *, total: int, first_offset: int = 1, stride: int = 1, function: int = 0
    ) -> None:
        if not 1 <= total <= MAX_VFS:
            raise TypeError(f"TotalVFs is 1 to {MAX_VFS}, not {total}")
        if first_offset < 1 or stride < 1 or first_offset + (total - 1) * stride > MAX_VFS:
            raise TypeError("First VF Offset and VF Stride are at least 1, and routing ids have 16 bits")
        if not 0 <= function <= 255:
            raise TypeError(f"a function number is 0 to 255, not {function}")
        self.vf = vf
        self.layout = Layout(vf.device_id, total, first_offset, stride, function)

    def bind(self, function: Owner) -> SriovCapability:
        if not isinstance(function, PhysicalFunction):
            raise TypeError(f"{type(function).__name__} declares SR-IOV: derive it from PhysicalFunction")
        made = tuple(
            self.vf(number=number, name=f"{function.name}-vf{number}") for number in range(self.layout.total)
        )
        capability = SriovCapability(self.layout, made[0].built_bars)
        function.vfs = VirtualFunctions(made, capability)
        capability.changed = function.follow_vfs
        return capability

    @overload  # type: ignore[override]  # the attribute is for the VFs, which have the bound capability
    def __get__(self, function: None, owner: type) -> Self: ...
    @overload
    def __get__(self, function: Owner, owner: type) -> VirtualFunctions[V]: ...
    def __get__(self, function: Owner | None, owner: type) -> Self | VirtualFunctions[V]:
        if function is None:
            return self
        assert isinstance(function, PhysicalFunction)
        return function.vfs


class VirtualAddress(NamedTuple):
    """A byte of a VF's BAR."""

    function: VirtualFunction
    region: Region
    offset: int


class VirtualFunctions(Generic[V]):
    """All VFs of a PF, whether they exist for the guest or not, and how a carrier finds those that do.

    Attributes:
        all: by number.
        capability: the PF's SR-IOV capability.
    """

    def __init__(self, functions: tuple[V, ...], capability: SriovCapability) -> None:
        self.all = functions
        self.capability = capability

    @property
    def present(self) -> tuple[V, ...]:
        """The VFs that exist."""
        return self.all[: self.capability.enabled_vfs]

    def function_at(self, routing_offset: int) -> V | None:
        """The VF whose routing id is the PF's plus `routing_offset`, or None where nobody answers."""
        vf = self.capability.vf_at(routing_offset)
        return None if vf is None else self.all[vf]

    def address_of(self, vf: int, bar: int) -> int | None:
        """Where the guest finds a VF's BAR, or None while it decodes nothing."""
        return self.capability.address(vf, bar)

    def find(self, address: int) -> VirtualAddress | None:
        """The VF, region and offset at a guest-physical address, or None where no VF has it."""
        found = self.capability.find(address)
        if found is None:
            return None
        function = self.all[found.vf]
        region = function.regions[found.bar]
        return None if region is None else VirtualAddress(function, region, found.offset)

    def follow(self, loaded: bool) -> None:
        """Make the VFs exist or not, as the capability says."""
        count, memory = self.capability.enabled_vfs, self.capability.memory_enabled
        for vf in self.all:
            present = vf.number < count
            if loaded:
                vf.restore(present, memory)
                continue
            if present and not vf.present:
                vf.appear()
            elif vf.present and not present:
                vf.vanish()
            vf.enable_memory(memory)


class PhysicalFunction(PciDevice):
    """A function that declares `sriov = Sriov(...)`. Its saved state has that of its VFs in it.

    The PF's lock is taken before a VF's, never the other way round.
    """

    ari = Ari()

    vfs: VirtualFunctions[Any]

    def __init__(
        self, *, presentation: Presentation | str = Presentation.AUTO, name: str | None = None
    ) -> None:
        self._made = False
        super().__init__(presentation=presentation, name=name)
        if "vfs" not in vars(self):
            raise TypeError(f"{type(self).__name__} declares no sriov = Sriov(...)")
        self._made = True

    def on_vfs_changed(self) -> None:
        """VFs came or went, or VF MSE or their addresses changed. Called with the PF's lock held."""

    def follow_vfs(self, loaded: bool) -> None:
        """The capability changed."""
        self.vfs.follow(loaded)
        if self._made:
            self._guard("on_vfs_changed", self.on_vfs_changed)

    def statistics(self) -> dict[str, int | float | str]:
        """How many VFs there are."""
        return {"vfs_enabled": self.vfs.capability.enabled_vfs}

    def save_extra(self) -> dict[str, Any]:
        """The documents of the VFs."""
        return {**super().save_extra(), SAVED_AS: [vf.save() for vf in self.vfs.all]}

    def load_extra(self, extra: dict[str, Any]) -> Callable[[], None]:
        """Which VFs exist follows from the capability; then each takes its own document."""
        rest = dict(extra)
        documents = rest.pop(SAVED_AS, None)
        if not isinstance(documents, list) or not all(isinstance(each, bytes) for each in documents):
            raise StateError(f"the saved state of {self.name} has no states of virtual functions")
        if len(documents) != len(self.vfs.all):
            raise StateError(
                f"the saved state has {len(documents)} virtual functions, {self.name} has {len(self.vfs.all)}"
            )
        take = super().load_extra(rest)

        def follow() -> None:
            take()
            for vf, document in zip(self.vfs.all, documents, strict=True):
                vf.load(document)

        return follow

    def pause(self) -> None:
        """Return when the PF and its VFs do nothing."""
        with self.lock:
            super().pause()
            for vf in self.vfs.all:
                vf.pause()

    def resume(self) -> None:
        """Undo one `pause`."""
        with self.lock:
            for vf in self.vfs.all:
                vf.resume()
            super().resume()

    def close(self) -> None:
        """Close the PF and its VFs."""
        super().close()
        for vf in self.vfs.all:
            vf.close()


__all__ = ["PhysicalFunction", "Sriov", "VirtualAddress", "VirtualFunctions"]
