"""HTTP/2 by uvicorn's protocol on zttp, with what it lacks for streams: back-pressure, and bounds for what dawdles.

A connection is HTTP/2 by ALPN over TLS, or by the preface in cleartext (RFC 9113, 3.2 and 3.3); any other is our own
HTTP/1.1, direct streams included. On HTTP/2 all streams are portable: their frames are in turn with others'.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import zttp
from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol
from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle, ZttpH2Protocol

from .direct import abort
from .response import CONNECTION

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

    from .protocol import Protocol

MAX_STREAMS = 256  # requests under way on a connection; zttp 0.0.35 takes any number


class Http2(ZttpH2Protocol):
    """A connection of HTTP/2. What a client does not take of one stream waits in this stream's `send`, as with
    HTTP/1.1; uvicorn 0.54 would let zttp keep it, without a bound.
    """

    request_timeout: float
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        self._wake()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._wake()
        if not self.cycles and self._late is None:
            self._wait_for_request()

    def handle_request(self, event: zttp.Request) -> None:
        self._stop_waiting()
        if len(self.cycles) >= MAX_STREAMS:
            self.conn.stream(event.stream_id).reset(zttp.H2ErrorCode.REFUSED_STREAM)
            return
        super().handle_request(event)
        cycle = self.cycles[event.stream_id]
        cycle.__class__ = Http2Cycle
        cycle.begin_request(self.request_timeout, is_whole=event.end_stream)  # type: ignore[attr-defined] # it is one now

    def handle_rst_stream(self, event: zttp.RstStream) -> None:
        cycle = self.cycles.get(event.stream_id)
        super().handle_rst_stream(event)
        if isinstance(cycle, Http2Cycle):
            cycle.wake()

    def abort(self) -> None:
        """End the connection now, whatever is still to be sent."""
        abort(self.transport)

    def _wake(self) -> None:
        for cycle in list(self.cycles.values()):
            if isinstance(cycle, Http2Cycle):
                cycle.wake()

    def _wait_for_request(self) -> None:
        """A connection without a request under way ends, whatever else it sends: uvicorn waits anew at each byte."""
        self._late = self.loop.call_later(self.request_timeout, self._too_late)

    def _stop_waiting(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if not self.cycles:
            self._close_connection()


class Http2Cycle(RequestResponseCycle):
    """A request and its response. It is also the connection of its stream, as `Protocol` is with HTTP/1.1."""

    _room: asyncio.Event
    _late: asyncio.TimerHandle | None

    def begin_request(self, seconds: float, *, is_whole: bool) -> None:
        self.more_body = self.more_body and not is_whole
        self._room = asyncio.Event()
        self._late = None if is_whole else asyncio.get_running_loop().call_later(seconds, self._too_late)
        self.scope["extensions"] = {**(self.scope.get("extensions") or {}), CONNECTION: {"connection": self}}

    def _too_late(self) -> None:
        if self.more_body and not self.response_complete:
            self.abort()

    def wake(self) -> None:
        """Something has come: perhaps a WINDOW_UPDATE."""
        if self.disconnected or not self.stream.pending_bytes:
            self._room.set()
        if self._late and not self.more_body:
            self._late.cancel()
            self._late = None

    async def send(self, message: ASGISendEvent) -> None:
        while not self.disconnected and self.response_started and self.stream.pending_bytes:
            self._room.clear()
            await self._room.wait()
        await super().send(message)

    # As EventStream asks a connection

    @property
    def is_gone(self) -> bool:
        return self.disconnected

    @property
    def is_paused(self) -> bool:
        return bool(self.flow.write_paused)

    def begin(self) -> None:
        pass

    def has_begun(self, opening: bytes) -> bool:  # noqa: ARG002 - as in Protocol
        return False

    def take_over(self) -> None:
        return None

    def abort(self) -> None:
        """End this stream now, and no other on its connection."""
        if not self.disconnected:
            self.abort_stream()
            self.disconnected = True
        self.message_event.set()
        self._room.set()


class Negotiating(AutoZttpProtocol):
    """A connection of which it is not known yet what it speaks."""

    request_timeout: float
    http1: type[Protocol]
    http2: type[Http2]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.timeout_task:
            self.timeout_task.cancel()
            self.timeout_task = self.loop.call_later(self.request_timeout, transport.close)

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:  # noqa: FBT001 - as uvicorn calls it
        kind: Any = self.http2 if http2 else self.http1
        protocol = kind(self.config, self.server_state, self.app_state, self.loop)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)

    def abort(self) -> None:
        abort(self.transport)
