"""`--disk FILE[,lane=...]` and `--net WHAT`: the usual devices, as `--device` would name them."""

from __future__ import annotations

from enum import StrEnum

from iolane.devices.specification import split_commas, suggestion
from iolane.errors import IolaneError


class Lane(StrEnum):
    """What the guest sees of a disk."""

    PARAVIRTUAL = "paravirtual"
    EMULATED = "emulated"


DISKS = {Lane.PARAVIRTUAL: "block", Lane.EMULATED: "nvme"}
"""The device that shows an image in a lane."""


def disk_device(text: str) -> str:
    """The device of `FILE[,lane=paravirtual|emulated][,key=value...]`; raises IolaneError in one line."""
    image, *others = split_commas(text)
    if not image or image.split("=")[0] in ("lane", "image", "read_only", "id"):
        raise IolaneError(
            f"disk '{text}' has no file", remedy="FILE[,lane=paravirtual|emulated][,key=value...]"
        )
    lane, kept = Lane.PARAVIRTUAL, []
    seen = False
    for other in others:
        key, _, value = other.partition("=")
        if key != "lane":
            kept.append(other)
        elif seen:
            raise IolaneError(f"disk '{text}': lane is given twice")
        elif value not in tuple(Lane):
            raise IolaneError(
                f"disk '{text}': an image has no lane '{value}'", remedy=suggestion(value, tuple(Lane))
            )
        else:
            lane, seen = Lane(value), True
    return _device(DISKS[lane], f"image={image}", *kept)


def net_devices(text: str) -> list[str]:
    """The device of `tap=NAME`, `passt` or `none`, each but the last with more keys; at most one."""
    what, *others = split_commas(text)
    if what == "none":
        if others:
            raise IolaneError(f"net '{text}': no network has no {others[0].partition('=')[0]}")
        return []
    if what == "passt":
        return [_device("net", "passt=on", *others)]
    key, _, value = what.partition("=")
    if key == "tap" and value:
        return [_device("net", what, *others)]
    if what in ("tap", "tap="):
        raise IolaneError(f"net '{text}': which tap device?", remedy="write tap=NAME")
    raise IolaneError(f"net '{text}': there is no such network", remedy="write tap=NAME, passt or none")


def _device(*parts: str) -> str:
    return ",".join(part.replace(",", ",,") for part in parts)
