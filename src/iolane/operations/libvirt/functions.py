"""Functions of this host for domains: iolane's verdict before libvirt takes them."""

from __future__ import annotations

from iolane.host.sysfs import Host
from iolane.host.verdict import Severity, Survey
from iolane.model.pci import PcieId


def check_function(address: PcieId, *, force: bool = False, host: Host | None = None) -> list[str]:
    """Refuse a function that can't be passed through; what is worth knowing of one that can.

    Raises:
        IolaneError: each reason with its remedy.
    """
    survey = Survey(host or Host(), probe=True)
    verdict = survey.verdict(address)  # libvirt takes this one alone
    verdict.require(force=force)
    return [reason.text for reason in verdict.reasons if reason.severity is Severity.NOTE]
