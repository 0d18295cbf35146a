"""The outlet for any ASGI server: over TLS and HTTP/2, behind any middleware, in a test client."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import types
from asyncio.tasks import _enter_task, _leave_task
from typing import TYPE_CHECKING, Any

from .outlet import PIECE, Outlet

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from starlette.types import Receive, Send

    from ..step import Piece
    from ..subscription import Subscription
    from .formats import Format
    from .outlet import Delivery


class PortableOutlet(Outlet):
    """Calls the server's `send` for every write, without waking a task for it: the coroutine is driven in place, as the
    outlet's own task and in its context (docs.python.org, Extending asyncio: _enter_task). Where it waits, because the
    client takes nothing, that task goes on with it.
    """

    __slots__ = ("_blocked", "_context", "_error", "_loop", "_send", "_wake", "_writer", "is_severed")

    def __init__(
        self, delivery: Delivery, subscription: Subscription, form: Format, expires: float | None, send: Send
    ) -> None:
        super().__init__(delivery, subscription, form, expires)
        self.is_severed = False
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._wake: asyncio.Future[None] = self._loop.create_future()
        self._blocked: tuple[Coroutine[Any, Any, None], Any] | None = None
        self._error: BaseException | None = None

    async def run(self, receive: Receive) -> None:
        """Return when the stream has ended or the client has gone. Raises what `send` raises."""
        self._writer = self._loop.create_task(self._write_on(), name="eventmux writer", context=self._context)
        request = asyncio.current_task()
        assert request is not None  # noqa: S101 - a server runs an application in a task
        is_receiving = True

        def written(_: asyncio.Task[None]) -> None:
            if is_receiving:
                request.cancel()  # nobody else may tell `receive` that all is sent

        self._writer.add_done_callback(written)
        try:
            self.start()
            while (await receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            if not self._writer.done() or request.uncancel():
                raise
        finally:
            is_receiving = False
            self.close()
            self._writer.cancel()
            await asyncio.wait({self._writer})
            if self._blocked:
                self._blocked[0].close()
        if not self._writer.cancelled():
            with contextlib.suppress(OSError):  # how a server may say that the client has gone (ASGI 2.4)
                self._writer.result()

    def write(self, piece: Piece, now: float) -> bool:
        self._wrote = now
        body = piece.body
        if asyncio.current_task() is not None:  # a task ends the stream: only from the loop itself can we be another
            self._rest = memoryview(body)
            self._hand_over()
            return False
        if len(body) <= PIECE:
            return self._drive(body)
        self._rest = memoryview(body)
        while self._rest:
            if not self._drive(self._next()):
                return False
        return True

    def _next(self) -> bytes:
        piece, self._rest = bytes(self._rest[:PIECE]), self._rest[PIECE:]
        return piece

    def _drive(self, body: bytes) -> bool:
        """Send it; False if that must wait."""
        _enter_task(self._loop, self._writer)
        try:
            self._blocked = self._context.run(_begin, self._send, body)
        except StopIteration:
            return True
        except BaseException as error:  # noqa: BLE001 - the writer raises it where the server sees it
            self._error = error
        finally:
            _leave_task(self._loop, self._writer)
        self._hand_over()
        return False

    def _hand_over(self) -> None:
        self._fill()
        if not self._wake.done():
            self._wake.set_result(None)

    async def _write_on(self) -> None:
        """Write what had to wait, whenever there is something, until the end."""
        while True:
            await self._wake
            self._wake = self._loop.create_future()
            if self._error:
                raise self._error
            if self._blocked:
                blocked, self._blocked = self._blocked, None
                await _rest_of(*blocked)
            while self._rest:
                self._full_since = self._loop.time()
                await self._send({"type": "http.response.body", "body": self._next(), "more_body": True})
            if self._last is not None:
                self._full_since = self._loop.time()
                await self._send({"type": "http.response.body", "body": self._last, "more_body": False})
                return
            self._is_full = False
            self._subscription.resume()

    def _finish(self) -> None:
        self._hand_over()

    def _sever(self) -> None:
        self.is_severed = True
        self._writer.cancel()


def _begin(send: Send, body: bytes) -> tuple[Coroutine[Any, Any, None], Any]:
    """Begin to send; what is left of it, and what it waits for. StopIteration if it is done."""
    sending = send({"type": "http.response.body", "body": body, "more_body": True})
    return sending, sending.send(None)  # type: ignore[attr-defined,return-value] # a coroutine


@types.coroutine
def _rest_of(sending: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """The rest of a coroutine that waits for `waits_for`."""
    try:
        while True:
            try:
                got = yield waits_for
            except BaseException as error:  # noqa: BLE001 - handed on
                waits_for = sending.throw(error)
            else:
                waits_for = sending.send(got)
    except StopIteration:
        return
