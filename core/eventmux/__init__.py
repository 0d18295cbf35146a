"""The front door: all that a plugin imports."""

from __future__ import annotations

from pluggy import HookimplMarker

from .errors import DefinitionError, SourceError
from .event import Event, EventOf
from .inbox import Inbox
from .policy import Bounds
from .signature import ConfigOnly, Context
from .source import Source, source

hookimpl = HookimplMarker("eventmux")

__all__ = [
    "Bounds",
    "ConfigOnly",
    "Context",
    "DefinitionError",
    "Event",
    "EventOf",
    "Inbox",
    "Source",
    "SourceError",
    "hookimpl",
    "source",
]
