"""The front door: all that a plugin imports."""

from __future__ import annotations

from pluggy import HookimplMarker

from .access import Principal
from .errors import AuthenticationError, DefinitionError, SourceError
from .event import Event, EventOf
from .inbox import Inbox
from .policy import Bounds
from .signature import ConfigOnly, Context
from .source import Source, source

hookimpl = HookimplMarker("eventmux")

__all__ = [
    "AuthenticationError",
    "Bounds",
    "ConfigOnly",
    "Context",
    "DefinitionError",
    "Event",
    "EventOf",
    "Inbox",
    "Principal",
    "Source",
    "SourceError",
    "hookimpl",
    "source",
]
