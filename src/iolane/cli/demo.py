"""`iolane demo`: a Linux guest at work with a disk, in two lanes, and a serial port written in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.output import Json, print_json, print_table, progress, quantity

if TYPE_CHECKING:
    from iolane.operations.demo import DemoResult

LARGEST_MIB = 128


def payload_bytes(text: str) -> int:
    """`64M` as bytes; what the guest's memory has room for, twice."""
    number, unit = text[:-1], text[-1:].upper()
    if unit != "M" or not number.isdecimal() or not 1 <= int(number) <= LARGEST_MIB:
        raise typer.BadParameter(f"'{text}' is not a size from 1M to {LARGEST_MIB}M")
    return int(number) << 20


def demo(
    payload: Annotated[
        str, typer.Option("--payload", metavar="SIZE", help="Bytes that the disk carries each way.")
    ] = "64M",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing about progress.")] = False,
    json: Json = False,
) -> int:
    """Boot a stock Debian kernel whose disk and serial port are Python classes, and check their work.

    One image is shown to the guest as a virtio disk (paravirtual lane), then as an NVMe disk (emulated lane).
    The guest reads what was written here or through the other lane, and writes; it talks through the serial
    port. Checksums are computed in the guest and here. The exit code is 1 when anything disagrees.

    \b
    Examples:
      iolane demo
      iolane demo --payload 128M
      iolane demo --json
    """
    from iolane.operations.demo import run_demo

    result = run_demo((lambda line: None) if quiet else progress, payload=payload_bytes(payload))
    if json:
        print_json(result)
    else:
        _print(result)
    return 0 if result.ok else 1


def _print(result: DemoResult) -> None:
    print(f"\n{result.kernel}, up after {result.boot_seconds:.1f} s on {result.engine}\n")
    header = ("device", "lane", "carrier", "driver", "guest writes", "guest reads", "latency", "of a")
    rows = [
        (
            f"{device.name} ({device.type})",
            device.lane,
            device.carrier,
            device.driver or "none",
            f"{quantity(device.throughput.to_device)}/s",
            f"{quantity(device.throughput.from_device)}/s",
            f"{device.throughput.latency * 1e6:.0f} us",
            device.throughput.latency_of,
        )
        for device in result.devices
    ]
    print_table(header, rows, numeric=header[4:7])
    print("\nwhat it took; and, behind the bar, for each operation of the latency:\n")
    columns = ("device", "traps", "kicks", "interrupts", "DMA", "|", "traps", "kicks", "interrupts")
    costs = [
        (
            device.name,
            device.traps,
            device.kicks,
            f"{device.interrupts} {device.interrupt_mode}",
            quantity(device.dma_bytes),
            "|",
            f"{device.each.traps:.2f}",
            f"{device.each.kicks:.2f}",
            f"{device.each.interrupts:.2f}",
        )
        for device in result.devices
    ]
    print_table(columns, costs, numeric=columns[1:])
    print()
    for check in result.checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.what}: {check.detail}")
    print(f"\n{'everything agrees' if result.ok else 'SOMETHING DISAGREES'}, after {result.seconds:.0f} s")
