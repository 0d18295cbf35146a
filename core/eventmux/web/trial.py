"""Whether streams can take over their connections here: two are served over a real pair of sockets, at start-up.

The direct outlet stands on uvicorn's inside, which may be another in any release. With a release that it was not tested
with, or where anything comes out other than what must, all streams take the portable way, and the log says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, ClassVar

import httptools
import uvicorn
from uvicorn.server import ServerState

from ..catalog import EnabledSource
from ..event import Event
from ..hub import Hub
from ..policy import Policy
from ..runs import Wanted
from ..selection import Selection, Start
from ..source import source
from .formats import SSE, format_of
from .outlet import Delivery
from .protocol import Protocol
from .response import EventStream

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ..config import ServerConfig
    from .direct import Taken

TESTED = "0.54."  # releases of uvicorn
SECONDS = 5.0  # that it may take on a busy machine

EXPECTED = re.compile(
    rb"retry: \d+\nid: [\w-]+\.0\n\n"
    rb'id: [\w-]+\.1\nevent: trial\ndata: \{"n":1\}\n\n'
    rb'id: trial!\nevent: stream\.end\ndata: \{"source":"trial","reason":"completed"\}\n\n'
)
REQUEST = b"GET / HTTP/1.1\r\nHost: trial\r\n%b\r\n"


class Trial(Event):
    n: int


@source(name="trial")
async def trial() -> AsyncIterator[Trial]:
    yield Trial(n=1)


class Watched(Protocol):
    """Counts how often it was taken over. It stays out of the access log."""

    taken: ClassVar[list[bool]]

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.access_log = False  # said to uvicorn's Config, it would silence the log of the whole process

    def take_over(self) -> Taken | None:
        found = super().take_over()
        self.taken.append(found is not None)
        return found


class Answers:
    """What httptools makes of the bytes: the bodies of complete responses."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.bodies.append(self._body)
        self._body = b""


async def why_not(server: ServerConfig) -> str | None:
    """Why streams cannot be direct; None if they can."""
    if not uvicorn.__version__.startswith(TESTED):
        return f"uvicorn {uvicorn.__version__} is not one that it was tested with ({TESTED}*)"
    taken: list[bool] = []
    protocol = type("Watched", (Watched,), {"taken": taken})  # this trial's own: others may be under way
    try:
        async with asyncio.timeout(SECONDS):
            bodies = await _serve_two(Delivery(server), protocol)
    except Exception as error:  # noqa: BLE001 - whatever it is, the portable path does not need it
        return f"the trial failed: {error!r:.400}"
    if taken != [True, True] or [bool(EXPECTED.fullmatch(body)) for body in bodies] != [True, True]:
        return f"the trial took over {taken.count(True)} of {len(taken)} connections, and got {str(bodies)[:400]}"
    return None


async def _serve_two(delivery: Delivery, protocol: type[Watched]) -> list[bytes]:
    """The bodies of two streams on one connection, which the first must give back."""
    hub, form = Hub(), format_of(SSE, qualify=False)
    enabled = EnabledSource("trial", trial, "eventmux", policy=Policy(linger=0))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        wanted = [Wanted(enabled, enabled.validate({}))]
        stream = EventStream(lambda: hub.subscribe(wanted, Start(), Selection(form)), form, delivery)
        await stream(scope, receive, send)

    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None)
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.settimeout(0)
    transport: Any = None
    try:
        transport, _ = await loop.connect_accepted_socket(lambda: protocol(config, ServerState(), {}, loop), ours)
        answers = Answers()
        parser = httptools.HttpResponseParser(answers)
        for header in (b"", b"Connection: close\r\n"):
            await loop.sock_sendall(theirs, REQUEST % header)
            expected = len(answers.bodies) + 1
            while len(answers.bodies) < expected and (data := await loop.sock_recv(theirs, 65_536)):
                parser.feed_data(data)
        return answers.bodies
    finally:
        theirs.close()
        if transport:
            transport.abort()
        else:
            ours.close()
        with contextlib.suppress(TimeoutError):
            await hub.close()
        delivery.wheel.stop()
