"""The response of a stream: its head and its first bytes; then an outlet has it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from sse_starlette import EventSourceResponse
from starlette.responses import JSONResponse, Response

from ..errors import FullError
from .direct import DirectOutlet
from .formats import SSE
from .portable import PortableOutlet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from starlette.types import Receive, Scope, Send

    from ..subscription import Subscription
    from .formats import Format
    from .outlet import Delivery
    from .protocol import Protocol

log = logging.getLogger("eventmux.stream")

CONNECTION = "eventmux.connection"  # an extension of the ASGI scope: {"connection": a Protocol}

HEADERS = {
    # no-transform: a proxy that compresses would hold events back until its window is full.
    "Cache-Control": "no-store, no-transform",
    "X-Content-Type-Options": "nosniff",
}


@cache
def _blank(media_type: str) -> Mapping[str, Any]:
    """What sse-starlette makes of a response without events: it is the same for all, and half the cost of one."""
    response = EventSourceResponse(iter(()), headers=HEADERS, media_type=media_type, sep="\n")
    del response.headers["Connection"]  # the server's to say: HTTP/1.0 is closed, HTTP/2 knows no such header
    return {name: value for name, value in vars(response).items() if name != "_headers"}


class EventStream(EventSourceResponse):
    """The response of a stream. sse-starlette supplies the headers and the answer to HEAD; the way of an event is ours:
    no task group, no queue, no frame made twice.

    `subscribe` is called when the response starts; the subscription is closed when it is over, however it ends.
    """

    def __init__(
        self,
        subscribe: Callable[[], Subscription],
        form: Format,
        delivery: Delivery,
        expires: float | None = None,
        opening: Callable[[], AbstractAsyncContextManager[None]] | None = None,
    ) -> None:
        """`expires`: when the client's right to the stream ends, in seconds since 1970. `opening`: in what `subscribe`
        is called, if in anything.
        """
        self.__dict__.update(_blank(form.media_type))
        self.raw_headers = list(self.raw_headers)
        self._subscribe = subscribe
        self._format = form
        self._delivery = delivery
        self._expires = expires
        self._opening = opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        extension: dict[str, Any] = (scope.get("extensions") or {}).get(CONNECTION) or {}
        connection: Protocol | None = extension.get("connection")
        try:
            if self._opening is None:
                subscription = self._begin(connection)
            else:
                async with self._opening():
                    subscription = self._begin(connection)
        except FullError as full:
            await self._turn_away(scope, receive, send, full)
        else:
            if subscription:
                await self._run(subscription, receive, send, connection)

    def _begin(self, connection: Protocol | None) -> Subscription | None:
        """None for nobody: its client has gone."""
        return None if connection and connection.is_gone else self._subscribe()

    async def _run(self, subscription: Subscription, receive: Receive, send: Send, connection: Protocol | None) -> None:
        try:
            opening = self._format.opening(subscription.cursor, self._delivery.retry) + subscription.begin()
            await self._open(send, opening, connection)
        except BaseException as error:
            subscription.close()
            if not isinstance(error, TimeoutError):
                raise
            self._delivery.cut_off()
            await self._cut_off(receive, connection)
            return
        # Only the beginning of SSE tells what a middleware would have changed: others begin with next to nothing.
        is_untouched = connection is not None and connection.has_begun(opening) and self._format.media_type == SSE
        if connection and is_untouched and self._delivery.is_direct and (taken := connection.take_over()):
            DirectOutlet(self._delivery, subscription, self._format, self._expires, taken).start()
            return
        outlet = PortableOutlet(self._delivery, subscription, self._format, self._expires, send)
        try:
            await outlet.run(receive)
        except asyncio.CancelledError:  # the grace of a shutdown is over
            if connection:
                connection.abort()
            raise
        if outlet.is_severed:
            await self._cut_off(receive, connection)

    async def _open(self, send: Send, opening: bytes, connection: Protocol | None) -> None:
        if connection:
            connection.begin()
        # Nothing stands before the first bytes on a connection but an answer that its client has not taken yet.
        waits = connection is None or connection.is_paused
        async with asyncio.timeout(self._delivery.send_timeout) if waits else contextlib.nullcontext():
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": opening, "more_body": True})

    @staticmethod
    async def _cut_off(receive: Receive, connection: Protocol | None) -> None:
        if connection is None:
            raise TimeoutError("a client took nothing")  # the server closes the connection
        connection.abort()
        with contextlib.suppress(TimeoutError):  # until the server knows it too, so that it does not miss the end
            async with asyncio.timeout(1):
                while (await receive())["type"] != "http.disconnect":
                    pass

    async def _turn_away(self, scope: Scope, receive: Receive, send: Send, full: FullError) -> None:
        """An EventSource would stop for ever at a 503: it is sent away to come back (WHATWG HTML 9.2.3). Others, who do
        not say that they want an event stream, can be told as it is.
        """
        reason = full.told
        self._delivery.meter.refused(full.refusal)
        self._delivery.notices.warning(full.refusal, "turned a client away: %s", full)
        seconds = self._delivery.jittered_retry() // 1000 + 1
        if SSE.encode() in b",".join(value for name, value in scope["headers"] if name == b"accept").lower():
            text = b": %b\n\n%b" % (reason.encode(), self._format.farewell(seconds * 1000))
            response = Response(text, 200, HEADERS, SSE)
        else:
            response = JSONResponse({"detail": reason}, 503, {"Retry-After": str(seconds)})
        await response(scope, receive, send)
