"""uvicorn's HTTP/1 protocol, with what a stream needs and ASGI has no word for."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from ..step import Piece
from .arrival import Arriving
from .direct import Taken, abort
from .response import CONNECTION

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn._types import ASGI3Application, ASGISendEvent

    from ..config import ServerConfig

SEND_BUFFER = 128 * 1024  # bytes; the kernel takes twice that, for its own bookkeeping (socket(7))
STARTS = 16  # requests per turn of the loop; one is about a quarter of a millisecond


class Protocol(Arriving):
    """The connection of a stream: an extension of its scope, by which the response bounds what is buffered for its
    client, takes it over, or aborts it.

    Sends no chunks to HTTP/1.0. Tells the response under way that its client has gone, also where another request is
    queued behind it; uvicorn 0.54 would tell only the last one.
    """

    _is_bounded = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: {"connection": self}}

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.scope is self.scope and self.scope["http_version"] != "1.1":
            cycle.__class__ = UnchunkedCycle

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        starts: Starts = vars(self.server_state).setdefault("starts", Starts())  # one for all connections of a server
        starts.add(partial(super()._start_asgi_task, cycle, app))

    def on_response_complete(self) -> None:
        if self._is_bounded:
            self.transport.set_write_buffer_limits()
            self._is_bounded = False
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def abort(self) -> None:
        """End the connection now, whatever is still to be sent."""
        abort(self.transport)

    def begin(self) -> None:
        """A stream begins: bound what waits for its client, in the process and in the kernel."""
        transport = self.transport
        if self.is_gone:
            return
        # By default 64 KiB wait in the process for a client that takes nothing, beside what the kernel buffers: 1,000
        # were 86 MB more than 1,000 idle ones (bench/stalled.py). What cannot be sent waits in the history instead.
        # (TLS counts otherwise, and would pause at 0 bytes.)
        transport.set_write_buffer_limits(high=int(self.scheme == "https"))
        self._is_bounded = True
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            # The kernel would grow to megabytes for a client that reads slowly, and is writable again only when a third
            # of that has been taken: such a client would be cut off by `send_timeout` although it reads all the time.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if self._running:
            self._running.transport = Tap(transport)  # type: ignore[assignment] # as far as it is used

    @property
    def is_gone(self) -> bool:
        """Whether the client has left; then uvicorn misses no answer to it."""
        cycle = self._running
        if cycle and self.transport.is_closing():
            cycle.disconnected = True
        return cycle is None or cycle.disconnected

    @property
    def is_paused(self) -> bool:
        """Whether there are bytes that the client has not taken yet."""
        return bool(self.flow.write_paused)

    def has_begun(self, opening: bytes) -> bool:
        """The head and the body's beginning have been sent. False if something else has come out here: then there is
        somebody between who changes what passes.
        """
        cycle = self._running
        if cycle is None or not isinstance(tap := cycle.transport, Tap):
            return False
        cycle.transport = self.transport
        tap.flush()
        return tap.has_passed(Piece(opening).chunk if cycle.chunked_encoding else opening)

    def take_over(self) -> Taken | None:
        """Give the connection away; None if something stands in the way of writing to it."""
        cycle, transport = self._running, self.transport
        if (
            cycle is None
            or cycle is not self.cycle
            or cycle.scope is not self.scope  # a second request has begun
            or cycle.disconnected
            or cycle.response_complete
            or cycle.more_body  # what is still to come of this request is no next one
            or transport.is_closing()
        ):
            return None
        is_chunked = bool(cycle.chunked_encoding)
        keeps_alive = is_chunked and cycle.keep_alive
        self.connections.discard(self)
        self.flow.resume_reading()
        taken = Taken(transport, is_chunked, self.server_state, _Return(self) if keeps_alive else None)
        # uvicorn must neither miss the end of the response nor write to the connection.
        cycle.disconnected = True
        cycle.message_event.set()
        cycle.scope["extensions"] = {}
        self._running = self.cycle = self.parser = self.scope = None  # type: ignore[assignment] # as uvicorn begins
        return taken


def protocol_of(server: ServerConfig) -> type[asyncio.Protocol]:
    """What a new connection is given to."""
    bounds = {"request_timeout": server.request_timeout}
    http1 = type("Protocol", (Protocol,), bounds)
    if not server.http2:
        return http1
    from .http2 import Http2, Negotiating  # noqa: PLC0415 - zttp is installed with an extra only

    http2 = type("Http2", (Http2,), bounds)
    return type("Negotiating", (Negotiating,), {**bounds, "http1": http1, "http2": http2})


class Starts:
    """Begins requests, a few per turn of the loop: when thousands come back at once, those who stayed get their events
    in between, and not when all have been answered.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def add(self, start: Callable[[], None]) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        self._waiting.append(start)

    def _turn(self) -> None:
        try:
            for _ in range(min(STARTS, len(self._waiting))):
                self._waiting.popleft()()
        finally:
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._turn)


class _Return:
    """Makes a connection uvicorn's again, as it would be after a response: for the next request, or its time-out."""

    __slots__ = ("_app_state", "_config", "_kind", "_state")

    def __init__(self, protocol: Protocol) -> None:
        self._kind = type(protocol)
        self._config = protocol.config
        self._state = protocol.server_state
        self._app_state = protocol.app_state

    def __call__(self, transport: asyncio.Transport, early: bytes) -> None:
        loop = asyncio.get_running_loop()
        protocol = self._kind(self._config, self._state, self._app_state, loop)
        transport.set_write_buffer_limits()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.stop_waiting()  # it is one that has had a request, and is idle now
        transport.resume_reading()
        if early:
            protocol.data_received(early)
        else:
            protocol.timeout_keep_alive_task = loop.call_later(
                protocol.timeout_keep_alive, protocol.timeout_keep_alive_handler
            )


class Tap:
    """Stands before a transport while its response begins: sees what passes, and joins the head to what follows."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._body: list[bytes] = []
        self._is_held = True

    def write(self, data: bytes) -> None:
        if not self._head:
            self._head = data
            return
        self._body.append(data)
        self.flush(data)

    def flush(self, data: bytes = b"") -> None:
        """Let go the head, and write `data` behind it."""
        if self._is_held:
            self._is_held, data = False, self._head + data
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        self.flush()
        return getattr(self._transport, name)

    def has_passed(self, beginning: bytes) -> bool:
        """Whether that is what came after the head, and nothing else."""
        return bool(self._head) and b"".join(self._body) == beginning and b"\r\ncontent-encoding:" not in self._head


class UnchunkedCycle(RequestResponseCycle):
    """A body of unknown length ends with the connection: HTTP/1.0 knows no Transfer-Encoding (RFC 9112, 6.1), and
    uvicorn 0.54 sends it all the same.
    """

    _is_open_ended = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            names = {bytes(name).lower() for name, _ in message.get("headers", ())}
            self.chunked_encoding = None if b"content-length" in names else False
            self._is_open_ended = self.chunked_encoding is False
        elif message["type"] == "http.response.body" and self._is_open_ended:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
