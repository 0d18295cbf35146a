"""Every hook there is. They run at start-up and are never on an event's way."""

from __future__ import annotations

from collections.abc import Iterable

from pluggy import HookspecMarker

from .source import Source

hookspec = HookspecMarker("eventmux")


@hookspec
def register_sources() -> Iterable[Source[...]]:  # type: ignore[empty-body] # a specification
    """Return the sources that a plugin computes: one for each row of a table, say.

    The sources at the top level of a plugin's module are found without it. Called once, when the plugin is loaded;
    what it raises makes the plugin `failed`, and nothing else.

        @hookimpl
        def register_sources():
            for symbol in ("abc", "xyz"):
                yield source(name=f"price-{symbol}")(prices_of(symbol))
    """
