"""A TCP relay in front of a server: connections break, stall and wait in it while the server lives on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .process import PATIENCE

CHUNK = 16 * 1024
ABORTIVE = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends RST


class Relay:
    """Its methods may be called from any thread, and have been done when they return.

    It listens at `port` of 127.0.0.1, and knows nothing of what it passes on. `accepted` counts connections, those
    that were refused too.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.accepted = 0
        self._upstream = (host, port)
        self._refuses = False
        self._delay = 0.0
        self._connections: set[Connection] = set()
        self._loop: asyncio.AbstractEventLoop
        self._flows: asyncio.Event
        self._stopping: asyncio.Event

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def cut(self, *, reset: bool = True) -> None:
        """Close all connections at once: by RST, or in order, as if the bytes so far had been all."""
        self._call(lambda: self._cut(reset=reset))

    def stall(self) -> None:
        """Pass nothing on, on no connection and in no direction, until `resume`. Who hangs up is not heard."""
        self._call(self._flows.clear)

    def resume(self) -> None:
        self._call(self._flows.set)

    def delay(self, seconds: float) -> None:
        """Keep each chunk so long, in both directions; the next one waits behind it."""
        self._set("_delay", seconds)

    def refuse(self) -> None:
        """Close new connections at once, by RST, until `accept`. Old ones stay: see `cut`."""
        self._set("_refuses", value=True)

    def accept(self) -> None:
        self._set("_refuses", value=False)

    def point_at(self, host: str, port: int) -> None:
        """Lead new connections to another server. Old ones stay: see `cut`."""
        self._set("_upstream", (host, port))

    def stop(self) -> None:
        self._call(self._stopping.set)

    async def run(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._flows, self._stopping = asyncio.Event(), asyncio.Event()
        self._flows.set()
        server = await asyncio.start_server(self._accept, sock=listener, limit=CHUNK)
        ready.set()
        await self._stopping.wait()
        server.close()
        self._release()
        while self._connections:
            self._cut(reset=False)
            await asyncio.wait({connection.task for connection in self._connections})
        await server.wait_closed()

    def _call(self, function: Callable[[], object]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE)

    def _set(self, name: str, value: Any) -> None:
        self._call(lambda: setattr(self, name, value))

    def _cut(self, *, reset: bool) -> None:
        for connection in self._connections:
            connection.cut(reset=reset)

    def _release(self) -> None:
        """Let all go on that waits in the relay."""
        self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served by a task")
        connection = Connection(task)
        self._connections.add(connection)
        connection.add(writer)
        try:
            if self._refuses:
                connection.cut(reset=True)
                return
            # A server that is down is a connection that closes at once.
            with contextlib.suppress(OSError):
                upstream_reader, upstream_writer = await asyncio.open_connection(*self._upstream, limit=CHUNK)
                connection.add(upstream_writer)
                directions = [
                    asyncio.create_task(self._ask(reader, upstream_writer)),
                    asyncio.create_task(self._answer(upstream_reader, writer, connection)),
                ]
                try:
                    await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for direction in directions:
                        direction.cancel()
                    await asyncio.gather(*directions, return_exceptions=True)
        finally:
            await connection.close()
            self._connections.discard(connection)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._pass_on(reader, writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection) -> None:
        await self._pass_on(reader, writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await read(reader):
            if self._delay:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._delay)
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        await self._flows.wait()


async def read(reader: asyncio.StreamReader) -> bytes:
    """Nothing when the other side has hung up, however it did."""
    try:
        return await reader.read(CHUNK)
    except OSError:
        return b""


class Connection:
    """The two ends of a connection, and the task that serves it."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self._ends: list[asyncio.StreamWriter] = []

    def add(self, end: asyncio.StreamWriter) -> None:
        self._ends.append(end)

    def cut(self, *, reset: bool) -> None:
        for end in self._ends:
            if reset and not end.is_closing():
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORTIVE)
            end.transport.abort()

    async def close(self) -> None:
        for end in self._ends:
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()


@contextlib.contextmanager
def running(relay: Relay) -> Iterator[None]:
    """It listens on a port of its own. On leaving, all its connections are closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    relay.port = listener.getsockname()[1]
    ready = threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(relay.run(listener, ready),), name="relay")
    thread.start()
    try:
        if not ready.wait(PATIENCE):
            raise RuntimeError("the relay did not start")
        yield
    finally:
        relay.stop()
        thread.join(PATIENCE)
        if thread.is_alive():
            raise RuntimeError("the relay did not end")


@contextlib.contextmanager
def relaying(port: int, host: str = "127.0.0.1") -> Iterator[Relay]:
    """A relay in front of the server at this port."""
    relay = Relay(host, port)
    with running(relay):
        yield relay
