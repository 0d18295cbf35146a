"""A relay in front of a service that knows HTTP: it cuts event streams at a byte, and counts requests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Iterator

import httpx2

from relay import Connection, Relay, read, running

METHODS = (b"GET ", b"POST ", b"HEAD ")
EVENT_STREAM = b"content-type: text/event-stream"


class Proxy(Relay):
    """`requests` are the heads of all requests as they came, `statuses` those of the answers. A read that begins with a
    method or with `HTTP/1.` is taken for the beginning of a request or of a response: clients and servers write so.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.requests: list[str] = []
        self.statuses: list[int] = []
        self._plan: deque[int | None] = deque()
        self._admitted: int | None = None
        self._admits: asyncio.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cuts_left(self) -> int:
        """How many of those that were planned wait for an event stream to begin."""
        return len(self._plan)

    def last_event_ids(self) -> list[str | None]:
        """The `Last-Event-ID` of each request."""
        fields = [dict(line.lower().split(": ", 1) for line in head.splitlines()[1:]) for head in self.requests]
        return [headers.get("last-event-id") for headers in fields]

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

    async def run(self, listener: socket.socket, ready: threading.Event) -> None:
        self._admits = asyncio.Event()
        await super().run(listener, ready)

    def _release(self) -> None:
        super()._release()
        self._admits.set()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await read(reader):
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

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection) -> None:
        left: int | None = None  # bytes until the cut
        while data := await read(reader):
            await self._flows.wait()
            if data.startswith(b"HTTP/1."):
                left = None
                self.statuses.append(int(data.split(b" ", 2)[1]))
                head, _, body = data.partition(b"\r\n\r\n")
                if EVENT_STREAM in head.lower() and self._plan:
                    size = self._plan.popleft()
                    if size is None:
                        await self._end(body or await read(reader), head, writer)
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


@contextlib.contextmanager
def proxying(url: str) -> Iterator[Proxy]:
    """A proxy on a port of its own in front of the service at `url`. On leaving, all its connections are closed."""
    target = httpx2.URL(url)
    assert target.port
    proxy = Proxy(target.host, target.port)
    with running(proxy):
        yield proxy
