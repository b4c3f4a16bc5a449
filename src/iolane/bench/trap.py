"""`iolane bench trap`: what a trapped access costs beside a bare C server with the same messages.

A small C client drives both over an established session, in turns within one run, so that whatever else
the machine does meets both. The bare server does nothing but receive, look at a register, and send; the
ratio is the price of Python and of the register map.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec

from iolane.bench.document import machine, put_section
from iolane.bench.native import build
from iolane.bench.process import ServerProcess
from iolane.engines.qemu.cache import Cache
from iolane.errors import IolaneError

LIMIT = 1.8
"""What a read through a register map with a hook, and a posted write, may cost at most, of C."""
RUN_TIMEOUT = 300.0
ACCESS_BYTES = 4
PLAIN, HOOKED = 0x0, 0x4


class Case(msgspec.Struct, frozen=True):
    """A kind of access."""

    name: str
    kind: str
    """What the client does: read, write (waits for the reply) or posted."""
    offset: int


CASES = (
    Case("read, no hook", "read", PLAIN),
    Case("read, hook in Python", "read", HOOKED),
    Case("write, hook in Python", "write", HOOKED),
    Case("posted write, no hook", "posted", PLAIN),
    Case("posted write, hook in Python", "posted", HOOKED),
)
LIMITED = ("read, hook in Python", "posted write, no hook", "posted write, hook in Python")


class Figures(msgspec.Struct, frozen=True):
    """One run, in nanoseconds."""

    p50: float
    p99: float
    wall: float
    """Of the whole run for each access; for posted writes up to the reply of a read behind the last."""
    cpu: float
    """Of the server for each access."""


class CaseResult(msgspec.Struct, frozen=True):
    """Medians over the rounds. A ratio is the median of the rounds' ratios, not the ratio of the medians."""

    case: Case
    bare: Figures
    iolane: Figures
    ratio_p50: float
    ratio_wall: float
    ratio_cpu: float

    @property
    def ratio(self) -> float:
        """The one that counts: of the drain for posted writes, else of p50."""
        return self.ratio_wall if self.case.kind == "posted" else self.ratio_p50


class TrapBenchResult(msgspec.Struct, frozen=True):
    """A whole run."""

    command: str
    machine: str
    rounds: int
    accesses: int
    posted: int
    limit: float
    cases: tuple[CaseResult, ...]

    @property
    def over_limit(self) -> tuple[str, ...]:
        """The cases that cost more than they may."""
        return tuple(
            result.case.name
            for result in self.cases
            if result.case.name in LIMITED and result.ratio > self.limit
        )


def run_trap_bench(
    *,
    rounds: int = 7,
    accesses: int = 20_000,
    posted: int = 100_000,
    cache: Cache | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> TrapBenchResult:
    """Measure. Takes about `rounds` times two seconds.

    Args:
        rounds: how often every case is measured on both servers.
        accesses: reads, and writes with a reply, in one run.
        posted: posted writes in one run.
        cache: where the C programs are built.
        report: told of each round.

    Raises:
        IolaneError: no C compiler, or a program failed.
    """
    if min(rounds, accesses, posted) < 1:
        raise IolaneError("rounds, accesses and posted writes are at least 1")
    programs = build(("trap_client", "bare_server"), cache)
    described = machine()
    measured: dict[str, list[tuple[Figures, Figures]]] = {case.name: [] for case in CASES}
    with _servers(programs) as (bare, ours):
        for turn in range(rounds):
            report(f"round {turn + 1} of {rounds}")
            for case in CASES:
                count = posted if case.kind == "posted" else accesses
                pair = tuple(
                    _measure(programs / "trap_client", server, case, count) for server in (bare, ours)
                )
                measured[case.name].append((pair[0], pair[1]))
    return TrapBenchResult(
        command=shlex.join(("iolane", "bench", "trap", "--rounds", str(rounds))),
        machine=described,
        rounds=rounds,
        accesses=accesses,
        posted=posted,
        limit=LIMIT,
        cases=tuple(_summarize(case, measured[case.name]) for case in CASES),
    )


@contextmanager
def _servers(programs: Path) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    with tempfile.TemporaryDirectory(prefix="iolane-bench-") as folder:
        bare = ServerProcess([str(programs / "bare_server")], Path(folder) / "bare")
        try:
            ours = ServerProcess([sys.executable, "-m", "iolane.bench.trap_server"], Path(folder) / "iolane")
            try:
                bare.wait_ready()
                ours.wait_ready()
                yield bare, ours
            finally:
                ours.stop()
        finally:
            bare.stop()


def _measure(client: Path, server: ServerProcess, case: Case, count: int) -> Figures:
    command = [
        str(client),
        str(server.socket),
        "0",
        str(case.offset),
        str(ACCESS_BYTES),
        case.kind,
        str(count),
    ]
    before = server.cpu_ns()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise IolaneError(f"{case.name}: the client did not end within {RUN_TIMEOUT:g} s") from None
    if done.returncode:
        raise IolaneError(f"{case.name}: the client failed: {done.stderr.strip()}")
    made, wall, p50, p99 = (int(word) for word in done.stdout.split())
    with_warm_up = made + made // 10 + 2
    return Figures(p50=p50, p99=p99, wall=wall / made, cpu=(server.cpu_ns() - before) / with_warm_up)


def _summarize(case: Case, pairs: list[tuple[Figures, Figures]]) -> CaseResult:
    def middle(figures: list[Figures]) -> Figures:
        return Figures(
            p50=median(item.p50 for item in figures),
            p99=median(item.p99 for item in figures),
            wall=median(item.wall for item in figures),
            cpu=median(item.cpu for item in figures),
        )

    return CaseResult(
        case=case,
        bare=middle([bare for bare, _ in pairs]),
        iolane=middle([ours for _, ours in pairs]),
        ratio_p50=median(ours.p50 / bare.p50 for bare, ours in pairs),
        ratio_wall=median(ours.wall / bare.wall for bare, ours in pairs),
        ratio_cpu=median(ours.cpu / bare.cpu for bare, ours in pairs),
    )


SECTION = "Traps over vfio-user"


def to_markdown(result: TrapBenchResult) -> str:
    """The section of docs/numbers.md."""
    lines = [
        f"`{result.command}` on {result.machine}.",
        "",
        f"Accesses of {ACCESS_BYTES} bytes through a register map, over an established session, beside a",
        "bare C server with the same messages, in turns: medians of",
        f"{result.rounds} rounds of {result.accesses:,} reads or writes, or {result.posted:,} posted writes",
        "and one read. Microseconds; for posted writes p50 and p99 are those of sending one, and *wall* (the",
        "drain) is what counts. CPU is the server's.",
        "",
        "| access | C p50 | p99 | wall | CPU | iolane p50 | p99 | wall | CPU | ratio | CPU ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for item in result.cases:
        figures = [
            f"{value / 1000:.2f}"
            for side in (item.bare, item.iolane)
            for value in (side.p50, side.p99, side.wall, side.cpu)
        ]
        ratio = f"**{item.ratio:.2f}**" if item.case.name in LIMITED else f"{item.ratio:.2f}"
        lines.append(f"| {item.case.name} | {' | '.join(figures)} | {ratio} | {item.ratio_cpu:.2f} |")
    lines += ["", f"Bold ratios may be at most {result.limit}."]
    return "\n".join(lines)


def write_numbers(result: TrapBenchResult, document: Path) -> None:
    """Put the result into docs/numbers.md."""
    put_section(document, SECTION, to_markdown(result))
