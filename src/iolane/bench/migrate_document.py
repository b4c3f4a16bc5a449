"""The results of `iolane bench migrate` as a table and as a section of a document."""

from __future__ import annotations

from pathlib import Path

from iolane.bench.document import put_section
from iolane.bench.migrate import OURS, READS, Figures, MigrateBenchResult, in_words
from iolane.bench.wire import INTERVAL

SECTION = "Live migration"
LAZY_SECTION = "Live migration into memory that comes by and by"

HEADER = (
    "guest",
    "devices",
    "total s",
    "still ms",
    "QEMU's ms",
    "silent ms",
    "MiB/s",
    "passes",
    "total",
    "still",
)


def rows(result: MigrateBenchResult) -> list[tuple[str, ...]]:
    """The table's cells; ratios stand with iolane's."""
    found = []
    for item in result.cases:
        for kind, figures in item.figures.items():
            ratios = (in_words(item.totals), in_words(item.downtimes)) if kind == OURS else ("", "")
            found.append((item.case.name, kind, *_cells(figures), *ratios))
    empty = ("",) * (len(HEADER) - 4)
    return [*found, ("all of them", OURS, *empty, in_words(result.totals), in_words(result.downtimes))]


def _cells(figures: Figures) -> tuple[str, ...]:
    times = (figures.downtime, figures.qemu_downtime, figures.silence)
    return (
        f"{figures.total:.2f}",
        *(f"{value * 1000:.0f}" for value in times),
        f"{figures.bandwidth / (1 << 20):.0f}",
        f"{figures.passes:g}",
    )


def to_markdown(result: MigrateBenchResult) -> str:
    """The section's body."""
    lines = [
        f"`{result.command}` on {result.machine}.",
        "",
        f"A guest under QEMU {result.qemu} moves to another QEMU of this machine and back: with iolane's",
        "disk and network by vhost-user, each server a process, and with QEMU's virtio-blk and virtio-net on",
        f"an image of the same content and the same network, in turns: medians of {result.rounds} rounds.",
        "Half of its memory is full, so much of that is changed a second; it reads",
        f"{READS} blocks a second and answers {1 / INTERVAL:.0f} echo requests.",
        _of_memory(result.lazy),
        "Each side has half of the processors, as two hosts share none.",
        "*Still* is from when QEMU begins to stop it until it runs at the destination; beside it what",
        "QEMU counts of that; *silent* is the longest time without an answer on the network, whose switch",
        "follows the guest. Ratios are medians of the rounds' ratios, iolane's to QEMU's; they may be at",
        "most 1.1. In brackets: where they lie with 95 % confidence. *All of them*: of all guests.",
        "",
        f"| {' | '.join(HEADER)} |",
        f"|{'---|' * len(HEADER)}",
        *(f"| {' | '.join(row)} |" for row in rows(result)),
    ]
    if result.left_out:
        lines += ["", f"Left out for want of memory: {'; '.join(case.name for case in result.left_out)}."]
    if result.missed:
        lines += ["", "Targets that are missed:", *(f"- {line}" for line in result.missed)]
    return "\n".join(lines)


def _of_memory(lazy: bool) -> str:
    if lazy:
        return "The destination gets its memory from the host while the guest comes."
    return "Both sides have all of their memory before a move begins."


def write_numbers(result: MigrateBenchResult, path: Path) -> None:
    """Put the section into the document."""
    put_section(path, LAZY_SECTION if result.lazy else SECTION, to_markdown(result))
