"""Where a machine can go in a test: this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path

from iolane.errors import IolaneError
from iolane.operations.machine import Machine
from iolane.operations.receive import ReceiveRequest, receive


class Destination:
    """`iolane receive` in a thread: the machine that came. A context manager.

    Args:
        path: the socket.
        name: what the machine is called here.
        devices: ID=DEVICE, what its devices are here.
    """

    def __init__(self, path: Path, name: str, devices: Sequence[str] = ()) -> None:
        self.uri = f"unix:{path}"
        self.told: list[str] = []
        self._request = ReceiveRequest(self.uri, name=name, devices=devices)
        self._waiting, self._arrived = threading.Event(), threading.Event()
        self._machine: Machine | None = None
        self._thread = threading.Thread(target=self._receive, daemon=True)

    def __enter__(self) -> Destination:
        self._thread.start()
        assert self._waiting.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        if self._machine is not None:
            with contextlib.suppress(IolaneError):
                self._machine.abort()
        self._thread.join(60)

    def machine(self) -> Machine:
        assert self._arrived.wait(120), self.told
        assert self._machine is not None
        return self._machine

    def _receive(self) -> None:
        receive(self._request, self.told.append, waiting=lambda _: self._waiting.set(), arrived=self._come)

    def _come(self, machine: Machine) -> None:
        self._machine = machine
        self._arrived.set()
