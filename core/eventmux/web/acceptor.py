"""Accepts connections from a socket that other workers accept from, too. What is done with them is not known here."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

log = logging.getLogger("eventmux.server")

AT_ONCE = 1  # else one worker may take all that come back after a restart (decision 17)
PAUSE = 1.0  # seconds, when there is no descriptor left for another connection


class Acceptor:
    """In place of asyncio's server, which takes all that wait. It begins at once. `options`: of TLS.

    A busy worker comes to it later than an idle one, which therefore gets more.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        make: Callable[[], asyncio.BaseProtocol],
        options: dict[str, Any],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._make = make
        self._options = options
        self._arriving: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)  # noqa: FBT003 - as the socket has it
        self._go_on()

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        if self._pause:
            self._pause.cancel()

    def _go_on(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another worker was faster, or the client has gone
            except OSError as error:
                log.warning("no connection can be accepted for a moment: %s", error.strerror)
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(PAUSE, self._go_on)
                return
            connection.setblocking(False)  # noqa: FBT003
            task = self._loop.create_task(self._connect(connection), name="eventmux connection")
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection, **self._options)
        except (OSError, TimeoutError) as error:  # ssl.SSLError is one: a scan, or a client that does not trust us
            log.debug("a connection has not come about: %s", error)
