"""A TCP proxy in front of a service: connections break, stall and wait in it while the service lives on."""

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

    `requests` are the heads of all requests as they came, `statuses` those of the answers; `accepted` counts
    connections. A read that begins with a method or with `HTTP/1.` is taken for the beginning of a request or of a
    response: clients and servers write so.
    """

    def __init__(self, host: str, port: int) -> None:
        self.url = ""
        self.requests: list[str] = []
        self.statuses: list[int] = []
        self.accepted = 0
        self._upstream = (host, port)
        self._plan: deque[int | None] = deque()
        self._connections: set[_Connection] = set()
        self._admitted: int | None = None
        self._loop: asyncio.AbstractEventLoop
        self._flows: asyncio.Event
        self._admits: asyncio.Event
        self._stopping: asyncio.Event

    @property
    def cuts_left(self) -> int:
        """How many of those that were planned wait for an event stream to begin."""
        return len(self._plan)

    def last_event_ids(self) -> list[str | None]:
        """The `Last-Event-ID` of each request."""
        fields = [dict(line.lower().split(": ", 1) for line in head.splitlines()[1:]) for head in self.requests]
        return [headers.get("last-event-id") for headers in fields]

    def cut(self, *, reset: bool = True) -> None:
        """Close all connections at once: by RST, or in order, as if the bytes so far had been all."""
        self._call(lambda: self._cut(reset=reset))

    def cut_after(self, *sizes: int) -> None:
        """Cut the next event stream when so many bytes of its body, chunk framing included, have passed; the one that
        follows after the next number of bytes, and so on.

        What was passed on may still be lost: clients may throw away what they have not read when they hear of a reset.
        """
        self._call(lambda: self._plan.extend(sizes))

    def end_after_first_write(self) -> None:
        """End the next event stream in order, chunks and all, when the first write of its body has passed, as gateways
        do that bound the time of a request. Nothing of it can be lost.
        """
        self._call(lambda: self._plan.append(None))

    def stall(self) -> None:
        """Pass nothing on, on no connection and in no direction, until `resume`. Who hangs up is not heard."""
        self._call(lambda: self._flows.clear())

    def resume(self) -> None:
        self._call(lambda: self._flows.set())

    def admit(self, count: int) -> None:
        """Let so many more requests pass; those that follow wait for `admit_all`, on old connections and on new."""

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

    def _cut(self, *, reset: bool) -> None:
        for connection in self._connections:
            connection.cut(reset=reset)

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
            self._cut(reset=False)
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
        left: int | None = None  # bytes until the cut
        while data := await _read(reader):
            await self._flows.wait()
            if data.startswith(b"HTTP/1."):
                left = None
                self.statuses.append(int(data.split(b" ", 2)[1]))
                head, _, body = data.partition(b"\r\n\r\n")
                if EVENT_STREAM in head.lower() and self._plan:
                    size = self._plan.popleft()
                    if size is None:
                        await self._end(body or await _read(reader), head, writer)
                        return
                    left = len(head) + 4 + size
            writer.write(data[:left])
            await writer.drain()
            if left is not None:
                left -= len(data)
                if left <= 0:
                    connection.cut(reset=True)
                    return
        await self._flows.wait()

    async def _end(self, body: bytes, head: bytes, writer: asyncio.StreamWriter) -> None:
        """Write a response whose body is the first of the chunks in `body`, or its first block if it has no chunks."""
        if b"transfer-encoding: chunked" in head.lower():
            size, _, rest = body.partition(b"\r\n")
            writer.write(b"%b\r\n\r\n%b\r\n%b\r\n0\r\n\r\n" % (head, size, rest[: int(size, 16)]))
        else:
            writer.write(b"%b\r\n\r\n%b\n\n" % (head, body.partition(b"\n\n")[0]))
        await writer.drain()


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
