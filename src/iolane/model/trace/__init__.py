"""Trace: a ladder from nothing to hooks, switched while the device runs."""

from iolane.model.trace.events import (
    DeviceFailed,
    DmaRefused,
    GuestSpins,
    InterruptRaised,
    RegisterAccess,
    TraceEvent,
)
from iolane.model.trace.level import TraceLevel
from iolane.model.trace.session import DROP, Drop, Hook, Sink
from iolane.model.trace.sinks import JsonSink, TextSink
from iolane.model.trace.tracer import RegisterCount, Traceable, Tracer, Unmodelled, unmodelled

__all__ = [
    "DROP",
    "DeviceFailed",
    "DmaRefused",
    "Drop",
    "GuestSpins",
    "Hook",
    "InterruptRaised",
    "JsonSink",
    "RegisterAccess",
    "RegisterCount",
    "Sink",
    "TextSink",
    "TraceEvent",
    "TraceLevel",
    "Traceable",
    "Tracer",
    "Unmodelled",
    "unmodelled",
]
