"""Every hook there is. None is on an event's way."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING

from pluggy import HookspecMarker

from .access import Principal
from .source import Source

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

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


@hookspec
def authenticate(connection: HTTPConnection) -> Principal | Awaitable[Principal | None] | None:
    """Say who asks, by a scheme of your own: a session, a header, a client's certificate. May be `async`.

    Called for every request that is not by ticket. Return a Principal; None for what is not yours, and the next plugin
    is asked, and then the service's own ways; or raise AuthenticationError, whose text the client is shown. Whatever
    else it raises is logged, and lets nobody in. Where there is one, no request is let in unasked.

        @hookimpl
        async def authenticate(connection):
            if key := connection.headers.get("x-api-key"):
                if user := await user_of(key):
                    return Principal(user.name, read=user.sources)
                raise AuthenticationError("this key is not known: make one in your settings")
    """
