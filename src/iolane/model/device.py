"""What every device is, whatever bus it sits on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

from iolane.errors import IolaneError
from iolane.model.activity import Activity
from iolane.model.clock import Clock
from iolane.model.counters import Counters
from iolane.model.dma import DmaSpace
from iolane.model.observers import Observers
from iolane.model.reset import ResetKind
from iolane.model.state import (
    DeviceState,
    Saved,
    StateError,
    Upgrade,
    decode,
    encode,
    from_plain,
    to_plain,
    upgrade,
)
from iolane.model.tasks import Tasks
from iolane.model.workers import Workers

_log = logging.getLogger("iolane.device")


class DeviceError(NamedTuple):
    """An exception in a device's code that had nobody to go to."""

    where: str
    error: Exception


class Device:
    """DMA, tasks, time and state of one device; a bus (`PciDevice`) adds what the guest sees.

    Every method runs under `lock`, held by whoever calls in: the carrier's thread, a task's end, a timer.

    Attributes:
        lock: the device's lock, to be entered again by who holds it.
        dma: the memory it may touch.
        tasks: its slow work.
        clock: its time.
        counters: what it counted.
        state: what it remembers beside registers, an instance of its class's `State`.
        paused: it must not start anything that the guest or the outside would notice until `on_resume`.
        on_error: told of exceptions in the device's code.
        was_reset: told after each reset.
    """

    State: ClassVar[type[DeviceState]] = DeviceState
    state_version: ClassVar[int] = 1
    state_kind: ClassVar[str]
    """Whose state a document is: by default the class's name."""
    upgrades: ClassVar[Mapping[int, Upgrade]] = {}
    """Version of a saved state -> the function that makes the next version of it."""

    state: DeviceState

    def __init__(self, *, name: str | None = None) -> None:
        self.name = name if name is not None else type(self).__name__.lower()
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        """Notified when work in flight ends; waiting on it releases the lock."""
        self._activity = Activity(self.changed, self.report_error)
        self.dma = DmaSpace(self.changed, device=self.name)
        self.tasks = Tasks(self.changed, self._activity)
        self.clock = Clock(self.changed, self._activity)
        self.counters = Counters()
        self.state = self.State()
        self.paused = False
        self.error_count = 0
        self.on_error: Observers[DeviceError] = Observers()
        self.was_reset: Observers[ResetKind] = Observers()
        self._pauses = 0
        self._closed = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "state_kind" not in vars(cls):
            cls.state_kind = cls.__name__
        for version, step in cls.upgrades.items():
            if not 0 < version < cls.state_version:
                raise TypeError(f"{cls.__name__}.upgrades: there is no version {version} to upgrade")
            if getattr(step, "__name__", "<lambda>") == "<lambda>":
                raise TypeError(f"{cls.__name__}.upgrades[{version}] must be a named function")

    # What a device overrides. All are called with the lock held.

    def on_reset(self, kind: ResetKind) -> None:
        """Registers and `self.state` have their reset values, timers are gone, nothing is in flight."""

    def on_pause(self) -> None:
        """`paused` was just set; work in flight is waited for after this."""

    def on_resume(self) -> None:
        """`paused` was just cleared: start what was put off."""

    def on_disconnect(self) -> None:
        """The guest's side is gone, and its memory with it; another may come."""

    def on_save(self) -> None:
        """Put into `self.state` what isn't there yet: `remaining_ns` of timers, positions of back ends."""

    def on_load(self) -> None:
        """Registers and `self.state` were just loaded, timers are gone: arm them again.

        StateError refuses the load; the device is then as it was, and this is called once more.
        """

    def statistics(self) -> dict[str, int | float | str]:
        """What the device has to say in `iolane devices` beside its counters."""
        return {}

    # What a bus's floor overrides.

    def storages(self) -> Mapping[str, memoryview]:
        """The register storage that is saved and loaded, by name."""
        return {}

    def save_extra(self) -> dict[str, Any]:
        """More that is saved, as plain data (None, bool, int, str, bytes, list, dict with str keys)."""
        return {}

    def load_extra(self, extra: dict[str, Any]) -> Callable[[], None]:
        """Check all of what `save_extra` gave and return the call that takes it.

        Raises:
            StateError: it isn't what `save_extra` gives. The call is made after storage was loaded, and may
                raise it too.
        """
        if extra:
            raise StateError(f"the saved state has {', '.join(sorted(extra))}, unknown to {self.state_kind}")
        return lambda: None

    def reset_registers(self, kind: ResetKind) -> None:
        """Give registers their reset values."""

    def reset_state(self) -> None:
        """Timers are gone and `self.state` becomes new. Overridden to keep what survives a reset."""
        self.clock.forget_timers()
        self.state = self.State()

    # Pausing.

    def pause(self) -> None:
        """Return when the device does nothing: no task, no due timer. Pauses nest; the lock may be held.

        Called in a task's end or a timer, that one does not count.
        """
        with self.lock:
            self._pauses += 1
            if self._pauses == 1:
                self.paused = True
                self.clock.freeze()
                self._guard("on_pause", self.on_pause)
                self.clock.make_due()
            self._activity.wait(self.tasks.run_waiting)

    def resume(self) -> None:
        """Undo one `pause`."""
        with self.lock:
            if not self._pauses:
                raise IolaneError(f"{self.name} is not paused")
            self._pauses -= 1
            if not self._pauses:
                self.paused = False
                self.clock.thaw()
                self._guard("on_resume", self.on_resume)

    @contextmanager
    def quiesced(self) -> Iterator[None]:
        """`with device.quiesced():` holds the lock of a paused device."""
        with self.lock:
            self.pause()
            try:
                yield
            finally:
                self.resume()

    def reset(self, kind: ResetKind = ResetKind.CONVENTIONAL) -> None:
        """Back to how it was made, once what is in flight has ended."""
        with self.quiesced():
            self.reset_registers(kind)
            self.reset_state()
            self._guard("on_reset", lambda: self.on_reset(kind))
            self.was_reset.notify(kind)

    def disconnect(self) -> None:
        """The guest's side is gone: finish what is in flight and forget its memory. State stays."""
        with self.quiesced():
            self.dma.unmap_all()
            self.dma.indirect = None
            self.dma.stop_dirty_log()
            self._guard("on_disconnect", self.on_disconnect)

    def report_error(self, where: str, error: Exception) -> None:
        """Count and tell of an exception in the device's code.

        A guest may be able to cause them without end, so only the first, second, fourth, eighth ... is
        logged.
        """
        with self.lock:
            self.error_count += 1
            if not self.error_count & (self.error_count - 1):
                _log.error("%s: error %d, in %s", self.name, self.error_count, where, exc_info=error)
            self.on_error.notify(DeviceError(where, error))

    def _guard(self, where: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            self.report_error(where, error)

    # State.

    def save(self) -> bytes:
        """Everything that makes this device what it is, as one document."""
        with self.quiesced():
            self.on_save()
            return encode(self._capture())

    def load(self, data: bytes | bytearray | memoryview) -> None:
        """Become what a document says, or change nothing.

        Raises:
            StateError: the document is damaged, newer, or not of this kind of device.
        """
        saved = upgrade(decode(data), self.state_kind, self.state_version, self.upgrades)
        with self.quiesced():
            state = from_plain(saved.state, self.State)
            self._check_storages(saved)
            take_extra = self.load_extra(saved.extra)
            before = self._capture()
            try:
                self._take(saved, state, take_extra)
                self.on_load()
            except Exception as error:
                self._take(before, from_plain(before.state, self.State), self.load_extra(before.extra))
                self._guard("on_load", self.on_load)
                if isinstance(error, IolaneError):
                    raise
                raise StateError(f"{self.name} did not take the saved state: {error!r}") from error

    def _capture(self) -> Saved:
        return Saved(
            kind=self.state_kind,
            name=self.name,
            version=self.state_version,
            clock_ns=self.clock.now_ns(),
            regions={name: bytes(storage) for name, storage in self.storages().items()},
            extra=self.save_extra(),
            state=to_plain(self.state),
        )

    def _check_storages(self, saved: Saved) -> None:
        sizes = {name: storage.nbytes for name, storage in self.storages().items()}
        found = {name: len(content) for name, content in saved.regions.items()}
        if sizes != found:
            raise StateError(f"the saved state's registers are {found}, those of {self.name} are {sizes}")

    def _take(self, saved: Saved, state: DeviceState, take_extra: Callable[[], None]) -> None:
        self.clock.forget_timers()
        self.clock.set_now(saved.clock_ns)
        for name, storage in self.storages().items():
            storage[:] = saved.regions[name]
        self.state = state
        take_extra()

    # The carrier.

    def attach(self, workers: Workers) -> None:
        """Let a carrier's threads do tasks and timers. Else tasks run in the caller and time stands still."""
        if not self.clock.manual:
            raise IolaneError(f"{self.name} has a carrier already")
        self._change_workers(workers)

    def detach(self) -> None:
        """Undo `attach`, once what is in flight has ended."""
        self._change_workers(None)

    def _change_workers(self, workers: Workers | None) -> None:
        with self.quiesced():
            self.tasks.attach(workers)
            self.clock.attach(workers)

    def close(self) -> None:
        """Finish what is in flight, let go of everything. Overrides call this, then close back ends."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            self.disconnect()
            self.clock.forget_timers()
            self.detach()

    def describe(self) -> dict[str, int | float | str]:
        """Counters and what else is worth seeing, for `iolane devices`."""
        with self.lock:
            return {
                **self.counters.snapshot(),
                "dma_bytes_read": self.dma.bytes_read,
                "dma_bytes_written": self.dma.bytes_written,
                "dma_faults": self.dma.fault_count,
                "dma_maps": len(self.dma.maps),
                "tasks_started": self.tasks.started,
                "tasks_running": self.tasks.running,
                "timers": self.clock.timers,
                "errors": self.error_count,
                "paused": int(self.paused),
                **self.statistics(),
            }
