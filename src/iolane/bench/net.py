"""`iolane bench net`: packets through a network device by vhost-user, beside DPDK's testpmd.

One compiled front end, which polls, loads both in turns within one run. Behind the rings is as little as can
be: packets are dropped, made of nothing, or given back. So what is measured is the data plane.
"""

from __future__ import annotations

import os
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
from iolane.bench.dpdk import obtain_dpdk
from iolane.bench.native import build
from iolane.bench.process import ServerProcess
from iolane.bench.testpmd import Testpmd
from iolane.engines.qemu.cache import Cache
from iolane.errors import IolaneError

CLIENT = "net_client"
SIZES = (64, 1500)
DEPTH = 128
PLANE = "compiled"
EXTRA_SECONDS = 60.0


def processors() -> tuple[int, int]:
    """The front end's, and that of each server: two if there are two."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


class Way(msgspec.Struct, frozen=True):
    """Which way packets go, by the names of the front end, of our server and of testpmd."""

    name: str
    client: str
    network: str
    forward: str


SEND = Way("guest to host", "send", "sink", "rxonly")
RECEIVE = Way("host to guest", "receive", "source", "txonly")
ECHO = Way("there and back", "echo", "echo", "io")


class Case(msgspec.Struct, frozen=True):
    """What is measured."""

    way: Way
    length: int
    """Of a frame, without its checksum."""
    depth: int
    """Packets that are on the way at once."""

    @property
    def name(self) -> str:
        """In words."""
        depth = f", {self.depth} at once" if self.way == ECHO else ""
        return f"{self.way.name}, {self.length} bytes{depth}"


CASES = (
    *(Case(way, length, DEPTH) for way in (SEND, RECEIVE, ECHO) for length in SIZES),
    *(Case(ECHO, length, 1) for length in SIZES),
)


class Figures(msgspec.Struct, frozen=True):
    """One run."""

    rate: float
    """Packets a second; there and back is one."""
    cpu: float
    """Nanoseconds of the server's for each."""
    p50: float
    """Nanoseconds there and back; 0 where packets go one way."""
    p99: float
    lost: float
    """Of those that were to come back."""


class CaseResult(msgspec.Struct, frozen=True):
    """Medians over the rounds. A ratio is the median of the rounds' ratios, not the ratio of the medians."""

    case: Case
    iolane: Figures
    testpmd: Figures | None
    ratio_rate: float | None
    """Of packets a second, to testpmd's: 1 would be as fast."""
    ratio_cpu: float | None
    """Of processor time for a packet, to testpmd's."""


class NetBenchResult(msgspec.Struct, frozen=True):
    """A whole run."""

    command: str
    machine: str
    plane: str
    dpdk: str | None
    """The version of testpmd; None: it could not be had."""
    without: str
    """Why it could not."""
    rounds: int
    milliseconds: int
    cases: tuple[CaseResult, ...]


