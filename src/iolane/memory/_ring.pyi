from collections.abc import Callable, Iterable
from typing import final

CHAIN: int
BAD_INDEX: int
HEAD_IN_FLIGHT: int
BROKEN_MEMORY: int
TURN: int

@final
class RegionTable:
    def __init__(self, regions: Iterable[tuple[int, int, int, bool, int]], keep: object = None) -> None: ...

@final
class BlockPath:
    mode: int
    read_only: bool
    def __init__(
        self,
        fd: int,
        size: int,
        mode: int,
        read_only: bool = False,
        address: int = 0,
        broken: int = 0,
        keep: object = None,
        *,
        own_fd: bool = False,
    ) -> None: ...
    def become(self, other: BlockPath) -> None: ...

@final
class FrameStream:
    fd: int
    reader_news: int
    writer_news: int
    trouble: int
    @property
    def pending(self) -> bool: ...
    def connect(self, fd: int, input: bytes = b"", output: bytes = b"") -> None: ...
    def cut(self) -> None: ...
    def push(self) -> bool: ...

@final
class NetPort:
    kind: int
    admitted: bool
    arrival: int
    room: int
    stream: FrameStream
    packets_read: int
    packets_written: int
    def __init__(self, kind: int, *, fd: int = -1, length: int = 0) -> None: ...
    def put_back(self, packet: bytes) -> None: ...
    def take_back(self) -> bytes | None: ...
    def receive(self) -> bytes | None: ...
    def send(self, packet: bytes) -> int: ...
    def disconnect(self) -> None: ...

@final
class NetPath:
    port: NetPort
    receives: bool
    open: bool
    packets: int
    bytes: int
    def __init__(self, port: NetPort, *, receives: bool) -> None: ...
    def agree(
        self, *, offloads: int, longest: int = 65589, mergeable: bool = False, checksums: bool = False
    ) -> None: ...

@final
class CompiledQueue:
    last_available: int
    used_index: int
    requests: int
    bytes_read: int
    bytes_written: int
    slow: int
    kicks: int
    interrupts: int
    suppressed: int
    batches: int
    broken: bool
    by_turns: bool
    def __init__(
        self,
        *,
        size: int,
        descriptors: int,
        available: int,
        used: int,
        regions: RegionTable,
        event_idx: bool,
        indirect: bool,
        last_available: int,
        used_index: int,
        kick: int,
        call: int,
        path: BlockPath | NetPath | None = None,
        log: tuple[int, int, int] | None = None,
        log_signal: int = -1,
        inflight: int = 0,
        poll_ns: int = 200000,
        keep: object = None,
    ) -> None: ...
    def run(self, slow: Callable[[int, int], bool]) -> None: ...
    def drain(self, slow: Callable[[int, int], bool]) -> None: ...
    def rearm(self) -> None: ...
    def stop(self) -> None: ...
    def hold(self) -> bool: ...
    def release(self) -> None: ...
    def leave(self) -> None: ...
    def complete(self, head: int, written: int) -> None: ...
    def adopt(self, head: int) -> None: ...
    def take(self, head: int) -> None: ...
    def untake(self, head: int) -> None: ...
    def wait(self, seen: int) -> None: ...
    def settle(self) -> tuple[bool, bool]: ...
    def set_wires(self, kick: int, call: int) -> None: ...
    def set_log(self, log: tuple[int, int, int] | None, log_signal: int, keep: object) -> None: ...
    def let_go(self) -> int: ...
