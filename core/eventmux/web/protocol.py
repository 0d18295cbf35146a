"""uvicorn's HTTP/1 protocol, with what a stream needs and ASGI has no word for."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .response import ABORT

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent


class Protocol(HttpToolsProtocol):
    """Lets a response abort its connection: one that is merely closed waits for the client to take what is buffered,
    which one that takes nothing never does. Sends no chunks to HTTP/1.0.
    """

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.abort}}

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.scope.get("http_version") == "1.0" and isinstance(self.cycle, RequestResponseCycle):
            self.cycle.__class__ = UnchunkedCycle

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

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            names = {bytes(name).lower() for name, _ in message.get("headers", ())}
            self.chunked_encoding = None if b"content-length" in names else False
            self._is_open_ended = self.chunked_encoding is False
        elif message["type"] == "http.response.body" and self._is_open_ended:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
