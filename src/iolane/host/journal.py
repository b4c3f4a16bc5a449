"""What was changed on the host and not yet undone: written down before the first change, so that a killed
process's work can be undone by the next one.

One file for each entry in a folder that belongs to one user alone. A file is replaced whole (written, synced,
renamed, the folder synced), so it is always one state or the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from iolane.errors import IolaneError
from iolane.model.pci.pcie_id import PcieId

_log = logging.getLogger("iolane.host")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PAUSE = 0.02
_START_TIME = 19
"""Field 22 of /proc/PID/stat, counted from the one after the name (proc(5))."""


class Step(StrEnum):
    """How far an entry has come. Only `DONE` is a state to stay in."""

    BEGUN = "begun"
    DONE = "done"
    UNDOING = "undoing"


class Owner(msgspec.Struct, frozen=True):
    """A process that an entry lives and dies with; its start tells it from a later one of that number."""

    pid: int
    started: int
    command: str

    @property
    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        return _start_time(self.pid) == self.started

    @property
    def is_self(self) -> bool:
        """Whether it is this process."""
        return self.pid == os.getpid() and self.is_alive

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    step: Step
    owner: Owner | None
    """None: it stays until somebody undoes it (`iolane host release`)."""
    boot: str
    """The boot it belongs to: nothing of it is left after another."""

    @property
    def pcie_id(self) -> PcieId:
        """The function it is about."""
        return PcieId.from_string(self.address)

    @property
    def is_left(self) -> bool:
        """Whether nobody cares for it any more. With the journal locked, nobody else is in the middle."""
        return self.step is not Step.DONE or (self.owner is not None and not self.owner.is_alive)


class TakenFunction(_Entry, frozen=True, kw_only=True, tag_field="entry", tag="function"):
    """A function with what it had before it was taken."""

    driver: str | None
    driver_override: str | None


class MadeFunctions(_Entry, frozen=True, kw_only=True, tag_field="entry", tag="virtual-functions"):
    """Virtual functions made on a physical one, with what that had before."""

    count: int
    before: int
    autoprobe: bool


Entry = TakenFunction | MadeFunctions


class Journal:
    """The journal of one user. Everything but `locked` is to be called with it locked."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = state_directory() if folder is None else folder
        self.boot = _BOOT_ID.read_text().strip()

    @contextlib.contextmanager
    def locked(self, *, deadline: float = 10.0) -> Iterator[None]:
        """Nobody else changes anything meanwhile; a killed holder lets go.

        Raises:
            IolaneError: another process has had it for `deadline` seconds.
        """
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, deadline)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """All entries: taken functions first, so that undoing them in order works."""
        found: list[Entry] = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Entry))
            except (OSError, msgspec.DecodeError) as error:
                aside = path.with_suffix(".unreadable")
                path.rename(aside)
                _log.warning("journal entry %s can't be read and was put aside as %s: %s", path, aside, error)
        return [entry for entry in found if self._is_of_this_boot(entry)]

    def taken(self, address: PcieId) -> TakenFunction | None:
        """The entry of a taken function."""
        return next((e for e in self._about(address) if isinstance(e, TakenFunction)), None)

    def made(self, address: PcieId) -> MadeFunctions | None:
        """The entry of virtual functions made on a physical one."""
        return next((e for e in self._about(address) if isinstance(e, MadeFunctions)), None)

    def put(self, entry: Entry) -> None:
        """Write an entry, or replace it; it is on the disk when this returns."""
        path = self._path(entry)
        temporary = path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(entry))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
        self._sync()

    def remove(self, entry: Entry) -> None:
        """Forget an entry: all of it is undone."""
        self._path(entry).unlink(missing_ok=True)
        self._sync()

    def _about(self, address: PcieId) -> Iterator[Entry]:
        return (entry for entry in self.entries() if entry.pcie_id == address)

    def _path(self, entry: Entry) -> Path:
        kind = "function" if isinstance(entry, TakenFunction) else "virtual-functions"
        return self.folder / f"{kind}-{entry.address}.json"

    def _sync(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _is_of_this_boot(self, entry: Entry) -> bool:
        if entry.boot == self.boot:
            return True
        self.remove(entry)  # drivers and virtual functions do not outlive a boot
        return False


def this_process() -> Owner:
    """This process as an owner."""
    command = " ".join(os.path.basename(word) if n == 0 else word for n, word in enumerate(sys.argv))
    return Owner(os.getpid(), _start_time(os.getpid()) or 0, command)


def state_directory() -> Path:
    """Where the journal is: /run/iolane for root, $XDG_RUNTIME_DIR/iolane-host for others.

    Raises:
        IolaneError: it can't be made, or others may write there, and so decide what is done as us.
    """
    session = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0:
        path = Path("/run/iolane")
    elif session:
        path = Path(session) / "iolane-host"
    else:
        raise IolaneError("there is no folder for the journal of taken functions", remedy="run it as root")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise IolaneError(f"state folder {path}: {(error.strerror or str(error)).lower()}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise IolaneError(
            f"state folder {path} is not a folder that only you may write to", remedy=f"remove {path}"
        )
    return path


def _start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none, or only its corpse."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else int(fields[_START_TIME])
    except (OSError, ValueError, IndexError):
        return None


def _lock(descriptor: int, deadline: float) -> None:
    end = time.monotonic() + deadline
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                raise IolaneError(
                    f"the host's functions are being changed by process {holder or 'unknown'}",
                    remedy="wait until it is done",
                ) from None
            time.sleep(_PAUSE)
