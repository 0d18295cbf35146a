"""What every request passes first: trusted hosts, CORS, pages of other origins, and the headers that answers bear."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette._utils import get_route_path
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse

from ..errors import MAX_SHOWN
from .index import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ..config import Config
    from ..settings import Settings

# Of an answer that does not say otherwise. no-store: a 404 may be kept by a cache for as long as it likes
# (RFC 9111, 4.2.2), and an EventSource that is told it once stops for ever.
HEADERS = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
}

ALLOWED_HEADERS = ("Authorization", "Cache-Control", "Content-Type", "Last-Event-ID", "Traceparent")
EXPOSED_HEADERS = ("Retry-After", "WWW-Authenticate")


class Gate:
    """An ASGI middleware whose rules may change while it is in use: `apply`."""

    def __init__(self, config: Config) -> None:
        self._app: ASGIApp = _nowhere
        self.apply(config)

    def around(self, app: ASGIApp) -> Gate:
        """For `add_middleware`."""
        self._app = app
        return self

    def follow(self, settings: Settings) -> Callable[[], None]:
        """As a Part of the service."""
        return lambda: self.apply(settings.config)

    def apply(self, config: Config) -> None:
        cors = config.cors
        self._origins = frozenset(cors.origins)
        self._shared = CORSMiddleware(
            self._own,
            allow_origins=cors.origins,
            allow_methods=METHODS,
            allow_headers=ALLOWED_HEADERS,
            allow_credentials=cors.credentials,
            expose_headers=EXPOSED_HEADERS,
            max_age=cors.max_age,
        )
        self._way = TrustedHostMiddleware(self._by_origin, config.server.trusted_hosts, www_redirect=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._way(scope, receive, partial(_send_with_headers, send))
        else:
            await self._app(scope, receive, send)

    async def _by_origin(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Only who names an origin has to do with CORS: for others it would stand between each event and its client.
        is_of_page = any(name == b"origin" for name, _ in scope["headers"])
        await (self._shared if is_of_page else self._own)(scope, receive, send)

    async def _own(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = get_route_path(scope)
        begins_something = path.startswith("/sse") or scope["method"] not in {"GET", "HEAD"}
        if begins_something and (page := self._foreign_page(scope)):
            text = f"{page} may not use this service: name its origin under cors.origins"
            await JSONResponse({"detail": text}, 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _foreign_page(self, scope: Scope) -> str | None:
        """What page of another origin this request is of, None if of none. A browser lets any page send it, and only
        keeps the answer from it: a run that costs would have been started all the same.

        `Sec-Fetch-Site` is the browser's own word (W3C Fetch Metadata); without it, the origin is held against `Host`.
        """
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if site in {"same-origin", "none"}:
            return None
        if origin is None:
            # An <img> or a frame names no origin; what somebody follows a link to is shown as a page of its own.
            is_part = site in {"same-site", "cross-site"} and headers.get(b"sec-fetch-dest") != "document"
            return "a page of another origin" if is_part else None
        if self._origins & {origin, "*"} or (site is None and _authority(origin) == headers.get(b"host")):
            return None
        return f"a page of {origin[:MAX_SHOWN]}"


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


async def _send_with_headers(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        headers = list(message.get("headers", ()))
        said = {name.lower() for name, _ in headers}
        message["headers"] = headers + [header for header in HEADERS.items() if header[0] not in said]
    await send(message)


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's contract
    raise RuntimeError("the gate stands before no application")