def run_net_bench(
    *,
    rounds: int = 5,
    milliseconds: int = 1000,
    cases: tuple[Case, ...] = CASES,
    cache: Cache | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> NetBenchResult:
    """Measure. Takes about three times `rounds` times `milliseconds` for each case.

    Args:
        rounds: how often every case is measured on both servers.
        milliseconds: of one run.
        cache: where testpmd is, and the C program is built.
        report: told of each case.

    Raises:
        IolaneError: no C compiler, or a program failed.
    """
    if min(rounds, milliseconds) < 1:
        raise IolaneError("rounds and milliseconds are at least 1")
    client = build((CLIENT,), cache) / CLIENT
    described = machine()
    results = []
    with tempfile.TemporaryDirectory(prefix="iolane-bench-") as folder, _peer(Path(folder), cache) as peer:
        if isinstance(peer, str):
            report(f"without testpmd: {peer}")
        for number, case in enumerate(cases):
            report(f"{number + 1} of {len(cases)}: {case.name}")
            run = _Run(client, Path(folder), case, milliseconds)
            found = run.alone(rounds) if isinstance(peer, str) else run.beside(peer, rounds)
            results.append(_summarize(case, *found))
    return NetBenchResult(
        command=shlex.join(
            ("iolane", "bench", "net", "--rounds", str(rounds), "--milliseconds", str(milliseconds))
        ),
        machine=described,
        plane=PLANE,
        dpdk=None if isinstance(peer, str) else peer.version,
        without=peer if isinstance(peer, str) else "",
        rounds=rounds,
        milliseconds=milliseconds,
        cases=tuple(results),
    )


class _Peer:
    """A testpmd whose port is a back end. Its busy thread rests while it is not its turn."""

    def __init__(self, testpmd: Testpmd, socket: Path, version: str) -> None:
        self.socket = socket
        self.version = version
        self.testpmd = testpmd

    @contextmanager
    def forwarding(self, case: Case) -> Iterator[None]:
        self.testpmd.run(f"set fwd {case.way.forward}")
        self.testpmd.run(f"set txpkts {case.length}")
        self.testpmd.run("start")
        try:
            yield
        finally:
            self.testpmd.run("stop")


@contextmanager
def _peer(folder: Path, cache: Cache | None) -> Iterator[_Peer | str]:
    """testpmd, or why there is none."""
    try:
        dpdk = obtain_dpdk(cache)
    except IolaneError as error:
        yield str(error)
        return
    socket = folder / "testpmd"
    options = ("--port-topology=loop", "--disable-link-check")
    with Testpmd(dpdk, f"net_vhost0,iface={socket},queues=1", *options, cpus=processors()) as testpmd:
        yield _Peer(testpmd, socket, dpdk.version)
        testpmd.quit()


class _Run:
    """The rounds of one case."""

    def __init__(self, client: Path, folder: Path, case: Case, milliseconds: int) -> None:
        self._case = case
        self._client = client
        self._socket = folder / "iolane"
        self._milliseconds = milliseconds

    def beside(self, peer: _Peer, rounds: int) -> tuple[list[Figures], list[Figures]]:
        """Both in turns."""
        ours, theirs = [], []
        with self._server() as server:
            for _ in range(rounds):
                with peer.forwarding(self._case):
                    theirs.append(self._measure(peer.socket, peer.testpmd.cpu_ns))
                ours.append(self._measure(server.socket, server.cpu_ns))
        return ours, theirs

    def alone(self, rounds: int) -> tuple[list[Figures], list[Figures]]:
        """Ours only."""
        with self._server() as server:
            return [self._measure(server.socket, server.cpu_ns) for _ in range(rounds)], []

    @contextmanager
    def _server(self) -> Iterator[ServerProcess]:
        case = self._case
        command = [sys.executable, "-m", "iolane.bench.net_server", case.way.network, str(case.length)]
        server = ServerProcess(command, self._socket, environment={"IOLANE_DATAPLANE": PLANE})
        try:
            os.sched_setaffinity(server.process.pid, {processors()[1]})
            server.wait_ready()
            yield server
        finally:
            server.stop()
            self._socket.unlink(missing_ok=True)

    def _measure(self, socket: Path, cpu_ns: Callable[[], int]) -> Figures:
        case = self._case
        words = (case.way.client, case.length, case.depth, self._milliseconds, processors()[0])
        command = [str(self._client), str(socket), *map(str, words)]
        before = cpu_ns()
        timeout = 2 * self._milliseconds / 1000 + EXTRA_SECONDS
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise IolaneError(f"{case.name}: the front end did not end within {timeout:g} s") from None
        if done.returncode:
            raise IolaneError(f"{case.name}: the front end failed at {socket.name}: {done.stderr.strip()}")
        packets, wall, p50, p99, total, lost = (int(word) for word in done.stdout.split())
        cpu = (cpu_ns() - before) / total
        return Figures(packets * 1e9 / wall, cpu, p50, p99, lost / (total + lost))


def _summarize(case: Case, ours: list[Figures], theirs: list[Figures]) -> CaseResult:
    pairs = list(zip(ours, theirs, strict=False))
    return CaseResult(
        case=case,
        iolane=_middle(ours),
        testpmd=_middle(theirs) if theirs else None,
        ratio_rate=median(our.rate / their.rate for our, their in pairs) if pairs else None,
        ratio_cpu=median(our.cpu / their.cpu for our, their in pairs) if pairs else None,
    )


def _middle(figures: list[Figures]) -> Figures:
    return Figures(
        *(median(getattr(item, name) for item in figures) for name in ("rate", "cpu", "p50", "p99", "lost"))
    )


SECTION = "Packets over vhost-user"
COLUMNS = ("packets/s", "CPU", "p50", "p99")


def cells(figures: Figures | None) -> list[str]:
    """Figures as they are shown: microseconds, and packets a second."""
    if figures is None:
        return ["-"] * len(COLUMNS)
    ways = [f"{value / 1000:.1f}" if value else "-" for value in (figures.p50, figures.p99)]
    return [f"{figures.rate:,.0f}", f"{figures.cpu / 1000:.3f}", *ways]


def losses(result: NetBenchResult) -> str:
    """Of packets that were to come back, in words."""
    sides = [(item.case.name, side, figures) for item in result.cases for side, figures in _sides(item)]
    lost = [f"{side}, {name}: {figures.lost:.2%}" for name, side, figures in sides if figures.lost]
    return f"Lost on the way: {'; '.join(lost)}." if lost else "No packet that was to come back was lost."


def _sides(item: CaseResult) -> list[tuple[str, Figures]]:
    peer = [] if item.testpmd is None else [("testpmd", item.testpmd)]
    return [*peer, ("iolane", item.iolane)]


def ratios(result: CaseResult) -> list[str]:
    """Ours to testpmd's: rate and processor time."""
    return ["-" if value is None else _ratio(value) for value in (result.ratio_rate, result.ratio_cpu)]


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def to_markdown(result: NetBenchResult) -> str:
    """The section of docs/numbers.md."""
    beside = f"DPDK's testpmd {result.dpdk}" if result.dpdk else f"nobody: {result.without}"
    lines = [
        f"`{result.command}` on {result.machine}.",
        "",
        f"A network device on the {result.plane} data plane, one queue pair, beside {beside}",
        "(net_vhost without huge pages). Each server has one processor, and one compiled front end, which",
        "polls, has another and loads them in turns. Behind the rings packets are dropped, made of nothing,",
        f"or given back. {DEPTH} packets at once where it is not said; medians of {result.rounds} rounds of",
        f"{result.milliseconds} ms. Microseconds: CPU is the server's for a packet, p50 and p99 are there",
        "and back. Ratios are iolane's to testpmd's: packets a second (more is better), CPU (less is).",
        "",
        f"| packets | {' | '.join(f'testpmd {name}' for name in COLUMNS)} "
        f"| {' | '.join(f'iolane {name}' for name in COLUMNS)} | ratio | CPU ratio |",
        "|---" * (3 + 2 * len(COLUMNS)) + "|",
    ]
    for item in result.cases:
        row = [item.case.name, *cells(item.testpmd), *cells(item.iolane), *ratios(item)]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", losses(result)]
    slower = [item for item in result.cases if item.ratio_rate is not None and item.ratio_rate < 1]
    if slower:
        lines += [
            f"testpmd is faster in {len(slower)} of {len(result.cases)} cases. It serves both queues by one",
            "thread, which polls and uses its processor whether there are packets or not; iolane has a",
            "thread for each queue, which sleeps, and both share the one processor: an echo goes from",
            "one to the other.",
        ]
    return "\n".join(lines)


def write_numbers(result: NetBenchResult, document: Path) -> None:
    """Put the result into docs/numbers.md."""
    put_section(document, SECTION, to_markdown(result))
