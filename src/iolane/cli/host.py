"""`iolane host`: what the physical machine has, and taking functions of it for guests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.host_dma import dma
from iolane.cli.host_faults import faults
from iolane.cli.output import Json, print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from iolane.host.report import FunctionReport, HostReport

app = typer.Typer(rich_markup_mode=None)
Addresses = Annotated[
    list[str], typer.Argument(metavar="ADDRESS...", help="PCI functions, as 0000:01:00.0 or 01:00.0.")
]
Force = Annotated[bool, typer.Option("--force", help="Also what the host needs, or can't be reset.")]


@app.callback(invoke_without_command=True)
def host(
    context: typer.Context,
    function: Annotated[
        str | None,
        typer.Option("--function", metavar="ADDRESS", help="Only this one, with all that is known."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record", metavar="FILE", help="Write this host to a file, without what identifies it."
        ),
    ] = None,
    recorded: Annotated[
        Path | None,
        typer.Option("--recorded", metavar="FILE", help="Show a recorded host instead of this one."),
    ] = None,
    json: Json = False,
) -> int:
    """List the PCI functions, and say which can be passed through to a guest or why not.

    With --record, a file of the host's sysfs for a bug report: no serial numbers, MAC addresses or UUIDs. As
    root more is seen (MSI-X vectors, capabilities).

    \b
    Examples:
      iolane host
      iolane host --function 01:00.0
      iolane host --json
      iolane host --record myhost.json
      iolane host --recorded myhost.json
    """
    if context.invoked_subcommand is not None:
        return 0
    if record is not None:
        return _record(record, json)
    import tempfile

    from iolane.host.recording import expand, load
    from iolane.host.report import report
    from iolane.host.sysfs import Host
    from iolane.host.verdict import Survey

    with tempfile.TemporaryDirectory(prefix="iolane-host-") as folder:
        found = Host() if recorded is None else expand(load(recorded), Path(folder))
        document = report(Survey(found))
    if function is not None:
        return _print_function(document, function, json)
    if json:
        print_json(document)
    else:
        _print_host(document)
    return 0


def _record(path: Path, json: bool) -> int:
    import platform

    from iolane.host.recording import record, save
    from iolane.host.sysfs import Host

    recording = record(Host(), f"recorded on {platform.machine()}, Linux {platform.release()}")
    save(recording, path)
    if json:
        print_json({"file": str(path), "bytes": path.stat().st_size})
    else:
        print(f"{path} has this host ({path.stat().st_size} bytes); look through it before you give it away")
    return 0


def _print_function(document: HostReport, address: str, json: bool) -> int:
    from iolane.errors import IolaneError
    from iolane.model.pci.pcie_id import PcieId

    wanted = str(PcieId.from_string(address))
    for each in document.functions:
        if each.address == wanted:
            print_json(each) if json else _print_details(each)
            return 0
    raise IolaneError(f"there is no PCI function {wanted}", remedy="`iolane host` lists them")


def _print_host(document: HostReport) -> None:
    remapping = {True: "interrupts remapped", False: "interrupts not remapped", None: "interrupts: unknown"}
    print(f"IOMMU: {document.iommu or 'none'}, {remapping[document.interrupt_remapping]}\n")
    header = ("address", "what", "ids", "driver", "group", "passthrough")
    rows = [
        (
            each.address,
            each.kind,
            f"{each.vendor}:{each.device}",
            each.driver or "-",
            "-" if each.iommu_group is None else each.iommu_group,
            _verdict(each),
        )
        for each in document.functions
    ]
    print_table(header, rows)
    # what is said of many functions is said once
    said: dict[tuple[str, str | None], list[str]] = {}
    for each in document.functions:
        for reason in each.reasons if "bridge" not in each.kind else ():
            said.setdefault((reason.text, reason.remedy), []).append(each.address)
    for (text, remedy), addresses in said.items():
        if len(addresses) > 1:
            where = f"{len(addresses)} functions" if len(addresses) > 4 else ", ".join(addresses)
        else:
            where = addresses[0]
        print()
        print_wrapped(f"{where}: {text}", indent=0)
        if remedy:
            print_wrapped(f"-> {remedy}", indent=2)


def _verdict(function: FunctionReport) -> str:
    if function.possible:
        return "yes" if function.driver != "vfio-pci" else "yes (with vfio-pci now)"
    kinds = [reason.kind for reason in function.reasons if reason.severity != "note"]
    return f"{'with --force' if function.forcible else 'no'}: {', '.join(kinds)}"


def _print_details(function: FunctionReport) -> None:
    ids = f"{function.vendor}:{function.device}"
    print(f"{function.address}  {function.kind} {ids}, class {function.class_code}")
    print(f"  driver {function.driver or 'none'}, power state {function.power_state or 'unknown'}")
    group = "none" if function.iommu_group is None else str(function.iommu_group)
    print(f"  IOMMU group {group}, NUMA node {'-' if function.numa_node is None else function.numa_node}")
    for bar in function.bars:
        name = "ROM" if bar.index == 6 else f"BAR {bar.index}"
        print(f"  {name}: {bar.kind}, {bar.size:#x} bytes at {bar.start:#x}")
    vectors = [("MSI", function.msi_vectors), ("MSI-X", function.msix_vectors)]
    print("  " + ", ".join(f"{name} vectors {'?' if n is None else n}" for name, n in vectors))
    print(f"  reset: {', '.join(function.reset_methods) or 'none'}")
    if function.sriov is not None:
        print(f"  SR-IOV: {function.sriov.enabled} of {function.sriov.total} virtual functions")
        for each in function.sriov.virtual_functions:
            print(f"    {each}")
    if function.physical_function is not None:
        print(f"  virtual function of {function.physical_function}")
    print(f"  can be passed through: {_verdict(function)}")
    for reason in function.reasons:
        print_wrapped(f"{reason.severity}: {reason.text}", indent=4)
        if reason.remedy:
            print_wrapped(f"-> {reason.remedy}", indent=6)


@app.command("take")
def take(
    addresses: Addresses,
    whole_group: Annotated[
        bool, typer.Option("--whole-group", help="Take along what else is in their IOMMU groups.")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> int:
    """Take functions from their drivers and give them to vfio-pci, until `iolane host release`.

    All of them or none. What the host needs (disks in use, the way to the network) is refused. `iolane run
    --pass` does this by itself, and gives back.

    \b
    Examples:
      iolane host take 01:00.0
      iolane host take 00:1f.2 --whole-group
    """
    from iolane.host.taking import take as take_functions
    from iolane.model.pci.pcie_id import PcieId

    wanted = [PcieId.from_string(address) for address in addresses]
    taken = take_functions(wanted, whole_group=whole_group, force=force)
    if json:
        print_json(
            [{"address": str(each.address), "driver": each.driver, "new": each.is_new} for each in taken]
        )
        return 0
    for each in taken:
        print(
            f"{each.address} is with vfio-pci now (it had {each.driver or 'no driver'})"
            if each.is_new
            else f"{each.address} is with vfio-pci already"
        )
    return 0


@app.command("release")
def release(
    addresses: Annotated[
        list[str] | None, typer.Argument(metavar="[ADDRESS...]", help="PCI functions, as 01:00.0.")
    ] = None,
    all_functions: Annotated[bool, typer.Option("--all", help="All that iolane took or made.")] = False,
    json: Json = False,
) -> int:
    """Give functions back to the drivers they had, and remove virtual functions that were made.

    What killed processes left is given back too.

    \b
    Examples:
      iolane host release 01:00.0
      iolane host release --all
    """
    from iolane.errors import IolaneError
    from iolane.host.taking import release as release_functions
    from iolane.model.pci.pcie_id import PcieId

    if bool(addresses) == all_functions:
        raise IolaneError("say which functions, or --all")
    released = release_functions([PcieId.from_string(each) for each in addresses] if addresses else None)
    if json:
        print_json(
            [
                {
                    "address": str(each.address),
                    "driver": each.driver,
                    "virtual_functions_removed": each.virtual_functions,
                }
                for each in released
            ]
        )
        return 0
    for each in released:
        if each.virtual_functions:
            print(f"{each.address} has no virtual functions of iolane's any more")
        else:
            print(f"{each.address} has {each.driver or 'no driver'} again")
    if not released:
        print("nothing was taken")
    return 0


@app.command("vfs")
def vfs(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The physical function.")],
    count: Annotated[int, typer.Argument(metavar="COUNT", min=0, help="How many; 0 removes them.")],
    mac: Annotated[
        list[str] | None, typer.Option("--mac", metavar="MAC", help="For the first, second ... of them.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Make virtual functions of an SR-IOV device, without drivers, ready to be passed through.

    They stay until `iolane host release` of the physical function, or COUNT 0.

    \b
    Examples:
      iolane host vfs 01:00.0 2
      iolane host vfs 01:00.0 2 --mac 52:54:00:00:00:01 --mac 52:54:00:00:00:02
      iolane host vfs 01:00.0 0
    """
    from iolane.host.sriov import make_virtual_functions
    from iolane.host.taking import remove_virtual_functions
    from iolane.model.pci.pcie_id import PcieId

    parent = PcieId.from_string(address)
    if count == 0:
        remove_virtual_functions(parent, force=force)
        made: tuple[PcieId, ...] = ()
    else:
        made = make_virtual_functions(parent, count, macs=mac or ())
    if json:
        print_json({"address": str(parent), "virtual_functions": [str(each) for each in made]})
    elif made:
        print(f"virtual functions of {parent}: {', '.join(map(str, made))}")
    else:
        print(f"{parent} has no virtual functions now")
    return 0


app.command("faults")(faults)
app.command("dma")(dma)
