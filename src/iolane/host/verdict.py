"""Whether a function can be passed through, and if not each reason with its remedy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from iolane.errors import IolaneError
from iolane.host.function import HostFunction
from iolane.host.inventory import functions
from iolane.host.iommu import IommuState, read_iommu
from iolane.host.iommu_group import IommuGroup, ReservedKind, groups
from iolane.host.needs import Need, needs
from iolane.host.sysfs import Host
from iolane.host.vfio_driver import DENIED, DENYLIST_OFF, VFIO_PCI, is_available, leaves_dma_alone
from iolane.model.pci.pcie_id import PcieId
from iolane.uapi.pcie import ExpressType

_BRIDGE, _BASE_PERIPHERAL = 0x06, 0x08
_IOMMU = 0x0806
_INTEL = 0x8086
_ENDPOINTS = (ExpressType.ENDPOINT, ExpressType.LEG_END, ExpressType.RC_END)


class Severity(StrEnum):
    """What a reason means."""

    IMPOSSIBLE = "impossible"
    """It can't be done until the remedy is applied."""
    FORCE = "force"
    """The host would lose something, or safety suffers; done only with --force."""
    NOTE = "note"
    """Worth knowing; no obstacle."""


@dataclass(frozen=True)
class Reason:
    """One thing that stands in the way, or is worth knowing."""

    kind: str
    severity: Severity
    text: str
    remedy: str | None = None


@dataclass(frozen=True)
class Verdict:
    """All that was found about one function."""

    address: PcieId
    reasons: tuple[Reason, ...]

    @property
    def possible(self) -> bool:
        """Whether it can be passed through as things are, without force."""
        return all(reason.severity is Severity.NOTE for reason in self.reasons)

    @property
    def forcible(self) -> bool:
        """Whether it can be passed through with --force at least."""
        return all(reason.severity is not Severity.IMPOSSIBLE for reason in self.reasons)

    def require(self, *, force: bool = False) -> None:
        """Raise what stands in the way.

        Raises:
            IolaneError: the function can't be passed through, or only by force.
        """
        wrong = [reason for reason in self.reasons if reason.severity is Severity.IMPOSSIBLE]
        if not wrong and not force:
            wrong = [reason for reason in self.reasons if reason.severity is Severity.FORCE]
        if not wrong:
            return
        ways = [reason.remedy for reason in wrong if reason.remedy]
        if wrong[0].severity is Severity.FORCE:
            ways.append("--force takes it all the same")
        raise IolaneError(
            f"{self.address} can't be passed through: {'; '.join(reason.text for reason in wrong)}",
            remedy="; ".join(dict.fromkeys(ways)) or None,
        )


