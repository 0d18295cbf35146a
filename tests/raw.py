"""The service on a loop and a kind of socket that a test chooses, and a client that sees every byte of HTTP/1.1."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from eventmux import Event, source
from eventmux.app import create_app
from eventmux.settings import Settings
from eventmux.web.direct import DirectOutlet
from eventmux.web.server import bind, make_server
from eventsource import PATIENCE, Received, received, wait_until
from service import Service
from whatwg import Message, parse

LOOPS = ["uvloop", "asyncio"]


class Note(Event):
    n: int
    text: str = ""


class Other(Event):
    n: int


class Feed:
    """A shared source that says what a test tells it. `over`: it ends when it has said all."""

    def __init__(self, name: str = "feed", **options: Any) -> None:
        self.over = False
        self._events: list[Event] = []
        self._told = 0

        @source(name=name, **{"shared": True, **options})
        async def feed() -> AsyncIterator[Note | Other]:
            while True:
                while self._told < len(self._events):
                    self._told += 1
                    yield self._events[self._told - 1]  # type: ignore[misc] # one of the two
                if self.over:
                    return
                await asyncio.sleep(0.001)

        self.source = feed

    def say(self, *events: Event) -> None:
        self._events += events

    def note(self, *numbers: int, text: str = "") -> None:
        self.say(*(Note(n=n, text=text) for n in numbers))


class Running(Service):
    """A service whose inside a test may look at."""

    def __init__(self, url: str, app: FastAPI, server: uvicorn.Server) -> None:
        super().__init__(url, app.state.hub)
        self.app = app
        self.server = server
        self.loop: asyncio.AbstractEventLoop

    @property
    def outlets(self) -> list[DirectOutlet]:
        """The streams that have taken over their connections."""
        return [found for found in self.server.server_state.connections if isinstance(found, DirectOutlet)]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self.server.server_state.tasks


@contextlib.contextmanager
def running(
    settings: Settings,
    *,
    loop: str = "uvloop",
    prepare: Callable[[FastAPI], None] = lambda _: None,
    plain: dict[str, Any] | None = None,
    certificate: tuple[Path, Path] | None = None,
    uds: Path | None = None,
    host: str = "127.0.0.1",
    expect_quiet: bool = True,
) -> Iterator[Running]:
    """The service in a thread. `prepare` adds to the application. `plain`: by uvicorn as it comes, with these words."""
    app = create_app(settings)
    prepare(app)
    server: uvicorn.Server
    if plain is None:
        server = make_server(app, settings.config.server)
    else:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, **plain))
    server.config.loop = loop  # type: ignore[assignment] # as uvicorn names them
    if certificate:
        server.config.ssl_certfile, server.config.ssl_keyfile = map(str, certificate)
        server.config.ssl_version = ssl.PROTOCOL_TLS_SERVER
    if uds:
        server.config.uds = str(uds)
    listener = None if uds else bind(host, 0)

    async def main() -> None:
        service.loop = asyncio.get_running_loop()
        await server.serve(sockets=[listener] if listener else None)

    def run() -> None:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(main())

    port = listener.getsockname()[1] if listener else 0
    is_tls = certificate or (plain is None and settings.config.server.tls)
    service = Running(f"{'https' if is_tls else 'http'}://127.0.0.1:{port}", app, server)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the server to start")
        yield service
        if expect_quiet:
            wait_until(service.is_quiet, "every run to be closed after its clients have gone")
    finally:
        server.should_exit = True
        thread.join(PATIENCE + settings.config.server.grace)
        assert not thread.is_alive(), "the server did not end"
    assert service.is_quiet(), "the service has ended, and a run has not"


@dataclass(frozen=True)
class Answer:
    """A response as it came. `chunks`: their sizes, None where there were none."""

    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[int] | None

    @property
    def messages(self) -> list[Message]:
        return parse(self.body)

    @property
    def events(self) -> list[Received]:
        return [received(message) for message in self.messages]

    @property
    def numbers(self) -> list[int]:
        return [event.data["n"] for event in self.events if event.event == "note"]


class Raw:
    """A connection: `ask` sends a request, `answer` reads the whole of the next response, by the letter of RFC 9112.

    A context manager. `buffer`: bytes that the kernel may keep for it.
    """

    def __init__(
        self,
        service: Running | None = None,
        *,
        port: int = 0,
        uds: Path | None = None,
        buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.socket = socket.socket(socket.AF_UNIX if uds else socket.AF_INET)
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(uds) if uds else ("127.0.0.1", service.port if service else port))
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.text = b""
        self.size = 1 << 16  # bytes read at a time

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, path: str, *headers: str, method: str = "GET", body: bytes = b"", version: str = "1.1") -> None:
        self.send(request(path, *headers, method=method, body=body, version=version))

    def more(self) -> bool:
        """Read on; False at the end of the connection."""
        got = self.socket.recv(self.size)
        self.text += got
        return bool(got)

    def until(self, end: bytes) -> bytes:
        """What comes up to `end`, and with it."""
        while end not in self.text:
            assert self.more(), f"the connection has ended before {end!r}: {self.text[-200:]!r}"
        found, end, self.text = self.text.partition(end)
        return found + end

    def exactly(self, size: int) -> bytes:
        parts = [self.text[:size]]
        self.text = self.text[size:]
        size -= len(parts[0])
        while size:
            got = self.socket.recv(min(size, self.size))
            assert got, "the connection has ended in the midst"
            parts.append(got)
            size -= len(got)
        return b"".join(parts)

    def rest(self) -> bytes:
        """What comes up to the end of the connection."""
        while self.more():
            pass
        found, self.text = self.text, b""
        return found

    def head(self) -> tuple[int, dict[str, str]]:
        status, *lines = self.until(b"\r\n\r\n").decode().split("\r\n")[:-2]
        assert re.fullmatch(r"HTTP/1\.1 \d{3} [ \w]+", status), status
        pairs = [line.split(": ", 1) for line in lines]
        return int(status[9:12]), {name.lower(): value for name, value in pairs}

    def answer(self, *, method: str = "GET") -> Answer:
        status, headers = self.head()
        if headers.get("transfer-encoding") == "chunked" and method != "HEAD":
            body, chunks = b"".join(parts := list(self.chunks())), [len(part) for part in parts]
            return Answer(status, headers, body, chunks)
        if method == "HEAD" or status in {204, 304}:
            return Answer(status, headers, b"", None)
        size = headers.get("content-length")
        return Answer(status, headers, self.exactly(int(size)) if size else self.rest(), None)

    def chunk(self) -> bytes:
        """The next one; b"" is the last."""
        line = self.until(b"\r\n")
        assert re.fullmatch(rb"[0-9a-f]{1,8}\r\n", line), line
        size = int(line, 16)
        data = self.exactly(size + 2)
        assert data[-2:] == b"\r\n", data[-20:]
        return data[:-2]

    def chunks(self) -> Iterator[bytes]:
        while part := self.chunk():
            yield part

    def is_closed(self) -> bool:
        """Whether the server ends the connection, with nothing more on it."""
        try:
            return self.text == b"" and not self.more()
        except ConnectionResetError:
            return True


def request(path: str, *headers: str, method: str = "GET", body: bytes = b"", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Run them at once, and give what each returns; the first error is raised."""
    found: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            found[index] = functions[index]()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def spend(seconds: float, until: Callable[[], Any] = lambda: False) -> None:
    """Let time pass in which something must not happen."""
    ends = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= ends or until(), "the time to pass")


def numbers(events: Sequence[Received]) -> list[int]:
    return [event.data["n"] for event in events if event.event == "note"]
