"""uvicorn's HTTP/1 protocol, with what a stream needs and ASGI has no word for."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .response import ABORT

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGISendEvent


SEND_BUFFER = 128 * 1024  # bytes; the kernel takes twice that, for its own bookkeeping (socket(7))


class Protocol(HttpToolsProtocol):
    """Lets a response abort its connection: one that is merely closed waits for the client to take what is buffered,
    which one that takes nothing never does. Sends no chunks to HTTP/1.0. Tells the response under way that its client
    has gone, also where another request is queued behind it; uvicorn 0.54 would tell only the last one.
    """

    _running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn
        super().connection_made(transport)
        # By default 64 KiB wait in the process for a client that takes nothing, beside what the kernel buffers: 1,000
        # were 86 MB more than 1,000 idle ones (bench/stalled.py). What cannot be sent waits in the history instead.
        transport.set_write_buffer_limits(high=0)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            # The kernel would grow to megabytes for a client that reads slowly, and is writable again only when a third
            # of that has been taken: such a client would be cut off by `send_timeout` although it reads all the time.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.abort}}

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.scope is self.scope and self.scope["http_version"] != "1.1":
            cycle.__class__ = UnchunkedCycle

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def abort(self) -> None:
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            # Else the kernel would keep what it has buffered, megabytes, for a client that takes nothing.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


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
