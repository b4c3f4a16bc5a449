"""A pseudo-terminal at the other end of the line, for `screen`, `picocom` and the like."""

from __future__ import annotations

import os
import select
import time
import tty
from pathlib import Path

from iolane.backends.stream.descriptor import DescriptorStream
from iolane.errors import IolaneError

LOOK_SECONDS = 0.2
"""How often an unopened terminal is looked at: the kernel does not tell when somebody opens it."""


class PtyStream(DescriptorStream):
    """A pseudo-terminal in raw mode; the peer is whoever has `terminal` open.

    Args:
        link: a symbolic link to make to the terminal, since its number differs from run to run.
    """

    def __init__(self, link: Path | None = None) -> None:
        master, terminal = os.openpty()
        self.terminal = Path(os.ttyname(terminal))
        super().__init__(f"pty:{self.terminal}")
        tty.setraw(terminal)
        os.close(terminal)
        os.set_blocking(master, False)
        self._master = master
        self._opened = False
        self._link: Path | None = None
        if link is not None:
            self._make_link(link)

    @property
    def connected(self) -> bool:
        """Whether somebody has the terminal open."""
        return self._opened

    def service(self) -> None:
        """Also looks whether somebody has come."""
        super().service()
        if not self._opened:
            self._look()

    def close(self) -> None:
        """Also removes the link."""
        super().close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        if self._link is not None:
            if self._link.is_symlink():
                self._link.unlink()
            self._link = None

    def _begin(self) -> None:
        self._await_peer()
        super()._begin()

    def _look(self) -> None:
        if self._master < 0:
            return
        poll = select.poll()
        poll.register(self._master, 0)
        if any(events & select.POLLHUP for _, events in poll.poll(0)):
            self._await_peer()
            return
        self._opened = True
        self._in = self._out = self._master
        self.connections += 1

    def _lost(self) -> None:
        self._opened = False
        self._release()
        self._await_peer()

    def _release(self) -> None:
        if self._in >= 0:
            self._forget(self._in)
        self._in = self._out = -1

    def _await_peer(self) -> None:
        if self._poller is not None and not self._opened:
            self._poller.call_at(time.monotonic() + LOOK_SECONDS, self._notify)

    def _make_link(self, link: Path) -> None:
        try:
            if link.is_symlink():
                link.unlink()
            link.symlink_to(self.terminal)
        except OSError as error:
            self.close()
            raise IolaneError(f"{link}: {(error.strerror or str(error)).lower()}") from error
        self._link = link
