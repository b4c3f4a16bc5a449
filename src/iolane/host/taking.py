"""Taking functions from the host's drivers for VFIO, and giving them back, also after a crash.

Every change is in the journal before it is made. What a killed process left is undone by the next `take`,
`release` or `recover`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from iolane.errors import IolaneError
from iolane.host.binding import bind_to_vfio, driver_of, give_back
from iolane.host.function import Sriov, read_function
from iolane.host.journal import Entry, Journal, MadeFunctions, Step, TakenFunction, this_process
from iolane.host.sriov import undo_virtual_functions
from iolane.host.sysfs import Host
from iolane.host.verdict import Survey
from iolane.host.vfio_driver import load
from iolane.model.pci.pcie_id import PcieId

_log = logging.getLogger("iolane.host")


@dataclass(frozen=True)
class Taken:
    """A function that is with vfio-pci now."""

    address: PcieId
    driver: str | None
    """The driver it had, which it gets again."""
    is_new: bool
    """False when it had been taken before."""


@dataclass(frozen=True)
class Released:
    """A function that has its driver again, or a physical one that has lost its virtual functions."""

    address: PcieId
    driver: str | None
    virtual_functions: bool = False


def take(
    addresses: Sequence[PcieId],
    *,
    host: Host | None = None,
    journal: Journal | None = None,
    whole_group: bool = False,
    force: bool = False,
    owned: bool = False,
) -> list[Taken]:
    """Bind functions to vfio-pci, all of them or none.

    Args:
        whole_group: take along what else is in their IOMMU groups and stands in the way.
        force: also what the host needs, and what can't be reset.
        owned: until this process ends; otherwise until `release`.

    Raises:
        IolaneError: a function can't be passed through, is taken already, or the kernel refused a step.
    """
    host, journal = host or Host(), journal or Journal()
    with journal.locked():
        _recover(host, journal)
        survey = Survey(host, probe=True)
        wanted = list(dict.fromkeys(addresses))
        if whole_group:
            wanted = list(dict.fromkeys(member for each in wanted for member in survey.taken_with(each)))
        for address in wanted:
            survey.verdict(address, together=wanted).require(force=force)
        before = {address: journal.taken(address) for address in wanted}
        for entry in before.values():
            _refuse_others(entry)
        load(host)
        new = [address for address in wanted if before[address] is None]
        entries = [_entry(host, journal, address, owned) for address in new]
        try:
            for entry in entries:
                journal.put(entry)
                bind_to_vfio(host, entry.pcie_id)
                journal.put(msgspec.structs.replace(entry, step=Step.DONE))
            for address in wanted:  # one taken before may have been bound elsewhere by hand
                bind_to_vfio(host, address)
        except BaseException:
            for entry in reversed(entries):
                _undo_quietly(host, journal, entry)
            raise
        drivers = {entry.pcie_id: entry.driver for entry in [*entries, *before.values()] if entry is not None}
        return [Taken(address, drivers[address], address in new) for address in wanted]


def release(
    addresses: Sequence[PcieId] | None = None, *, host: Host | None = None, journal: Journal | None = None
) -> list[Released]:
    """Give functions back to the drivers they had; None: all, and remove the virtual functions made.

    For a physical function whose virtual ones were made by iolane these are removed, taken or not.

    Raises:
        IolaneError: one isn't taken, or is in use; the others are given back all the same.
    """
    host, journal = host or Host(), journal or Journal()
    with journal.locked():
        released = _recover(host, journal)
        entries = journal.entries()
        if addresses is not None:
            entries = list(_chosen(host, entries, addresses, {each.address for each in released}))
        problems: list[IolaneError] = []
        for entry in entries:
            try:
                _refuse_others(entry)
                released.append(_undo(host, journal, entry))
            except IolaneError as error:
                problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise IolaneError("not all could be given back: " + "; ".join(str(each) for each in problems))
    return released


def recover(*, host: Host | None = None, journal: Journal | None = None) -> list[Released]:
    """Undo what killed processes left. `take` and `release` do it by themselves."""
    host, journal = host or Host(), journal or Journal()
    with journal.locked():
        return _recover(host, journal)


def remove_virtual_functions(
    address: PcieId, *, force: bool = False, host: Host | None = None, journal: Journal | None = None
) -> list[Released]:
    """Remove all virtual functions of a physical one, whoever made them; what is taken is given back first.

    Raises:
        IolaneError: one is in use, or the host needs one (unless `force`).
    """
    host, journal = host or Host(), journal or Journal()
    with journal.locked():
        _recover(host, journal)
        survey = Survey(host, probe=True)
        function = survey.functions.get(address)
        if function is None or function.sriov is None or not function.sriov.virtual_functions:
            raise IolaneError(f"{address} has no virtual functions")
        needed = [need for each in function.sriov.virtual_functions for need in survey.needs.get(each, [])]
        if needed and not force:
            texts = "; ".join(need.text for need in needed)
            raise IolaneError(f"virtual functions of {address} are needed: {texts}", remedy=needed[0].remedy)
        chosen = list(_chosen(host, journal.entries(), [address], {address}))
        if journal.made(address) is None:
            chosen = [each for each in journal.entries() if each.pcie_id in function.sriov.virtual_functions]
            chosen.append(_made_by_others(journal, address, function.sriov))
        for entry in chosen:
            _refuse_others(entry)
        return [_undo(host, journal, entry) for entry in chosen]


class Taking:
    """Functions that are taken as long as the block runs, and given back after it, or after a crash."""

    def __init__(
        self,
        addresses: Sequence[PcieId],
        *,
        host: Host | None = None,
        journal: Journal | None = None,
        whole_group: bool = False,
        force: bool = False,
    ) -> None:
        self._addresses, self._whole_group, self._force = addresses, whole_group, force
        self._host, self._journal = host or Host(), journal or Journal()
        self.taken: list[Taken] = []

    def __enter__(self) -> Self:
        self.taken = take(
            self._addresses,
            host=self._host,
            journal=self._journal,
            whole_group=self._whole_group,
            force=self._force,
            owned=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give back what was not taken before; again does nothing."""
        new = [each.address for each in self.taken if each.is_new]
        self.taken = []
        if new:
            release(new, host=self._host, journal=self._journal)


