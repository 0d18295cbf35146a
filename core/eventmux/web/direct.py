"""The outlet that has taken over its connection: uvicorn's request, scope, parser and task are freed; this stays."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from ..step import Piece
from .outlet import PIECE, Outlet

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.server import ServerState

    from ..subscription import Subscription
    from .formats import Format
    from .outlet import Delivery

EARLY = 64 * 1024  # bytes of a next request that wait for the end of the stream; then no more is read


class Taken(NamedTuple):
    """A connection that has been taken over. `give_back` makes it the server's again, with what the client has sent
    early; None where it ends with the response. `state` is the server's account of its connections and requests.
    """

    transport: asyncio.Transport
    is_chunked: bool
    state: ServerState
    give_back: Callable[[asyncio.Transport, bytes], None] | None


class DirectOutlet(Outlet, asyncio.Protocol):
    """Writes to the socket itself while nothing is buffered, so one call of the kernel is nearly all that an event
    costs; what the kernel does not take goes through the transport, which tells when it is gone.

    The transport's high-water mark is 0: not full means that nothing is buffered. Under TLS all goes through it.
    """

    __slots__ = ("_early", "_fd", "_give_back", "_is_chunked", "_is_done", "_state", "_transport")

    def __init__(
        self, delivery: Delivery, subscription: Subscription, form: Format, expires: float | None, taken: Taken
    ) -> None:
        Outlet.__init__(self, delivery, subscription, form, expires)
        self._transport = transport = taken.transport
        self._is_chunked = taken.is_chunked
        self._state = taken.state
        self._give_back = taken.give_back
        self._early = b""
        is_tls = transport.get_extra_info("sslcontext") is not None
        self._fd = -1 if is_tls else transport.get_extra_info("socket").fileno()
        self._state.connections.add(self)  # type: ignore[arg-type] # it has all that is asked of a protocol
        transport.set_protocol(self)
        self._is_done = False
        if transport.get_write_buffer_size():
            self._fill()

    def write(self, piece: Piece, now: float) -> bool:
        self._wrote = now
        data: bytes | memoryview = piece.chunk if self._is_chunked else piece.body
        # A descriptor is another connection's once it is closed: nothing may come between these two lines.
        if self._is_full or self._transport.is_closing():
            return self._keep(data)
        if self._fd >= 0:
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:  # the client has gone; `connection_lost` is to come
                self._transport.abort()
                return False
            if sent == len(data):
                return True
            data = memoryview(data)[sent:]
        return self._keep(data)

    def _keep(self, data: bytes | memoryview) -> bool:
        self._rest = memoryview(b"".join((self._rest, data)) if self._rest else data)
        return self._push()

    def _push(self) -> bool:
        """Hand over what is left, until the transport says stop; whether there may come more."""
        while self._rest and not self._is_full:
            if self._transport.is_closing():
                self._rest = b""
                return False
            piece, self._rest = self._rest[:PIECE], self._rest[PIECE:]
            self._transport.write(piece)
        return not self._is_full

    def _finish(self) -> None:
        if self._is_full or self._rest or self._last is None or self._is_done:
            return
        self._is_done = True
        data = self._last
        if self._is_chunked:
            data = Piece(data).chunk + b"0\r\n\r\n"
        self._subscription.close()
        self._state.total_requests += 1
        if not self._transport.is_closing():
            self._transport.write(data)
            if self._give_back is None:
                self._transport.close()  # when all is sent, or when it is cut off because it is not
            elif not self._is_full:
                self._return()

    def _return(self) -> None:
        """The connection is the server's again."""
        self.close()
        self._state.connections.discard(self)
        if self._give_back:
            self._give_back(self._transport, self._early)

    def _sever(self) -> None:
        abort(self._transport)

    def abort(self) -> None:
        """As a protocol of ours."""
        abort(self._transport)

    def shutdown(self) -> None:
        """As uvicorn calls it: no other request on this connection."""
        self._give_back = None

    def data_received(self, data: bytes) -> None:
        if self._give_back:
            self._early += data
            if len(self._early) > EARLY:
                self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._fill()

    def resume_writing(self) -> None:
        self._is_full = False
        if not self._push():
            return
        if self._last is None:
            self._subscription.resume()
        elif not self._is_done:
            self._finish()
        elif self._give_back:
            self._return()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio calls it
        self._state.connections.discard(self)
        self._rest = b""
        self.close()


def abort(transport: asyncio.Transport) -> None:
    """End the connection and all that is buffered for it, the kernel's part too: a client that takes nothing would
    keep it, megabytes of it, for as long as it likes.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
