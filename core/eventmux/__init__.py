"""The front door: all that a plugin imports."""

from __future__ import annotations

from pluggy import HookimplMarker

from .errors import DefinitionError, SourceError
from .event import Event, EventOf
from .source import ConfigOnly, Context, Source, source

hookimpl = HookimplMarker("eventmux")

__all__ = [
    "ConfigOnly",
    "Context",
    "DefinitionError",
    "Event",
    "EventOf",
    "Source",
    "SourceError",
    "hookimpl",
    "source",
]