def _entry(host: Host, journal: Journal, address: PcieId, owned: bool) -> TakenFunction:
    function = read_function(host, address)
    return TakenFunction(
        address=str(address),
        step=Step.BEGUN,
        owner=this_process() if owned else None,
        boot=journal.boot,
        driver=None if function is None else function.driver,
        driver_override=None if function is None else function.driver_override,
    )


def _made_by_others(journal: Journal, address: PcieId, sriov: Sriov) -> MadeFunctions:
    """An entry that undoes what iolane did not do."""
    return MadeFunctions(
        address=str(address),
        step=Step.UNDOING,
        owner=None,
        boot=journal.boot,
        count=sriov.enabled,
        before=0,
        autoprobe=sriov.autoprobe,
    )


def _refuse_others(entry: Entry | None) -> None:
    if entry is not None and entry.owner is not None and not entry.owner.is_self:
        raise IolaneError(f"{entry.address} is taken by {entry.owner}", remedy="end it first")


def _chosen(
    host: Host, entries: list[Entry], addresses: Sequence[PcieId], just_released: set[PcieId]
) -> Iterator[Entry]:
    """The entries of some functions; those of a physical one after its virtual ones'."""
    known = {entry.pcie_id for entry in entries}
    for address in addresses:
        if address not in known and address not in just_released:
            given = ", ".join(sorted({entry.address for entry in entries}))
            raise IolaneError(
                f"{address} is not taken by iolane", remedy=f"taken: {given}" if given else "nothing is taken"
            )
    wanted = set(addresses)
    for entry in entries:
        if isinstance(entry, MadeFunctions) and entry.pcie_id in wanted:
            function = read_function(host, entry.pcie_id)
            if function is not None and function.sriov is not None:
                wanted.update(function.sriov.virtual_functions)
    yield from (entry for entry in entries if entry.pcie_id in wanted)


def _recover(host: Host, journal: Journal) -> list[Released]:
    released = []
    for entry in journal.entries():
        if entry.is_left:
            try:
                released.append(_undo(host, journal, entry))
            except IolaneError as error:  # of something that nobody asked for now; `release` says it again
                _log.warning("what a killed process took is not given back yet: %s", error)
    return released


def _undo(host: Host, journal: Journal, entry: Entry) -> Released:
    if isinstance(entry, MadeFunctions):
        for other in journal.entries():
            function = read_function(host, other.pcie_id)
            if function is not None and function.physical_function == entry.pcie_id:
                raise IolaneError(f"{other.address}, a virtual function of {entry.address}, is still taken")
    journal.put(msgspec.structs.replace(entry, step=Step.UNDOING))
    if isinstance(entry, MadeFunctions):
        undo_virtual_functions(host, entry)
    else:
        give_back(host, entry)
    journal.remove(entry)
    made = isinstance(entry, MadeFunctions)
    return Released(entry.pcie_id, driver_of(host, entry.pcie_id), virtual_functions=made)


def _undo_quietly(host: Host, journal: Journal, entry: Entry) -> None:
    """After a failure, whose error is told; what can't be undone now stays in the journal."""
    with contextlib.suppress(IolaneError):
        _undo(host, journal, entry)
