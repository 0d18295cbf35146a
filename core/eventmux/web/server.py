"""uvicorn, as `eventmux serve` runs it: on a socket bound before anything else, and drained before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from ..config import ServerConfig
from ..service import Service
from ..tls import context_of
from .acceptor import Acceptor
from .protocol import protocol_of
from .sockets import bind, guard

__all__ = ["Server", "bind", "make_server"]

log = logging.getLogger("eventmux.server")

AT_ONCE = 0.9  # seconds in which everything ends after a second signal
POLL = 0.02  # seconds


class Server(uvicorn.Server):
    """Ends as DESIGN 7.6 says: unready first; then the streams, with a time to come back; then generators and lifespan.
    All within `drain_delay` and `grace`, and with exit code 0. A second signal ends at once.

    `owns_process`: whether it may end the process where a generator, or one that blocks the loop, would not let it.
    `is_shared`: whether other processes accept from its socket, too. `on_start`: called once it serves.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        *,
        owns_process: bool,
        is_shared: bool,
        on_start: Callable[[], None] | None,
    ) -> None:
        super().__init__(config)
        self._hub = service.hub
        self._service = service
        self._owns_process = owns_process
        self._is_shared = is_shared
        self._on_start = on_start
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def _settings(self) -> ServerConfig:
        return self._service.settings.config.server

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)
        if self._owns_process and self._hub.abandoned:
            # asyncio would wait for ever for a generator that swallows its cancellation.
            _exit(f"exit without waiting for {self._hub.abandoned} generators that do not close")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, but with bounds for the time of a TLS handshake and of its end. Raises ConfigError for a
        store that cannot be used.
        """
        if not sockets:  # a path or a port in the configuration, which `eventmux serve` does not use
            await super().startup(sockets)
            return
        await self._service.hub.open()  # else what is wrong with the store would be said as a traceback of the lifespan
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SystemExit(STARTUP_FAILURE)
        config, settings = self.config, self._settings
        protocol = cast("Any", config.http_protocol_class)
        make = partial(protocol, config=config, server_state=self.server_state, app_state=self.lifespan.state)
        bounds: dict[str, Any] = {
            "ssl_handshake_timeout": settings.request_timeout,
            "ssl_shutdown_timeout": min(5.0, settings.grace),
        }
        self.servers = []
        loop = asyncio.get_running_loop()
        tls = {"ssl": config.ssl, **bounds} if config.ssl else {}
        for sock in sockets:
            guard(sock, settings)
            if self._is_shared:
                self.servers.append(cast("Any", Acceptor(loop, sock, make, tls)))
            else:
                self.servers.append(await loop.create_server(make, sock=sock, backlog=config.backlog, **tls))
        self.started = True
        if self._on_start:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal calls it
        if self.force_exit:
            return  # else each signal more would begin the time anew in which all ends
        self.force_exit, self.should_exit = self.should_exit, True
        self._hub.announce()
        seconds = AT_ONCE if self.force_exit else self._settings.drain_delay + self._settings.grace
        if self._owns_process:  # also where the loop is blocked, and nothing else of ours runs
            signal.setitimer(signal.ITIMER_REAL, seconds)
        if self.force_exit and self._loop:
            self._loop.call_soon_threadsafe(self._hub.hurry, AT_ONCE / 2)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """In place of uvicorn's, which waits for the connections and has no word for the application meanwhile, and
        forgets the lifespan after a second signal.
        """
        self._hub.announce()
        await self._until(lambda: False, self._settings.drain_delay)
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()
        grace, state = self._settings.grace, self.server_state
        reserve = min(1.0, grace / 4)  # for what comes after the streams
        if not self.force_exit:
            self._hub.hurry(grace - reserve / 2)
            self._hub.drain()
            for connection in list(state.connections):
                connection.shutdown()
            await self._until(lambda: not state.connections and not state.tasks, grace - reserve)
        with _without_cancelled_requests():
            await self._cut_off()
            await self.lifespan.shutdown()

    async def _until(self, is_done: Callable[[], bool], seconds: float) -> None:
        """Wait for it, for so long, and no longer after a second signal."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while not is_done() and not self.force_exit and loop.time() < ends:  # noqa: ASYNC110 - sets of uvicorn's
            await asyncio.sleep(min(POLL, max(0, ends - loop.time())))

    async def _cut_off(self) -> None:
        """Whoever is still there has had its time."""
        state = self.server_state
        connections: list[Any] = list(state.connections)
        if connections and not self.force_exit:
            log.warning("%d connections are cut off: the grace is over", len(connections))
        for connection in connections:
            connection.abort() if hasattr(connection, "abort") else connection.transport.abort()
        if state.tasks:
            await asyncio.wait(set(state.tasks), timeout=0.1)  # they are told that their clients have gone
        for task in list(state.tasks):
            task.cancel()
        if state.tasks:
            await asyncio.wait(set(state.tasks), timeout=0.1)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn does, but without raising the signal again: a requested end is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers: dict[int, Any] = dict.fromkeys((signal.SIGINT, signal.SIGTERM), self.handle_exit)
        if self._owns_process:
            handlers[signal.SIGALRM] = lambda *_: _exit("exit: the service took longer to end than it may")
        before = {sig: signal.signal(sig, handler) for sig, handler in handlers.items()}
        try:
            yield
        finally:
            if self._owns_process:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for sig, handler in before.items():
                signal.signal(sig, handler)


def _exit(reason: str) -> None:
    with contextlib.suppress(RuntimeError):  # a signal may come in the middle of a line
        log.warning(reason)
        logging.shutdown()
    os._exit(0)


@contextlib.contextmanager
def _without_cancelled_requests() -> Generator[None, None, None]:
    """Uvicorn logs a request that is cancelled as a failure of the application, with a traceback."""

    def is_other(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))

    logger = logging.getLogger("uvicorn.error")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def make_server(
    app: FastAPI,
    config: ServerConfig,
    *,
    owns_process: bool = False,
    is_shared: bool = False,
    on_start: Callable[[], None] | None = None,
) -> Server:
    """`owns_process`: whether the server may end the process where a generator would not let it. `is_shared`: whether
    other processes accept from its socket, too. `on_start`: called once it serves.
    """
    app.state.is_drained = True  # by the server; nobody needs to find out that it ends
    context = context_of(config.tls, http2=config.http2) if config.tls else None
    return Server(
        uvicorn.Config(
            app,
            http=protocol_of(config),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            forwarded_allow_ips=config.trusted_proxies,
            ssl_context_factory=(lambda *_: context) if context else None,
        ),
        app.state.service,
        owns_process=owns_process,
        is_shared=is_shared,
        on_start=on_start,
    )
