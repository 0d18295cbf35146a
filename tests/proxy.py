"""A TCP proxy in front of a service: connections break, stall and wait in it as a test says, and the service lives on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator

import httpx2

from eventsource import PATIENCE

CHUNK = 16 * 1024
METHODS = (b"GET ", b"POST ", b"HEAD ")
EVENT_STREAM = b"content-type: text/event-stream"
ABORTIVE = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends RST


class Proxy:
    """Its methods may be called from any thread, and have been done when they return.

    `requests` are the heads of all requests as they came; `accepted` counts connections. A read that begins with a method
    or with `HTTP/1.` is taken for the beginning of a request or of a response: clients and servers write so.
    """

    def __init__(self, host: str, port: int) -> None:
        self.url = ""
        self.requests: list[str] = []
        self.accepted = 0
        self._upstream = (host, port)
        self._plan: deque[int | bytes] = deque()
        self._connections: set[_Connection] = set()
        self._admitted: int | None = None
        self._loop: asyncio.AbstractEventLoop
        self._flows: asyncio.Event
        self._admits: asyncio.Event
        self._stopping: asyncio.Event

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def cuts_left(self) -> int:
        """How many of the cuts that were planned by `cut_after` no event stream has begun to wait for."""
        return len(self._plan)

    def last_event_ids(self) -> list[str | None]:
        """The `Last-Event-ID` of each request."""
        fields = [dict(line.lower().split(": ", 1) for line in head.splitlines()[1:]) for head in self.requests]
        return [headers.get("last-event-id") for headers in fields]

    def cut(self, *, reset: bool = True) -> None:
        """Close all connections at once: by RST, or in order, as if the bytes so far had been all."""
        self._call(lambda: [connection.cut(reset=reset) for connection in list(self._connections)])

    def cut_after(self, *places: int | bytes) -> None:
        """Cut the next event stream when so many bytes of its body, chunk framing included, have passed, or when this
        text has, which must be in one write of the server; the one after it at the next place, and so on.
        """
        self._call(lambda: self._plan.extend(places))

    def stall(self) -> None:
        """Pass nothing on, in no direction and on no connection, until `resume`. What hangs up is not noticed either."""
        self._call(lambda: self._flows.clear())

    def resume(self) -> None:
        self._call(lambda: self._flows.set())

    def admit(self, count: int) -> None:
        """Let so many more requests pass; those that follow wait for `admit_all`, on old connections and on new ones."""

        def admit() -> None:
            self._admitted = count
            self._admits.clear()

        self._call(admit)

    def admit_all(self) -> None:
        def admit() -> None:
            self._admitted = None
            self._admits.set()

        self._call(admit)

    def stop(self) -> None:
        self._call(lambda: self._stopping.set())

    def _call(self, function: Callable[[], object]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE)

    async def run(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._flows, self._admits, self._stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._flows.set()
        server = await asyncio.start_server(self._accept, sock=listener, limit=CHUNK)
        ready.set()
        await self._stopping.wait()
        server.close()
        self._flows.set()
        self._admits.set()
        while self._connections:
            for connection in self._connections:
                connection.cut(reset=False)
            await asyncio.wait({connection.task for connection in self._connections})
        await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = _Connection()
        self._connections.add(connection)
        connection.add(writer)
        try:
            # A service that is down is a connection that closes at once.
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
        while data := await _read(reader):
            if data.startswith(METHODS):
                self.requests.append(data.partition(b"\r\n\r\n")[0].decode("latin-1"))
                await self._admission()
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        await self._flows.wait()

    async def _admission(self) -> None:
        if self._admitted == 0:
            await self._admits.wait()
        elif self._admitted:
            self._admitted -= 1

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        cut: int | bytes | None = None  # where to, counted from what is read next
        while data := await _read(reader):
            await self._flows.wait()
            begin = 0
            if data.startswith(b"HTTP/1."):
                head = data.partition(b"\r\n\r\n")[0]
                begin = len(head) + 4
                cut = self._plan.popleft() if EVENT_STREAM in head.lower() and self._plan else None
            end = _place(cut, data, begin)
            writer.write(data[:end])
            await writer.drain()
            if end is not None:
                connection.cut(reset=True)
                return
            if isinstance(cut, int):
                cut -= len(data) - begin
        await self._flows.wait()


def _place(cut: int | bytes | None, data: bytes, begin: int) -> int | None:
    """Where in `data`, whose body begins at `begin`, the connection is to be cut."""
    if isinstance(cut, bytes):
        found = data.find(cut, begin)
        return None if found < 0 else found + len(cut)
    return None if cut is None or begin + cut > len(data) else begin + cut


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Nothing when the other side has hung up, however it did."""
    try:
        return await reader.read(CHUNK)
    except OSError:
        return b""


class _Connection:
    """The two ends of a connection, and the task that serves it."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task
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
def proxying(url: str) -> Iterator[Proxy]:
    """A proxy on a port of its own in front of the service at `url`. On leaving, all its connections are closed."""
    target = httpx2.URL(url)
    assert target.port
    proxy = Proxy(target.host, target.port)
    listener = socket.create_server(("127.0.0.1", 0))
    proxy.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    ready = threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(proxy.run(listener, ready),), name="proxy")
    thread.start()
    try:
        assert ready.wait(PATIENCE), "the proxy did not start"
        yield proxy
    finally:
        proxy.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the proxy did not end"
