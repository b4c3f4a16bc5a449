"""A domain's console: libvirt's stream, joined to a socket from which the engines' usual console reads."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

from iolane.engines.libvirt.binding import libvirt
from iolane.engines.libvirt.domain import Domain
from iolane.engines.libvirt.failure import libvirt_errors
from iolane.engines.qemu.console import Console

PIECE = 4096
WAITING = 1 << 16
"""Bytes of keys that wait for the guest; more are not taken until it has read some."""
_WOULD_BLOCK = -2
"""What virStreamSend and virStreamRecv return where they would have to wait."""


class DomainConsole:
    """Owns the stream; everything in it happens in libvirt's event loop. `console` is for everybody."""

    def __init__(self, domain: Domain, log: Path) -> None:
        binding = libvirt()
        self._binding = binding
        self._lock = threading.Lock()
        self._closed = False
        self._keys = bytearray()
        mine, theirs = socket.socketpair()
        self._socket = mine
        self._stream: Any = domain.connection.handle.newStream(binding.VIR_STREAM_NONBLOCK)
        self._watch = -1
        try:
            with libvirt_errors(f"{domain.name}: no console"):
                domain.handle.openConsole(None, self._stream, binding.VIR_DOMAIN_CONSOLE_FORCE)
                self._stream.eventAddCallback(
                    binding.VIR_STREAM_EVENT_READABLE
                    | binding.VIR_STREAM_EVENT_HANGUP
                    | binding.VIR_STREAM_EVENT_ERROR,
                    self._shown,
                    None,
                )
        except BaseException:
            mine.close()
            theirs.close()
            raise
        self._watch = binding.virEventAddHandle(
            mine.fileno(), binding.VIR_EVENT_HANDLE_READABLE, self._typed, None
        )
        self.console = Console(theirs, log)

    def close(self) -> None:
        """End the stream; the console's log stays."""
        self._end()
        self.console.close()
        self._socket.close()

    def _end(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        binding = self._binding
        if self._watch >= 0:
            binding.virEventRemoveHandle(self._watch)
        try:
            self._stream.eventRemoveCallback()
            self._stream.abort()
        except binding.libvirtError:
            pass  # the domain has ended, and the stream with it
        self._socket.shutdown(socket.SHUT_RDWR)

    def _shown(self, stream: Any, events: int, opaque: object) -> None:
        binding = self._binding
        if events & binding.VIR_STREAM_EVENT_WRITABLE:
            self._send()
        if not events & ~binding.VIR_STREAM_EVENT_WRITABLE:
            return
        try:
            data = stream.recv(PIECE)
        except binding.libvirtError:
            data = b""
        if data == _WOULD_BLOCK:
            return
        if not data:
            self._end()
            return
        try:
            self._socket.sendall(data)
        except OSError:
            self._end()

    def _typed(self, watch: int, descriptor: int, events: int, opaque: object) -> None:
        try:
            data = self._socket.recv(PIECE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        self._keys += data
        self._send()

    def _send(self) -> None:
        """As many of the keys as the stream takes now; the rest when it is writable."""
        binding = self._binding
        try:
            while self._keys:
                sent = self._stream.send(bytes(self._keys[:PIECE]))
                if sent == _WOULD_BLOCK:
                    break
                del self._keys[:sent]
            wanted = binding.VIR_STREAM_EVENT_READABLE
            wanted |= binding.VIR_STREAM_EVENT_HANGUP | binding.VIR_STREAM_EVENT_ERROR
            if self._keys:
                wanted |= binding.VIR_STREAM_EVENT_WRITABLE
            self._stream.eventUpdateCallback(wanted)
        except binding.libvirtError:
            self._end()
            return
        room = len(self._keys) < WAITING
        binding.virEventUpdateHandle(self._watch, binding.VIR_EVENT_HANDLE_READABLE if room else 0)
