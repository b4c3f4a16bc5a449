"""`iolane bench block`: block requests by vhost-user beside qemu-storage-daemon, and the machine's own limit.

One C front end, built on demand, loads every back end in turns within one run, so that whatever else the
machine does meets them all. What counts are ratios.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TypeVar

import msgspec

from iolane.bench.confidence import confidence_of_median
from iolane.bench.document import machine, put_section
from iolane.bench.native import build
from iolane.bench.peers import Peer, fio, storage_daemon
from iolane.bench.process import cpu_ns
from iolane.bench.target import ANYTHING, Target
from iolane.engines.qemu.cache import Cache
from iolane.errors import IolaneError

TIMEOUT = 60.0
_Thing = TypeVar("_Thing")
PEERS = (OURS, URING, THREADS) = ("iolane", "qemu io_uring", "qemu threads")


class Case(msgspec.Struct, frozen=True):
    """A load."""

    operation: str
    order: str
    size: int
    depth: int
    queues: int = 1
    polls: bool = False
    """The front end looks for `POLLED_NS` before it waits for an interrupt, as guests with haltpoll do."""

    @property
    def name(self) -> str:
        """As the tables show it."""
        size = f"{self.size >> 10} KiB"
        queues = "" if self.queues == 1 else f", {self.queues} queues"
        polls = ", polled" if self.polls else ""
        return f"{size} {self.order} {self.operation}, depth {self.depth}{queues}{polls}"


POLLED_NS = 20_000
CASES = (
    *(Case(kind, "random", 4096, depth) for kind in ("read", "write") for depth in (1, 32)),
    *(Case("read", "random", 4096, depth, polls=True) for depth in (1, 32)),
    *(Case("read", "random", 4096, depth, 2) for depth in (1, 32)),
    *(Case("read", "sequential", 131072, depth) for depth in (1, 32)),
    Case("write", "sequential", 131072, 32),
)


class Figures(msgspec.Struct, frozen=True):
    """One measurement."""

    rate: float
    """Requests a second."""
    p50: float
    p99: float
    """Nanoseconds."""
    cpu: float
    """Nanoseconds of the back end's processor time for each request."""


class CaseResult(msgspec.Struct, frozen=True):
    """Medians over the rounds, by back end. Ratios are medians of the rounds' ratios."""

    case: Case
    figures: dict[str, Figures]
    rate_ratio: dict[str, float]
    """iolane's rate to that peer's."""
    cpu_ratio: dict[str, float]
    rate_range: tuple[float, float]
    """Where the true ratio of rates to io_uring lies, with 95 % confidence."""


class Place(msgspec.Struct, frozen=True):
    """A kind of file, and what was measured on it."""

    name: str
    direct: bool
    cases: tuple[CaseResult, ...]
    limits: dict[str, float]
    """4 KiB random reads a second of this machine without any back end."""

    @property
    def two_queues(self) -> float:
        """iolane's processor time for a request with two queues, to that with one."""
        single, double = (
            next(item for item in self.cases if item.case == Case("read", "random", 4096, 32, queues))
            for queues in (1, 2)
        )
        return double.figures[OURS].cpu / single.figures[OURS].cpu


class BlockBenchResult(msgspec.Struct, frozen=True):
    """A whole run."""

    command: str
    machine: str
    qemu: str
    rounds: int
    places: tuple[Place, ...]

    @property
    def missed(self) -> list[str]:
        """The targets that were missed, in words."""
        return [line for place in self.places for line in _missed(place)]


def rate_target(direct: bool, case: Case) -> Target:
    """What iolane's rate should be to that of qemu-storage-daemon with io_uring."""
    if direct:
        return Target(at_least=1.0)
    if case.operation == "read" and case.queues == 1:
        if case.size == 4096:
            return Target(at_least=4.0 if case.depth == 32 else 2.5)
        return Target(at_least=1.1)
    return ANYTHING


def cpu_target(direct: bool, case: Case) -> Target:
    """The same of its processor time for a request."""
    small = (case.operation, case.size, case.depth, case.queues) == ("read", 4096, 32, 1)
    return Target(at_most=0.3) if small and not direct else ANYTHING


TWO_QUEUES = Target(at_most=1.15)
"""Processor time for a request with two queues, to that with one."""


def _missed(place: Place) -> Iterator[str]:
    for item in place.cases:
        where, (low, high) = f"on {place.name}, {item.case.name}", item.rate_range
        rate, cpu = rate_target(place.direct, item.case), cpu_target(place.direct, item.case)
        if not rate.holds(value := item.rate_ratio[URING]):
            yield f"{where}: rate {value:.2f} ({low:.2f} to {high:.2f}), should be {rate}"
        if not cpu.holds(value := item.cpu_ratio[URING]):
            yield f"{where}: CPU {value:.2f}, should be {cpu}"
    if not place.direct and not TWO_QUEUES.holds(place.two_queues):
        yield f"on {place.name}, CPU with two queues: {place.two_queues:.2f}, should be {TWO_QUEUES}"