class Survey:
    """The host at one moment: read once, judged as often as wanted.

    `probe` finds uses of disks that sysfs doesn't show, at the price of opening them.
    """

    def __init__(self, host: Host, *, probe: bool = False) -> None:
        self.host = host
        self.functions = {function.address: function for function in functions(host)}
        self.groups = {group.number: group for group in groups(host)}
        self._probe = probe

    @cached_property
    def iommu(self) -> IommuState:
        """The IOMMUs."""
        return read_iommu(self.host)

    @cached_property
    def needs(self) -> dict[PcieId, list[Need]]:
        """What the host needs of each function."""
        return needs(self.host, list(self.functions.values()), probe=self._probe)

    def group_of(self, address: PcieId) -> IommuGroup | None:
        """The group a function is in."""
        function = self.functions.get(address)
        return (
            None
            if function is None or function.iommu_group is None
            else self.groups.get(function.iommu_group)
        )

    def taken_with(self, address: PcieId) -> tuple[PcieId, ...]:
        """Members of its group that must be taken for VFIO to give it to anybody, itself included."""
        group = self.group_of(address)
        return (
            (address,)
            if group is None
            else tuple(
                member for member in group.members if member == address or not self._is_harmless(member)
            )
        )

    def verdict(self, address: PcieId, *, together: Collection[PcieId] = ()) -> Verdict:
        """Judge one function; `together` are others that will be taken with it.

        Raises:
            IolaneError: there is no such function.
        """
        function = self.functions.get(address)
        if function is None:
            raise IolaneError(f"there is no PCI function {address}", remedy="`iolane host` lists them")
        return Verdict(address, tuple(self._reasons(function, together)))

    def _reasons(self, function: HostFunction, together: Collection[PcieId]) -> Iterator[Reason]:
        if function.is_bridge:
            yield Reason("bridge", Severity.IMPOSSIBLE, "it is a bridge or port", "pass what is behind it")
            return
        if function.class_code >> 8 == _IOMMU:
            yield Reason("iommu", Severity.IMPOSSIBLE, "it is the IOMMU itself")
            return
        yield from _of_kind(function)
        yield from self._of_iommu(function)
        yield from self._of_group(function, together)
        yield from self._of_vfio(function)
        for need in self.needs.get(function.address, []):
            yield Reason(need.kind, Severity.FORCE, need.text, need.remedy)
        yield from _of_sriov(function)
        yield from _of_reset(function)
        yield from _of_power(function)

    def _of_iommu(self, function: HostFunction) -> Iterator[Reason]:
        state = self.iommu
        if state.missing is not None:
            yield Reason("no-iommu", Severity.IMPOSSIBLE, state.missing.text, state.missing.remedy)
            return
        if function.iommu_group is None:
            yield Reason(
                "no-group",
                Severity.IMPOSSIBLE,
                "no IOMMU covers it",
                "look for intel_iommu=igfx_off and the like among the kernel's parameters, "
                "and for a firmware setting that leaves out its bus",
            )
        if state.unsafe is not None:
            yield Reason("unsafe-interrupts", Severity.IMPOSSIBLE, state.unsafe.text, state.unsafe.remedy)

    def _of_group(self, function: HostFunction, together: Collection[PcieId]) -> Iterator[Reason]:
        group = self.group_of(function.address)
        if group is None:
            return
        others = [m for m in group.members if m != function.address and m not in together]
        hindering = [member for member in others if not self._is_harmless(member)]
        if hindering or group.others:
            named = [self._named(member) for member in hindering] + list(group.others)
            remedy = "unbind them, take them along (--whole-group), or use a slot or port with ACS"
            yield Reason(
                "group-shared",
                Severity.IMPOSSIBLE,
                f"its IOMMU group {group.number} is shared with {', '.join(named)}, "
                "in use by drivers of the host",
                "move it to a slot or port with ACS" if group.others else remedy,
            )
        direct = [region for region in group.reserved_regions if region.kind == ReservedKind.DIRECT]
        if direct:
            where = ", ".join(f"{region.start:#x}-{region.end:#x}" for region in direct)
            yield Reason(
                "reserved-memory",
                Severity.IMPOSSIBLE,
                f"the firmware does DMA through it to {where} (RMRR, IVMD), which a guest must not share",
                "turn off in the firmware's setup what uses it (remote management, shared LOM, health "
                "monitoring), or use another function",
            )

    def _is_harmless(self, address: PcieId) -> bool:
        member = self.functions.get(address)
        return member is None or member.is_bridge or leaves_dma_alone(member.driver)

    def _named(self, address: PcieId) -> str:
        member = self.functions[address]
        return f"{address} ({member.driver})"

    def _of_vfio(self, function: HostFunction) -> Iterator[Reason]:
        if not is_available(self.host):
            yield Reason(
                "no-vfio",
                Severity.IMPOSSIBLE,
                "this kernel has no driver vfio-pci",
                "install the kernel's modules, or a kernel with CONFIG_VFIO_PCI",
            )
        denied = function.vendor == _INTEL and function.device in DENIED
        if denied and self.host.read(DENYLIST_OFF) not in ("Y", "1"):
            yield Reason(
                "denied",
                Severity.IMPOSSIBLE,
                "vfio-pci refuses this model: a guest could hang the host through it",
                "if you trust the guest: modprobe vfio-pci disable_denylist=1",
            )


def _of_kind(function: HostFunction) -> Iterator[Reason]:
    if not function.config.answers:
        yield Reason(
            "no-answer",
            Severity.IMPOSSIBLE,
            "it does not answer: its config space reads as all ones",
            "it may be gone, without power or broken; see dmesg",
        )
    elif function.base_class == _BRIDGE or function.base_class == _BASE_PERIPHERAL:
        yield Reason(
            "platform",
            Severity.FORCE,
            "it is part of the platform itself (host or ISA bridge, timer ...)",
        )
    elif function.config.express_type not in (None, *_ENDPOINTS):
        yield Reason("not-endpoint", Severity.IMPOSSIBLE, "it is no endpoint (PCI Express Base, 7.5.3.2)")


def _of_sriov(function: HostFunction) -> Iterator[Reason]:
    if function.sriov is not None and function.sriov.enabled and function.driver != VFIO_PCI:
        yield Reason(
            "virtual-functions",
            Severity.IMPOSSIBLE,
            f"{function.sriov.enabled} virtual functions of it are there, which would vanish",
            f"pass one of them, or remove them: iolane host vfs {function.address} 0",
        )


def _of_reset(function: HostFunction) -> Iterator[Reason]:
    if not function.reset_methods:
        yield Reason(
            "no-reset",
            Severity.FORCE,
            "it can't be reset: what one guest leaves in it, the next one and the host find",
            "a newer kernel may know a reset for it; power-cycle the machine between users",
        )


def _of_power(function: HostFunction) -> Iterator[Reason]:
    if function.power_state == "D3cold":
        yield Reason("asleep", Severity.NOTE, "it sleeps in D3cold; taking it wakes it")
    if function.wakeup:
        yield Reason(
            "wakeup", Severity.NOTE, "it may wake the sleeping host, and can't while it is passed through"
        )
    if function.removable:
        yield Reason("removable", Severity.NOTE, "it can be unplugged at any time (Thunderbolt, USB4)")
