"""QMP (QEMU's docs/interop/qmp-spec.rst) through qemu.qmp, for callers that are not asynchronous.

The owner joins its loop thread by `close`. QEMU is also started from that thread: a process that asks to die
with its parent dies with the thread that made it, and this one lives exactly as long as the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from iolane.engines.qemu.patience import patient
from iolane.errors import IolaneError

T = TypeVar("T")
Event = dict[str, Any]


class QmpError(IolaneError):
    """QEMU refused a command."""


class QmpLostError(IolaneError):
    """The connection to QEMU is gone."""


class Qmp:
    """One QMP connection."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"qmp {name}", daemon=True)
        self._changed = threading.Condition()
        self._events: deque[tuple[int, Event]] = deque(maxlen=1000)
        self._count = 0
        self._lost = False
        self._client: QMPClient | None = None
        self._reader: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[Event], object]] = []
        self._on_lost: list[Callable[[], object]] = []
        self._thread.start()

    def in_thread(self, function: Callable[[], T]) -> T:
        """Calls `function` in the loop thread."""

        async def call() -> T:
            return function()

        return self._wait(call(), 30.0)

    def connect(self, connection: socket.socket, timeout: float = 30.0) -> None:
        """Takes over a connected socket and negotiates."""
        self._wait(self._connect(connection), timeout)

    def add_listener(
        self, listener: Callable[[Event], object], on_lost: Callable[[], object] = lambda: None
    ) -> Callable[[], None]:
        """`listener` gets every event, and `on_lost` is called when QEMU is gone (at once, if it is already):
        in the loop thread, so neither may wait or call back. Returns what ends it.
        """

        def remove() -> None:
            with self._changed:
                if listener in self._listeners:
                    self._listeners.remove(listener)
                    self._on_lost.remove(on_lost)

        with self._changed:
            self._listeners.append(listener)
            self._on_lost.append(on_lost)
            lost = self._lost
        if lost:
            on_lost()
        return remove

    def give_descriptor(self, name: str, fd: int) -> None:
        """QEMU gets a duplicate of `fd` under a name (getfd). Raises QmpError when it refuses."""
        client = self._client
        if client is None or self._lost:
            raise QmpLostError("QEMU is gone")
        try:
            self.in_thread(lambda: client.send_fd_scm(fd))
        except (QMPError, OSError) as error:
            raise QmpLostError("QEMU is gone") from error
        self.execute("getfd", fdname=name)

    def execute(self, command: str, timeout: float = 30.0, /, **arguments: object) -> Any:
        """Runs a command and returns what it returns."""
        client = self._client
        if client is None or self._lost:
            raise QmpLostError("QEMU is gone")
        try:
            return self._wait(client.execute(command, arguments or None), timeout)
        except ExecuteError as error:
            raise QmpError(f"QEMU refuses {command}: {error}") from error
        except QMPError as error:
            raise QmpLostError(f"QEMU is gone ({command} was not answered)") from error

    def mark(self) -> int:
        """A point in the stream of events, for `wait_event`."""
        with self._changed:
            return self._count

    def wait_event(
        self,
        names: set[str],
        since: int,
        timeout: float,
        accept: Callable[[Event], bool] = lambda event: True,
    ) -> Event | None:
        """The first event of `names` after `since` that `accept` accepts, or None when time is up."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for number, event in self._events:
                    if number >= since and event["event"] in names and accept(event):
                        return event
                if self._lost:
                    raise QmpLostError(f"QEMU is gone while waiting for {', '.join(sorted(names))}")
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)

    def close(self) -> None:
        """Disconnects and ends the thread."""
        if self._loop.is_closed():
            return
        if self._client is not None:
            with contextlib.suppress(IolaneError, QMPError, OSError, EOFError, asyncio.CancelledError):
                self._wait(self._disconnect(self._client), 5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        limit = patient(timeout)
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(limit)
        except TimeoutError:
            future.cancel()
            raise QmpLostError(f"QEMU did not answer within {limit:g} s") from None

    async def _connect(self, connection: socket.socket) -> None:
        client = QMPClient(self._name)
        client.logger.disabled = True
        try:
            await client.connect(connection)
        except (QMPError, OSError, EOFError) as error:
            raise QmpLostError("QEMU ended before it answered") from error
        self._client = client
        self._reader = asyncio.create_task(self._read(client))

    async def _read(self, client: QMPClient) -> None:
        closed = asyncio.create_task(self._closed(client))
        try:
            while True:
                following = asyncio.create_task(client.events.get())
                await asyncio.wait((following, closed), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    break
                self._note(dict(following.result()))
        finally:
            with self._changed:
                self._lost = True
                self._changed.notify_all()
                on_lost = list(self._on_lost)
            for tell in on_lost:
                tell()

    async def _closed(self, client: QMPClient) -> None:
        with contextlib.suppress(QMPError, OSError, EOFError):
            await client.runstate_changed()

    def _note(self, event: Event) -> None:
        with self._changed:
            self._events.append((self._count, event))
            self._count += 1
            self._changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener(event)

    async def _disconnect(self, client: QMPClient) -> None:
        with contextlib.suppress(QMPError, OSError, EOFError):
            await client.disconnect()
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