class _Server:
    """A back end: its process, and the processor time that it has used."""

    def __init__(self, command: list[str], socket: Path) -> None:
        self.socket = socket
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def wait_ready(self) -> None:
        until = time.monotonic() + TIMEOUT
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                raise IolaneError(f"{self.process.args!s:.200} did not start")
            time.sleep(0.01)

    def cpu_ns(self) -> int:
        return cpu_ns(self.process.pid)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def run_block_bench(
    *,
    rounds: int = 3,
    milliseconds: int = 300,
    megabytes: int = 512,
    folder: Path | None = None,
    cache: Cache | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> BlockBenchResult:
    """Measure, on tmpfs and past the page cache on a real file in `folder`.

    Raises:
        IolaneError: no C compiler, no archive, or a program failed.
    """
    if min(rounds, milliseconds, megabytes) < 1:
        raise IolaneError("rounds, milliseconds and megabytes are at least 1")
    cache = cache or Cache()
    client = build(("block_client",), cache) / "block_client"
    daemon, limit = storage_daemon(cache), fio(cache)
    described = machine()
    places = []
    for name, parent, direct in (("tmpfs", Path("/dev/shm"), False), ("a real file, direct", folder, True)):
        with tempfile.TemporaryDirectory(prefix="iolane-bench-", dir=parent) as scratch:
            places.append(
                _measure_place(
                    name,
                    Path(scratch),
                    direct,
                    client,
                    daemon,
                    limit,
                    rounds,
                    milliseconds,
                    megabytes << 20,
                    report,
                )
            )
    return BlockBenchResult(
        command=shlex.join(("iolane", "bench", "block", "--rounds", str(rounds))),
        machine=described,
        qemu=daemon.version,
        rounds=rounds,
        places=tuple(places),
    )


def _measure_place(
    name: str,
    scratch: Path,
    direct: bool,
    client: Path,
    daemon: Peer,
    limit: Peer,
    rounds: int,
    milliseconds: int,
    span: int,
    report: Callable[[str], None],
) -> Place:
    image, *images = (scratch / f"image{number}" for number in range(1 + len(PEERS)))
    for each in (image, *images):
        _fill(each, span)
    cases = [case for case in CASES if not (direct and case.polls)]
    measured: dict[tuple[Case, str], list[Figures]] = {}
    limits: dict[str, list[float]] = {}
    for turn in range(rounds):
        report(f"{name}: round {turn + 1} of {rounds}")
        with _servers(scratch, _turned(images, turn), direct, daemon) as servers:
            for case in cases:
                for peer in _turned(PEERS, turn):
                    figures = _measure(client, servers[peer], case, milliseconds, span)
                    measured.setdefault((case, peer), []).append(figures)
        for engine in ("mmap", "psync", "io_uring"):
            if engine != "mmap" or not direct:
                limits.setdefault(f"fio {engine}", []).append(
                    _fio(limit, engine, image, direct, milliseconds)
                )
    summaries = tuple(_summarize(case, {peer: measured[case, peer] for peer in PEERS}) for case in cases)
    return Place(name, direct, summaries, {engine: median(rates) for engine, rates in limits.items()})


def _turned(things: Sequence[_Thing], turn: int) -> list[_Thing]:
    """No peer is always first, nor always has the image that lies best on the disk."""
    start = turn % len(things)
    return [*things[start:], *things[:start]]


def _fill(image: Path, size: int) -> None:
    block = os.urandom(1 << 20)
    with image.open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _servers(scratch: Path, images: list[Path], direct: bool, daemon: Peer) -> Iterator[dict[str, _Server]]:
    """Each with an image of its own: they lock it."""
    commands = {}
    for number, (peer, own) in enumerate(zip(PEERS, images, strict=True)):
        socket = scratch / f"socket{number}"
        socket.unlink(missing_ok=True)
        if peer == OURS:
            flags = ("2", "1" if direct else "0")
            commands[peer] = [
                sys.executable,
                "-m",
                "iolane.bench.block_server",
                str(own),
                *flags,
                str(socket),
            ]
            continue
        options = f"filename={own},aio={peer.split()[1]},cache.direct={'on' if direct else 'off'}"
        export = f"addr.type=unix,addr.path={socket},writable=on,num-queues=2,iothread=thread"
        commands[peer] = [
            *daemon.command,
            *("--object", "iothread,id=thread"),
            *("--blockdev", f"driver=file,node-name=file,{options}"),
            *("--export", f"type=vhost-user-blk,id=export,node-name=file,{export}"),
        ]
    with ExitStack() as stack:
        servers = {}
        for number, (peer, command) in enumerate(commands.items()):
            servers[peer] = _Server(command, scratch / f"socket{number}")
            stack.callback(servers[peer].stop)
        for server in servers.values():
            server.wait_ready()
        yield servers


def _measure(client: Path, server: _Server, case: Case, milliseconds: int, span: int) -> Figures:
    spin = POLLED_NS if case.polls else 0
    words = (case.operation, case.order, case.size, case.depth, case.queues, milliseconds, span, spin)
    command = [str(client), str(server.socket), *map(str, words)]
    before = server.cpu_ns()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise IolaneError(f"{case.name}: the client did not end within {TIMEOUT:g} s") from None
    if done.returncode:
        raise IolaneError(f"{case.name}: the client failed: {done.stderr.strip()}")
    requests, wall, p50, p99, total = (int(word) for word in done.stdout.split())
    return Figures(requests * 1e9 / wall, p50, p99, (server.cpu_ns() - before) / total)


def _fio(peer: Peer, engine: str, image: Path, direct: bool, milliseconds: int) -> float:
    """4 KiB random reads a second without a back end."""
    options = {
        "name": "limit",
        "filename": image,
        "rw": "randread",
        "bs": "4k",
        "ioengine": engine,
        "iodepth": 32,
        "runtime": f"{milliseconds}ms",
        "time_based": 1,
        "direct": int(direct),
        "output-format": "json",
        "thread": 1,
        "readonly": None,
    }
    words = [f"--{key}" if value is None else f"--{key}={value}" for key, value in options.items()]
    done = subprocess.run(
        [*peer.command, *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        cwd=image.parent,
        check=False,
    )
    if done.returncode:
        raise IolaneError(f"fio with {engine} failed: {done.stderr.strip()[:200]}")
    found = msgspec.json.decode(done.stdout[done.stdout.index("{") :])
    return float(found["jobs"][0]["read"]["iops"])


def _summarize(case: Case, by_peer: dict[str, list[Figures]]) -> CaseResult:
    ours = by_peer[OURS]

    def ratios(peer: str, value: Callable[[Figures], float]) -> list[float]:
        return [value(a) / value(b) for a, b in zip(ours, by_peer[peer], strict=True)]

    figures = {
        peer: Figures(
            *(median(getattr(item, field) for item in items) for field in Figures.__struct_fields__)
        )
        for peer, items in by_peer.items()
    }
    return CaseResult(
        case,
        figures,
        {peer: median(ratios(peer, lambda item: item.rate)) for peer in (URING, THREADS)},
        {peer: median(ratios(peer, lambda item: item.cpu)) for peer in (URING, THREADS)},
        confidence_of_median(ratios(URING, lambda item: item.rate)),
    )


def _cell(value: float, target: Target) -> str:
    return f"{value:.2f}" if target == ANYTHING else f"**{value:.2f}**"


SECTION = "Blocks over vhost-user"


def to_markdown(result: BlockBenchResult) -> str:
    """The section of docs/numbers.md."""
    lines = [
        f"`{result.command}` on {result.machine}.",
        "",
        f"One C front end loads iolane and qemu-storage-daemon {result.qemu} (one iothread) in turns:",
        f"medians of {result.rounds} rounds, between which their order and their images change about. It",
        f"waits for interrupts; where the table says *polled* it first looks for {POLLED_NS // 1000} us, as",
        "guests with haltpoll do, so that less is measured of how fast this machine wakes a processor. Rates",
        "are thousands of requests a second, times microseconds; CPU is the back end's for each request. A",
        "ratio is iolane's to that peer's; bold ones have a target. In brackets: where the ratio lies with",
        "95 % confidence.",
    ]
    for place in result.places:
        lines += [
            "",
            f"On {place.name}:",
            "",
            "| load | iolane rate | p50 | p99 | CPU | io_uring rate | p50 | p99 | CPU | threads rate | CPU "
            "| rate / io_uring | CPU / io_uring | rate / threads |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for item in place.cases:
            cells = []
            for peer in (OURS, URING, THREADS):
                one = item.figures[peer]
                cells.append(f"{one.rate / 1000:.1f}")
                cells += [f"{value / 1000:.1f}" for value in (one.p50, one.p99) if peer != THREADS]
                cells.append(f"{one.cpu / 1000:.2f}")
            rate, cpu = rate_target(place.direct, item.case), cpu_target(place.direct, item.case)
            low, high = item.rate_range
            cells.append(f"{_cell(item.rate_ratio[URING], rate)} ({low:.2f} to {high:.2f})")
            cells.append(_cell(item.cpu_ratio[URING], cpu))
            lines.append(f"| {item.case.name} | {' | '.join(cells)} | {item.rate_ratio[THREADS]:.2f} |")
        shown = ", ".join(f"{engine} {rate / 1000:.0f}" for engine, rate in place.limits.items())
        lines += [
            "",
            f"The machine's own limit, 4 KiB random reads without a back end, thousands a second: {shown}.",
        ]
        lines += [f"CPU for a request with two queues is {place.two_queues:.2f} of that with one (depth 32)."]
    missed = result.missed
    lines += [
        "",
        "Every target is met." if not missed else "Targets that are missed:",
        *(f"- {one}" for one in missed),
    ]
    return "\n".join(lines)


def write_numbers(result: BlockBenchResult, document: Path) -> None:
    """Put the result into docs/numbers.md."""
    put_section(document, SECTION, to_markdown(result))
