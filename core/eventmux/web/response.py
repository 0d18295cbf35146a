"""A subscription written to an ASGI server: headers, entries, heartbeats, the end. What it reads is not known here."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from sse_starlette import EventSourceResponse
from starlette.responses import JSONResponse, Response

from ..errors import FullError
from .alarm import Alarm
from .formats import SSE

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from ..config import ServerConfig
    from ..subscription import Subscription
    from .formats import Format

log = logging.getLogger("eventmux.stream")

ABORT = "eventmux.abort"  # an extension of the ASGI scope: {"abort": a function that ends the connection now}

PIECE = 8 * 1024  # bytes handed to the server at a time

HEADERS = {
    # no-transform: a proxy that compresses would hold events back until its window is full.
    "Cache-Control": "no-store, no-transform",
    "X-Content-Type-Options": "nosniff",
}


class EventStream(EventSourceResponse):
    """The response of a stream. sse-starlette supplies the headers and the answer to HEAD; the way of an event is ours:
    no task group, no queue, no frame made twice.

    `subscribe` is called when the response starts, `unsubscribe` when it is over, however it ends.
    """

    def __init__(
        self,
        subscribe: Callable[[], Subscription],
        unsubscribe: Callable[[Subscription], None],
        form: Format,
        server: ServerConfig,
    ) -> None:
        super().__init__(iter(()), headers=HEADERS, media_type=form.media_type, ping=server.heartbeat, sep="\n")
        del self.headers["Connection"]  # the server's to say: HTTP/1.0 is closed, HTTP/2 knows no such header
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self._format = form
        self._server = server
        self._is_gone = False
        self._is_late = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a server runs an application in a task
        self._task = task
        try:
            subscription = self._subscribe()
        except FullError as full:
            await self._turn_away(scope, receive, send, str(full))
            return
        watch = asyncio.create_task(self._watch(receive, subscription), name="eventmux disconnect")
        self._alarm = Alarm()
        try:
            await self._stream(send, subscription)
        except asyncio.CancelledError:
            if not self._is_late or self._task.uncancel():
                raise
            await self._cut_off(scope, watch)
        finally:
            self._alarm.stop()
            self._unsubscribe(subscription)
            watch.cancel()
            await asyncio.wait({watch})

    async def _cut_off(self, scope: Scope, watch: asyncio.Task[None]) -> None:
        log.warning("a client took nothing for %g seconds: cut off", self._server.send_timeout)
        extensions = scope.get("extensions") or {}
        if ABORT not in extensions:
            raise TimeoutError("a client took nothing")  # the server closes the connection
        extensions[ABORT]["abort"]()
        await asyncio.wait({watch}, timeout=1)  # until the server knows it too, so that it does not miss the end

    async def _turn_away(self, scope: Scope, receive: Receive, send: Send, reason: str) -> None:
        """An EventSource would stop for ever at a 503: it is sent away to come back (WHATWG HTML 9.2.3)."""
        log.warning("turned a client away: %s", reason)
        seconds = self._jittered_retry() // 1000 + 1
        if self._format.media_type == SSE:
            text = b": %b\n\n%b" % (reason.encode(), self._format.farewell(seconds * 1000))
            response = Response(text, 200, HEADERS, SSE)
        else:
            response = JSONResponse({"detail": reason}, 503, {"Retry-After": str(seconds)})
        await response(scope, receive, send)

    async def _watch(self, receive: Receive, subscription: Subscription) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        subscription.wake()

    async def _stream(self, send: Send, subscription: Subscription) -> None:
        form = self._format
        self._alarm.set(asyncio.get_running_loop().time() + self._server.send_timeout, self._give_up)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._write(send, form.opening(subscription.cursor, self._server.retry))
        now = asyncio.get_running_loop().time
        heartbeat = now() + self._server.heartbeat
        while not self._is_gone:
            chunk = form.read(subscription)
            if not chunk and now() >= heartbeat:
                chunk = form.heartbeat(subscription.cursor)
            if chunk:
                await self._write(send, chunk)
                heartbeat = now() + self._server.heartbeat
            if subscription.is_over or subscription.is_drained:
                break
            self._alarm.set(heartbeat, subscription.wake)
            await subscription.wait()
        if self._is_gone:
            return
        end = form.farewell(self._jittered_retry()) if subscription.is_drained and not subscription.is_over else b""
        await self._write(send, end + form.closing(), more=False)

    async def _write(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """In pieces, because the time-out is for one that takes nothing, not for one that takes much slowly."""
        now = asyncio.get_running_loop().time
        for start in range(0, max(1, len(body)), PIECE):
            end = start + PIECE
            piece = body if len(body) <= PIECE else body[start:end]
            self._alarm.set(now() + self._server.send_timeout, self._give_up)
            await send({"type": "http.response.body", "body": piece, "more_body": more or end < len(body)})

    def _give_up(self) -> None:
        self._is_late = True
        self._task.cancel()

    def _jittered_retry(self) -> int:
        """Clients that are sent away together must not come back together."""
        return int(self._server.retry * random.uniform(1, 3))  # noqa: S311 - not a secret
