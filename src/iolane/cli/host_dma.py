"""`iolane host dma`: what a function can reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.output import Json, print_json, print_table, print_wrapped, quantity

if TYPE_CHECKING:
    from iolane.host.dma import Reach
    from iolane.host.holding import HeldFunction
    from iolane.model.pci.pcie_id import PcieId


def dma(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The PCI function, as 01:00.0.")],
    json: Json = False,
) -> int:
    """Show what a function can reach by DMA, and what can't be known about it.

    If an iolane process holds it, that process tells its maps.

    \b
    Examples:
      iolane host dma 01:00.0
      iolane host dma 01:00.0 --json
    """
    from iolane.host.dma import reach
    from iolane.host.sysfs import Host
    from iolane.model.pci.pcie_id import PcieId

    found = reach(Host(), PcieId.from_string(address), _held_by)
    if json:
        print_json(found)
    else:
        _print(found)
    return 0


def _print(found: Reach) -> None:
    print(f"{found.function}  driver {found.driver or 'none'}")
    group = (
        "no IOMMU group"
        if found.group is None
        else f"IOMMU group {found.group} of {found.iommu or 'the IOMMU'}"
    )
    print(f"  {group}; domain {found.domain}")
    if found.group_members:
        print_wrapped(f"shares what it reaches with {', '.join(found.group_members)}", indent=2)
    width = "of unknown width" if found.width is None else f"of {found.width} bits"
    mask = "" if found.mask_bits is None else f"; its driver allows {found.mask_bits}"
    print(f"  addresses {width}{mask}")
    for region in found.reserved:
        print(f"  {region.start:#018x}-{region.last:#018x}  reserved: {region.kind}")
    for window in found.windows or ():
        size = quantity(window.last - window.start + 1)
        print(f"  {window.start:#018x}-{window.last:#018x}  may be mapped ({size})")
    print_wrapped(f"it reaches {found.now}", indent=2)
    if found.maps:
        rows = [(f"{each.iova:#x}", f"{each.size:#x}", each.permission, each.what) for each in found.maps]
        print_table(("IOVA", "bytes", "access", "memory"), rows, numeric=("IOVA", "bytes"))


def _held_by(address: PcieId) -> HeldFunction | None:
    from iolane.carriers.control import held_functions

    return next((held for held in held_functions() if held.function == str(address)), None)
