"""The inventory as a document: what `iolane host` prints."""

from __future__ import annotations

import msgspec

from iolane.host.class_names import class_name
from iolane.host.function import HostFunction
from iolane.host.verdict import Survey, Verdict


class BarReport(msgspec.Struct, frozen=True):
    """A BAR; index 6 is the expansion ROM."""

    index: int
    kind: str
    start: int
    size: int


class SriovReport(msgspec.Struct, frozen=True):
    """Virtual functions of a physical one."""

    total: int
    enabled: int
    virtual_functions: list[str]


class ReasonReport(msgspec.Struct, frozen=True):
    """What stands in the way, or is worth knowing."""

    kind: str
    severity: str
    text: str
    remedy: str | None


class FunctionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One function with its verdict."""

    address: str
    kind: str
    """Its class in words."""
    vendor: str
    device: str
    class_code: str
    driver: str | None
    iommu_group: int | None
    numa_node: int | None
    power_state: str | None
    bars: list[BarReport]
    msi_vectors: int | None
    msix_vectors: int | None
    reset_methods: list[str]
    sriov: SriovReport | None
    physical_function: str | None
    possible: bool
    """Whether it can be passed through as things are."""
    forcible: bool
    """Whether --force would pass it through."""
    reasons: list[ReasonReport]


class GroupReport(msgspec.Struct, frozen=True):
    """One IOMMU group."""

    number: int
    type: str | None
    members: list[str]


class HostReport(msgspec.Struct, frozen=True):
    """The host."""

    iommu: str | None
    """VT-d, AMD-Vi, other; None without one."""
    interrupt_remapping: bool | None
    functions: list[FunctionReport]
    groups: list[GroupReport]


def report(survey: Survey) -> HostReport:
    """Everything that a survey found, judged."""
    state = survey.iommu
    return HostReport(
        iommu=None if state.kind is None else str(state.kind),
        interrupt_remapping=state.interrupt_remapping,
        functions=[
            function_report(function, survey.verdict(function.address))
            for function in survey.functions.values()
        ],
        groups=[
            GroupReport(group.number, group.type, [*map(str, group.members), *group.others])
            for group in survey.groups.values()
        ],
    )


def function_report(function: HostFunction, verdict: Verdict) -> FunctionReport:
    """One function."""
    sriov = function.sriov
    return FunctionReport(
        address=str(function.address),
        kind=class_name(function.class_code),
        vendor=f"{function.vendor:04x}",
        device=f"{function.device:04x}",
        class_code=f"{function.class_code:06x}",
        driver=function.driver,
        iommu_group=function.iommu_group,
        numa_node=function.numa_node,
        power_state=function.power_state,
        bars=[BarReport(bar.index, bar.kind, bar.start, bar.size) for bar in function.bars],
        msi_vectors=function.msi_vectors,
        msix_vectors=function.msix_vectors,
        reset_methods=list(function.reset_methods),
        sriov=None
        if sriov is None
        else SriovReport(sriov.total, sriov.enabled, [str(each) for each in sriov.virtual_functions]),
        physical_function=None if function.physical_function is None else str(function.physical_function),
        possible=verdict.possible,
        forcible=verdict.forcible,
        reasons=[
            ReasonReport(each.kind, str(each.severity), each.text, each.remedy) for each in verdict.reasons
        ],
    )
