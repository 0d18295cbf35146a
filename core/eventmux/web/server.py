"""uvicorn, as `eventmux serve` runs it: on a socket bound before anything else, and drained before it waits."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator

import uvicorn
from fastapi import FastAPI

from ..config import ServerConfig
from ..hub import Hub
from .protocol import Protocol

log = logging.getLogger("eventmux.server")


class Server(uvicorn.Server):
    """Ends the streams before uvicorn waits for their connections to close, and exits 0 after a signal."""

    def __init__(self, config: uvicorn.Config, hub: Hub, *, owns_process: bool) -> None:
        super().__init__(config)
        self._hub = hub
        self._owns_process = owns_process

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve(sockets)
        if self._owns_process and self._hub.abandoned:
            # asyncio would wait for ever for a generator that swallows its cancellation.
            log.warning("exit without waiting for %d generators that do not close", self._hub.abandoned)
            logging.shutdown()
            os._exit(0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hub.drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn does, but without raising the signal again: a requested end is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError for a port in use, which uvicorn itself would only log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=2048)
    # Inherited by its connections. asyncio sets it where a socket says that its protocol is TCP, which these do not:
    # what follows a write would wait for the client's acknowledgement, 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def make_server(app: FastAPI, config: ServerConfig, *, owns_process: bool = False) -> Server:
    """`owns_process`: whether the server may end the process where a generator would not let it."""
    return Server(
        uvicorn.Config(
            app,
            http=Protocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(config.grace)),
        ),
        app.state.hub,
        owns_process=owns_process,
    )
