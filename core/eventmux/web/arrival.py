"""How requests of HTTP/1 arrive: in time, and not larger or more than a service of streams has a use for.

uvicorn 0.54 with httptools bounds none of it: a client may take all day for a header, and send gigabytes of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ..config import ServerConfig
from .direct import abort
from .gate import HEADERS

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

MAX_HEAD = 64 * 1024  # bytes of a request's line and headers, about twice what other servers take
MAX_PIPELINE = 128  # requests that wait for the response under way, of a chunk that has been read; no browser sends any


class Arriving(HttpToolsProtocol):
    """`request_timeout`: seconds for a head to be whole, from the connection's beginning, or from its first byte on one
    that was idle; and then for the body. One timer per request, which most requests cancel in the turn of the loop in
    which they have come.
    """

    request_timeout = ServerConfig().request_timeout
    _running: RequestResponseCycle | None = None
    _timer: asyncio.TimerHandle | None = None
    _is_in_head = False
    _head = 0  # bytes of it before those that are read now
    _now = 0  # bytes that are read now
    _has_begun_now = False  # whether the head's first byte is among them

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # asyncio's transports do not read on; those of TLS may have something left
        if self._timer is None and not self._has_body_to_come:
            self._wait()
        self._now, self._has_begun_now = len(data), False
        super().data_received(data)
        if self._is_in_head and not self._has_begun_now:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(431)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINE:
            raise ValueError("too many requests at a time")  # httptools makes an error of it, as of one of its own
        super().on_message_begin()
        self._is_in_head = self._has_begun_now = True

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        size, self._head = self._head + self._now, 0
        if size > MAX_HEAD and len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            headers = {name.decode(): value.decode() for name, value in HEADERS.items()}
            self.app = PlainTextResponse("Request Header Fields Too Large", 431, {**headers, "connection": "close"})
        self._wait()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:  # uvicorn would read on: with each response that is sent, requests for many more
            self.flow.pause_reading()

    def send_400_response(self, msg: str) -> None:
        """Not in the midst of another response."""
        self._refuse(400, msg)

    def _unsupported_upgrade_warning(self) -> None:
        """No word: a server may ignore an Upgrade (RFC 9110, 7.8)."""

    @property
    def _has_body_to_come(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and cycle.more_body

    def _wait(self) -> None:
        self.stop_waiting()
        self._timer = self.loop.call_later(self.request_timeout, self._too_late)

    def stop_waiting(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        cycle, running = self.cycle, self._running
        is_answering = running is not None and not running.response_complete
        if self.flow.read_paused or (is_answering and running is not cycle):
            self._wait()  # it is not the client that lingers
        elif self._is_in_head and is_answering:
            self._wait()
        elif self._is_in_head or (self._has_body_to_come and not cycle.response_complete):
            self._refuse(408)
        elif not is_answering:  # nothing has come, or the rest of a body that has its answer
            self.transport.close()

    def _refuse(self, status: int, text: str = "") -> None:
        self.stop_waiting()
        running = self._running
        cycle: RequestResponseCycle | None = self.cycle
        if running and not running.response_complete and (running is not cycle or running.response_started):
            abort(self.transport)  # what would come is no part of that response
            return
        if cycle and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        body = (text or STATUS_LINE[status][13:-2].decode()).encode()
        lines = [STATUS_LINE[status]]
        headers: list[Any] = [
            *self.server_state.default_headers,
            *HEADERS.items(),
            (b"content-type", b"text/plain; charset=utf-8"),
        ]
        headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        lines += [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([*lines, b"\r\n", body]))
        self.transport.close()
