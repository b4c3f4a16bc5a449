"""Where events go: lines of text, lines of JSON."""

from __future__ import annotations

import threading
from typing import TextIO

import msgspec

from iolane.model.trace.events import TraceEvent


class TextSink:
    """Writes one line of text for each event. Devices may share one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: TraceEvent) -> None:
        line = self._line(event)
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()

    def _line(self, event: TraceEvent) -> str:
        return event.text()


class JsonSink(TextSink):
    """Writes one JSON object a line for each event."""

    def _line(self, event: TraceEvent) -> str:
        return msgspec.json.encode(event.plain()).decode()
