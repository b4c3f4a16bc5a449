"""What iolane keeps in a domain's <metadata>: which of its devices iolane serves, and where. It is part of
the domain, so it is there wherever the domain is, after a migration too.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

import msgspec

from iolane.errors import IolaneError

NAMESPACE = "urn:iolane:devices:1"
KEY = "iolane"
"""The prefix that libvirt writes."""

ET.register_namespace(KEY, NAMESPACE)


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """One device that iolane serves for a domain."""

    id: str
    device: str
    """As its user wrote it: what `iolane serve` is told."""
    carrier: str
    socket: str
    owner: str = ""
    """The user and group that QEMU runs as, `64055:64055`; the socket is given to them. Empty: root's."""


def attached_element(devices: Sequence[Attached]) -> ET.Element:
    """The element in <metadata>."""
    return _element(devices, f"{{{NAMESPACE}}}")


def attached_text(devices: Sequence[Attached]) -> str:
    """As virDomainSetMetadata takes it: without the namespace, which is told beside it."""
    return ET.tostring(_element(devices, ""), encoding="unicode")


def _element(devices: Sequence[Attached], namespace: str) -> ET.Element:
    root = ET.Element(f"{namespace}devices")
    for device in devices:
        fields = {name: value for name, value in msgspec.structs.asdict(device).items() if value}
        ET.SubElement(root, f"{namespace}device", fields)
    return root


def read_attached(document: str) -> list[Attached]:
    """The devices named in a domain's XML, or in its metadata alone. Raises IolaneError for what can't be."""
    try:
        root = ET.fromstring(document)
        found = list(root.iter(f"{{{NAMESPACE}}}device"))
        return [msgspec.convert(dict(each.attrib), Attached) for each in found]
    except (ET.ParseError, msgspec.ValidationError) as error:
        raise IolaneError(
            f"iolane's metadata in the domain can't be read: {error}",
            remedy=f"virsh metadata DOMAIN {NAMESPACE} shows it",
        ) from error
