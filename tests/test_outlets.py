"""How the bytes of a stream come to their client: past ASGI where that is safe, and through it everywhere else.

What both paths promise is tested with what the service does by itself; `pytest --portable` makes that the portable one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import logging
import os
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import hypercorn.asyncio as hypercorn_asyncio
import hypercorn.config as hypercorn_config
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

import portable
from eventmux import source
from eventmux.app import create_app
from eventmux.config import ServerConfig
from eventmux.policy import Bounds
from eventmux.sse import encode
from eventmux.step import Piece
from eventmux.web.direct import EARLY
from eventmux.web.protocol import Protocol
from eventmux.web.server import bind
from eventsource import PATIENCE, received, wait_until
from raw import LOOPS, Answer, Feed, Note, Other, Raw, Running, in_threads, numbers, request, running, spend
from service import enable, serve_process, settings_of
from whatwg import Parser

DIRECT = ServerConfig(direct=True)
PORTABLE = ServerConfig(direct=False)
MEGABYTE = 1_000_000

only_direct = pytest.mark.skipif(portable.chosen.is_set(), reason="it is about the direct path")
both_loops = pytest.mark.parametrize("loop", LOOPS)


@pytest.fixture(autouse=True)
def _the_trial_succeeds(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Otherwise it would be the portable path that is tested."""
    yield
    assert not [record for record in caplog.get_records("call") if "streams go through ASGI" in record.getMessage()]


def open_raw(service: Running, path: str = "/sse/feed", **options: Any) -> Raw:
    """A client whose stream has begun, and with it a direct one's taking over."""
    client, before = Raw(service, **options), len(service.outlets)
    client.ask(path)
    assert client.head()[0] == 200
    assert client.chunk().startswith(b"retry: ")
    if not portable.chosen.is_set():
        wait_until(lambda: len(service.outlets) == before + 1, "the stream to be direct")
    return client


def next_events(client: Raw, count: int) -> list[Any]:
    """The next events of a chunked stream, with nothing lost between."""
    parser: Parser = client.__dict__.setdefault("parser", Parser())
    found: list[Any] = client.__dict__.setdefault("found", [])
    while len(found) < count:
        parts = [client.chunk()]
        while not parts[-1].endswith(b"\n\n"):  # the portable path cuts events
            parts.append(client.chunk())
            assert parts[-1], "the stream has ended"
        found += map(received, parser.feed(b"".join(parts)))
    events = found[:count]
    del found[:count]
    return events


# Taking over


@only_direct
@both_loops
def test_a_stream_takes_its_connection_over_and_what_uvicorn_had_for_the_request_is_freed(loop: str) -> None:
    def alive() -> int:
        gc.collect()
        return sum(isinstance(found, (RequestResponseCycle, Protocol)) for found in gc.get_objects())

    before, feed = alive(), Feed()
    with running(settings_of(feed.source, server=DIRECT), loop=loop) as service, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_raw(service)) for _ in range(5)]
        wait_until(service.is_idle, "uvicorn's tasks to be over")
        assert len(service.outlets) == len(service.server.server_state.connections) == 5
        wait_until(lambda: alive() <= before, "uvicorn's part of the connection to be freed")
        feed.note(1, 2)
        for client in clients:
            assert numbers(next_events(client, 2)) == [1, 2]
        clients.pop().__exit__()
        wait_until(lambda: len(service.outlets) == service.hub.subscriptions == 4, "the one that left to be gone")
        outlets = service.outlets
        assert all(outlet.tick > 0 for outlet in outlets)  # it has its heartbeat
    assert alive() <= before


def test_where_streams_are_not_to_be_direct_none_is() -> None:
    feed = Feed()
    with running(settings_of(feed.source, server=PORTABLE)) as service, Raw(service) as client:
        client.ask("/sse/feed")
        client.head()
        client.chunk()
        feed.note(1)
        assert numbers(next_events(client, 1)) == [1]
        assert service.outlets == []
        assert not service.is_idle()


# The connection after a stream


@both_loops
def test_a_connection_serves_the_next_request_when_its_stream_is_over(loop: str) -> None:
    feed = Feed()
    with running(settings_of(feed.source), loop=loop) as service, Raw(service) as client:
        for n in (1, 2, 3):
            client.ask("/sse/feed?limit=1")
            status, _ = client.head()
            assert status == 200
            client.chunk()
            feed.note(n)
            assert [event.event for event in next_events(client, 2)] == ["note", "stream.end"]
            assert client.chunk() == b""
            client.ask("/healthz")
            assert client.answer().status == 200
            wait_until(lambda: service.hub.subscriptions == 0)
        assert len(service.server.server_state.connections) == 1
        assert client.text == b""
        wait_until(lambda: service.server.server_state.total_requests == 6)


@both_loops
@pytest.mark.parametrize("way", ["with the first", "half with the first", "in two pieces", "half of its head"])
def test_a_next_request_that_is_sent_early_is_answered_after_the_stream(loop: str, way: str) -> None:
    feed = Feed()
    with running(settings_of(feed.source), loop=loop) as service, Raw(service) as client:
        n = 0
        for next_path in ("/healthz", "/sse/feed?limit=2&since=earliest", "/nowhere"):
            after = request(next_path)
            first = {"with the first": len(after), "half with the first": 9}.get(way, 0)
            client.send(request("/sse/feed?limit=2") + after[:first])
            client.head()
            client.chunk()
            feed.note(n := n + 1)
            assert numbers(next_events(client, 1)) == [n]
            if not first:
                client.send(after[:9])
                wait_until(lambda: portable.chosen.is_set() or any(outlet._early for outlet in service.outlets))
            if way == "in two pieces":
                client.send(after[9:])
            feed.note(n := n + 1)
            assert [event.event for event in next_events(client, 2)] == ["note", "stream.end"]
            assert client.chunk() == b""
            if way in {"half of its head", "half with the first"}:
                client.send(after[9:])
            answer = client.answer()
            assert answer.status == (404 if next_path == "/nowhere" else 200)
            if "feed" in next_path:
                assert answer.numbers == [1, 2]
            client.ask("/healthz")
            assert client.answer().status == 200


@both_loops
def test_early_bytes_are_bounded_and_none_is_lost(loop: str) -> None:
    count, feed = 400, Feed()
    early = b"".join(request(f"/healthz?{n}", f"X-Filler: {'x' * 10_000}") for n in range(count))
    with running(settings_of(feed.source), loop=loop) as service, open_raw(service, "/sse/feed?limit=1") as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        sent = 0
        client.socket.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while sent < len(early):
                sent += client.socket.send(early[sent : sent + 65_536])
        assert sent < len(early)  # the server has stopped reading
        for outlet in service.outlets:
            assert EARLY < len(outlet._early) <= EARLY + 256 * 1024  # asyncio reads so much at a time
        client.socket.settimeout(PATIENCE)
        feed.note(1)
        assert [event.event for event in next_events(client, 2)] == ["note", "stream.end"]
        assert client.chunk() == b""
        client.socket.setblocking(True)
        _, answers = in_threads(lambda: client.send(early[sent:]), lambda: [client.answer() for _ in range(count)])
        assert {answer.status for answer in answers} == {200}


@both_loops
def test_the_body_of_a_request_is_never_taken_for_a_next_request(loop: str) -> None:
    """A proxy that shares its connections would hand the answer to somebody else."""
    feed = Feed()
    hidden = request("/healthz")
    with running(settings_of(feed.source), loop=loop) as service, Raw(service) as client:
        client.ask("/sse/feed?limit=1", f"Content-Length: {len(hidden)}")
        client.head()
        client.chunk()
        client.send(hidden + request("/nowhere"))
        feed.note(1)
        assert [event.event for event in next_events(client, 2)] == ["note", "stream.end"]
        assert client.chunk() == b""
        assert client.answer().status == 404


@both_loops
@pytest.mark.parametrize("path", ["/sse/feed?limit=2", "/sse/feed"])
def test_http_1_0_gets_no_chunks_and_the_end_is_the_end_of_the_connection(loop: str, path: str) -> None:
    feed = Feed()
    with running(settings_of(feed.source), loop=loop) as service, Raw(service) as client:
        client.ask(path, version="1.0")
        status, headers = client.head()
        assert status == 200
        assert "transfer-encoding" not in headers
        assert headers["connection"] == "close"
        wait_until(lambda: service.hub.subscriptions == 1)
        feed.note(1, 2)
        feed.over = True
        body = client.rest()
        assert b"\r" not in body
        assert Answer(200, {}, body, None).numbers == [1, 2]
        assert body.endswith(b"\n\n")


@both_loops
def test_a_client_that_wants_its_connection_closed_gets_the_end_of_the_body_and_then_of_the_connection(
    loop: str,
) -> None:
    feed = Feed()
    with running(settings_of(feed.source), loop=loop) as service, Raw(service) as client:
        client.ask("/sse/feed?limit=1", "Connection: close")
        assert client.head()[1]["connection"] == "close"
        client.chunk()
        feed.note(1)
        assert [event.event for event in next_events(client, 2)] == ["note", "stream.end"]
        assert client.chunk() == b""
        client.socket.settimeout(service.server.config.timeout_keep_alive / 2)
        assert client.is_closed()


@both_loops
def test_head_post_and_get_on_one_connection(loop: str) -> None:
    feed = Feed()
    feed.note(1, 2, 3)
    body = json.dumps({"sources": {"feed": {}}}).encode()
    with running(settings_of(enable(feed.source, linger=60)), loop=loop, expect_quiet=False) as service:
        with service.open("/sse/feed") as stream, Raw(service) as client:
            stream.take(3)
            client.ask("/sse/feed?limit=1", method="HEAD")
            answer = client.answer(method="HEAD")
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            client.ask("/sse?since=earliest&limit=2", method="POST", body=body)
            assert client.answer().numbers == [1, 2]
            client.ask("/sse/feed?since=earliest&limit=3")
            assert client.answer().numbers == [1, 2, 3]
            client.ask("/sse/feed?limit=1", method="HEAD")
            client.answer(method="HEAD")
            client.ask("/sse/feed?since=earliest&limit=2", "Accept: application/json")
            assert [line["event"] for line in json.loads(client.answer().body)] == ["note", "note", "stream.end"]
            client.ask("/sse/feed?since=earliest&limit=1", "Accept: application/x-ndjson")
            assert len(client.answer().body.splitlines()) == 2


# Clients that take slowly, or nothing


@both_loops
@pytest.mark.parametrize("buffer", [4_096, None])
def test_a_client_that_reads_slowly_gets_every_byte_in_order(loop: str, buffer: int | None) -> None:
    chance, feed = random.Random(3), Feed()
    texts = [
        chance.choice("abc") * chance.choice([10, 1_000, 8_190, 8_192, 100_000, 300_000 if buffer else 2 * MEGABYTE])
        for _ in range(20)
    ]
    hot = enable(feed.source, history=Bounds(bytes=200 * MEGABYTE))
    with running(settings_of(hot), loop=loop) as service, open_raw(service, buffer=buffer) as client:
        with open_raw(service) as quick:
            for n, text in enumerate(texts):
                feed.note(n, text=text)
            client.size = 16_384 if buffer else 200_000
            slow, fast = in_threads(lambda: next_events(client, len(texts)), lambda: next_events(quick, len(texts)))
        assert [event.data for event in slow] == [{"n": n, "text": text} for n, text in enumerate(texts)]
        assert [event.id.rpartition(".")[2] for event in slow] == [str(n + 1) for n in range(len(texts))]
        assert slow == fast
        feed.note(-1)
        assert numbers(next_events(client, 1)) == [-1]  # and it is live again


class Neighbour:
    """Reads a feed, and notes how late each event is: its text is the time when it was said."""

    def __init__(self, client: Raw) -> None:
        self.numbers: list[int] = []
        self.latest = 0.0
        self._client = client

    def read(self, count: int) -> None:
        while len(self.numbers) < count:
            for n, said in re.findall(rb'"n":(\d+),"text":"([0-9.]+)', self._client.chunk()):
                self.latest = max(self.latest, time.monotonic() - float(said))
                self.numbers.append(int(n))


@both_loops
@pytest.mark.parametrize("kind", ["all the time", "in the midst of a big event"])
def test_one_that_takes_nothing_is_cut_off_and_its_neighbours_notice_nothing(
    loop: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    timeout, feed = 0.7, Feed()
    is_big = kind != "all the time"
    settings = settings_of(
        enable(feed.source, history=Bounds(bytes=100 * MEGABYTE)), server=ServerConfig(send_timeout=timeout)
    )
    with running(settings, loop=loop) as service, contextlib.ExitStack() as stack:
        stalled = stack.enter_context(open_raw(service, buffer=4_096))
        neighbours = [Neighbour(stack.enter_context(open_raw(service))) for _ in range(3)]
        count, says = 100, threading.Event()

        def say() -> None:
            for n in range(count):
                feed.note(
                    n, text=f"{time.monotonic():.9f}".ljust(20) + "x" * (4 * MEGABYTE if n == 1 and is_big else 20_000)
                )
                says.wait(0.01)

        in_threads(say, *(lambda one=one: one.read(count) for one in neighbours))  # type: ignore[misc] # bound now
        for neighbour in neighbours:
            assert neighbour.numbers == list(range(count))
            assert neighbour.latest < timeout / 2
        wait_until(lambda: service.hub.subscriptions == 3, "the one that takes nothing to be cut off")
        with pytest.raises(ConnectionResetError):
            while stalled.socket.recv(1 << 20):
                pass
        feed.note(count, text=f"{time.monotonic():.9f}")
        for neighbour in neighbours:
            neighbour.read(count + 1)
    cut = [record.getMessage() for record in caplog.records if "took nothing" in record.getMessage()]
    assert cut == [f"a client took nothing for {timeout:g} seconds: cut off"]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@both_loops
def test_one_that_takes_a_little_all_the_time_is_not_cut_off(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    feed, timeout = Feed(), 0.4
    settings = settings_of(enable(feed.source), server=ServerConfig(send_timeout=timeout))
    with running(settings, loop=loop) as service, open_raw(service) as client:
        feed.note(1, text="x" * 3 * MEGABYTE)
        started = time.monotonic()
        taken = b""
        while time.monotonic() < started + 2.5 * timeout:
            taken += client.socket.recv(80_000)
            spend(0.05)
        client.text = taken
        assert len(next_events(client, 1)[0].data["text"]) == 3 * MEGABYTE
    assert "took nothing" not in caplog.text


# Heartbeats


@both_loops
def test_heartbeats_come_only_where_nothing_else_was_written(loop: str) -> None:
    feed = Feed()
    with running(settings_of(feed.source, server=ServerConfig(heartbeat=0.3)), loop=loop) as service:
        with open_raw(service) as client:
            started = time.monotonic()
            while time.monotonic() < started + 0.7:
                feed.note(1)
                assert b"event: note" in client.chunk()
                spend(0.05)
            before = time.monotonic()
            assert client.chunk() == b":\n\n"
            assert client.chunk() == b":\n\n"
            assert time.monotonic() - before >= 0.5
            feed.note(2)
            assert numbers(next_events(client, 1)) == [2]


@only_direct
@both_loops
def test_where_the_loop_was_late_an_event_takes_the_place_of_the_heartbeat(loop: str) -> None:
    feed = Feed()

    async def be_late(service: Running) -> None:
        (outlet,) = service.outlets
        (run,) = service.hub._runs.all()
        run.channel.append(encode(feed.source, Note(n=1)))
        outlet._wrote -= 100
        outlet.ring(service.loop.time())

    with running(settings_of(feed.source, server=DIRECT), loop=loop) as service, open_raw(service) as client:
        asyncio.run_coroutine_threadsafe(be_late(service), service.loop).result(PATIENCE)
        feed.note(2)
        assert [b"event: note" in client.chunk() for _ in range(2)] == [True, True]


@both_loops
def test_a_heartbeat_carries_the_cursor_once_where_others_events_have_moved_it(loop: str) -> None:
    feed = Feed()
    with running(settings_of(feed.source, server=ServerConfig(heartbeat=0.1)), loop=loop) as service:
        with open_raw(service, "/sse/feed?events=note") as client:
            feed.say(Other(n=1), Other(n=2))
            wait_until(lambda: feed._told == 2)
            while (beat := client.chunk()) == b":\n\n":
                pass
            assert re.fullmatch(rb":\n\nid: [\w-]+\.[12]\n\n", beat)
            while beat.endswith(b".1\n\n"):
                beat = client.chunk()
            assert client.chunk() == b":\n\n"
            feed.note(3)
            (event,) = next_events(client, 1)
            assert event.id.endswith(".3")


# Descriptors


@only_direct
@both_loops
def test_nothing_is_written_to_a_descriptor_that_is_another_connections_now(loop: str) -> None:
    feed = Feed()
    with running(settings_of(feed.source, server=DIRECT), loop=loop) as service:
        with open_raw(service) as client:
            (outlet,) = service.outlets
            number = outlet._fd
            assert os.fstat(number)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: service.outlets == [], "the outlet to know that its client has gone")

        def is_free() -> bool:
            try:
                os.fstat(number)
            except OSError:
                return True
            return False

        wait_until(is_free, "the descriptor to be closed")
        ours, theirs = socket.socketpair()
        if theirs.fileno() == number:
            ours, theirs = theirs, ours
        with ours, theirs:
            if ours.fileno() != number:
                os.dup2(ours.fileno(), number)
            try:
                assert outlet.write(Piece(b"somebody else's"), time.monotonic()) is False
                outlet.data_received(b"early")
                outlet.resume_writing()
                theirs.setblocking(False)
                with pytest.raises(BlockingIOError):
                    theirs.recv(100)
            finally:
                if ours.fileno() != number:
                    os.close(number)


@both_loops
def test_who_comes_and_goes_gets_only_its_own_stream(loop: str) -> None:
    """Descriptors are used again at once while every source writes all the time."""

    def talker(name: str) -> Any:
        @source(name=name, shared=True)
        async def talk() -> AsyncIterator[Note]:
            n = 0
            while True:
                n += 1
                yield Note(n=n, text=name * 100)
                await asyncio.sleep(0)

        return enable(talk, linger=60)

    names = [f"talker-{letter}" for letter in "abcdef"]
    with running(settings_of(*map(talker, names)), loop=loop, expect_quiet=False) as service:

        def come_and_go(seed: int) -> int:
            chance, done = random.Random(seed), 0
            while done < 40:
                name = chance.choice(names)
                with Raw(service) as client:
                    client.ask(f"/sse/{name}")
                    assert client.head()[0] == 200
                    last = None
                    for event in next_events(client, chance.randrange(1, 6)):
                        assert event.data["text"] == name * 100
                        assert last in {None, event.data["n"] - 1}
                        last = event.data["n"]
                    if chance.random() < 0.5:  # or with a reset
                        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                done += 1
            return done

        assert in_threads(*(lambda seed=seed: come_and_go(seed) for seed in range(6))) == [40] * 6  # type: ignore[misc] # bound now
        wait_until(lambda: service.hub.subscriptions == 0)
        wait_until(lambda: not service.server.server_state.connections)


# The end of the service


@both_loops
def test_at_the_end_of_the_service_every_stream_is_told_when_to_come_back_and_ended(loop: str) -> None:
    feed = Feed()
    server = ServerConfig(grace=1, retry=1_000)
    hot = enable(feed.source, history=Bounds(bytes=50 * MEGABYTE))
    with running(settings_of(hot, server=server), loop=loop, expect_quiet=False) as service:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(open_raw(service)) for _ in range(20)]
            stalled = stack.enter_context(open_raw(service, buffer=4_096))
            feed.note(1, text="x" * MEGABYTE)
            for client in clients:
                assert numbers(next_events(client, 1)) == [1]
            started = time.monotonic()
            service.server.should_exit = True
            retries = []
            for client in clients:
                last = b"".join(client.chunks())
                assert client.is_closed()
                found = re.fullmatch(rb"retry: (\d+)\n\n", last)
                assert found
                retries.append(int(found[1]))
            assert all(1_000 <= retry <= 5_000 for retry in retries)
            assert len(set(retries)) > 10
            wait_until(lambda: not service.server.started or service.hub.is_draining)
            wait_until(lambda: service.hub.subscriptions == 0 or time.monotonic() > started + 1)
            assert stalled.text == b""
    assert time.monotonic() - started < 5


@both_loops
def test_what_there_is_is_given_before_the_end_of_the_service(loop: str) -> None:
    feed = Feed()

    async def end(service: Running) -> None:
        (run,) = service.hub._runs.all()
        run.channel.append(encode(feed.source, Note(n=1)))
        service.hub.drain()  # in a task, and before the turn in which the event would have gone out
        service.server.should_exit = True

    with running(settings_of(feed.source), loop=loop, expect_quiet=False) as service, open_raw(service) as client:
        asyncio.run_coroutine_threadsafe(end(service), service.loop).result(PATIENCE)
        body = b"".join(client.chunks())
        assert re.fullmatch(rb'id: [\w-]+\.1\nevent: note\ndata: {"n":1,"text":""}\n\nretry: \d+\n\n', body)
        assert client.is_closed()


@only_direct
@both_loops
@pytest.mark.parametrize("is_down", [False, True])
def test_an_end_that_has_to_wait_for_its_client_is_an_end_all_the_same(loop: str, *, is_down: bool) -> None:
    """The last bytes find the kernel full; the service may have begun to go down when they go out."""
    feed = Feed()

    async def end(service: Running) -> None:
        (outlet,) = service.outlets
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(outlet._fd, b"x" * 32_768)
        outlet._subscription.end("over")
        assert outlet._is_done
        assert outlet._is_full
        if is_down:
            outlet.shutdown()

    with running(settings_of(feed.source, server=DIRECT), loop=loop) as service, open_raw(service) as client:
        asyncio.run_coroutine_threadsafe(end(service), service.loop).result(PATIENCE)
        client.until(b"\r\n0\r\n\r\n")
        if is_down:
            client.socket.settimeout(service.server.config.timeout_keep_alive / 2)
            assert client.is_closed()
        else:
            client.ask("/healthz")
            assert client.answer().status == 200


FLOOD = """
import asyncio
from collections.abc import AsyncIterator
from eventmux import Event, source

class Note(Event):
    text: str

@source(shared=True)
async def flood() -> AsyncIterator[Note]:
    while True:
        yield Note(text="x" * 100_000)
        await asyncio.sleep(0.01)
"""


def test_the_process_ends_in_time_with_clients_that_take_nothing(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "flood.py").write_text(FLOOD)
    (tmp_path / "plugins.yaml").write_text("plugins: {dir: local}\nsources: {flood: {}}\nserver: {grace: 1}\n")
    with serve_process(cwd=tmp_path) as process, contextlib.ExitStack() as stack:
        port = int(process.wait_for_url().rpartition(":")[2])
        clients = [stack.enter_context(Raw(port=port, buffer=4_096)) for _ in range(5)]
        for client in clients:
            client.ask("/sse/flood")
            client.head()
        reader = stack.enter_context(Raw(port=port))
        reader.ask("/sse/flood")
        reader.head()
        left = 6 * MEGABYTE
        while left > 0:
            left -= len(reader.chunk())
        started = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        assert b"retry: " in b"".join(reader.chunks())[-30:]
        assert process.process.wait(PATIENCE) == 0
        assert time.monotonic() - started < 5
    if not portable.chosen.is_set():  # uvicorn says how each request that it cancels has ended
        assert "Traceback" not in process.log.read_text()


@both_loops
def test_a_plain_uvicorn_with_our_protocol_logs_one_line_per_request_and_streams_are_direct(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "uvicorn.access")
    feed = Feed()
    settings = settings_of(feed.source)
    with running(settings, loop=loop, plain={"http": Protocol}) as service, Raw(service) as client:
        for n in (1, 2):
            client.ask(f"/sse/feed?limit=1&id={n}".replace(f"&id={n}", ""))
            client.head()
            client.chunk()
            feed.note(n)
            next_events(client, 2)
            assert client.chunk() == b""
        client.ask("/healthz")
        client.answer()
        client.ask("/sse/feed")
        client.head()
        client.chunk()
        feed.note(3)
        next_events(client, 1)
        assert len(service.outlets) == (not portable.chosen.is_set())
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    found = [line.partition(" - ")[2] for line in lines]
    stream, health = '"GET /sse/feed?limit=1 HTTP/1.1" 200', '"GET /healthz HTTP/1.1" 200'
    assert found == [stream, stream, health, '"GET /sse/feed HTTP/1.1" 200']


# Other sockets


@both_loops
def test_on_a_unix_domain_socket_it_is_the_same(loop: str, tmp_path: Path) -> None:
    feed, path = Feed(), tmp_path / "service.sock"
    settings = settings_of(feed.source, server=ServerConfig(send_timeout=0.5))
    with running(settings, loop=loop, plain={"http": Protocol}, uds=path) as service:
        with Raw(uds=path) as client, Raw(uds=path) as stalled:
            for one in (client, stalled):
                one.ask("/sse/feed?limit=20")
                one.head()
                one.chunk()
            wait_until(lambda: len(service.outlets) == 2 * (not portable.chosen.is_set()))
            feed.note(*range(20), text="x" * 100_000)
            assert numbers(next_events(client, 21)) == list(range(20))
            assert client.chunk() == b""
            client.ask("/healthz")
            assert client.answer().status == 200
            wait_until(lambda: service.hub.subscriptions == 0, "the one that takes nothing to be cut off")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    crt, key = folder / "service.crt", folder / "service.key"
    words = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    words += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", str(key), "-out", str(crt)]
    subprocess.run(["openssl", "req", "-x509", *words], check=True, capture_output=True)  # noqa: S607 - found by PATH
    return crt, key


@pytest.mark.needs("openssl")
@both_loops
def test_over_tls_streams_are_right_and_nothing_goes_past_the_encryption(
    loop: str, certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    feed, trust = Feed(), ssl.create_default_context(cafile=str(certificate[0]))
    hot = enable(feed.source, history=Bounds(bytes=100 * MEGABYTE))
    settings = settings_of(hot, server=ServerConfig(send_timeout=1, heartbeat=0.2))
    with running(settings, loop=loop, certificate=certificate) as service:
        with Raw(service, tls=trust) as client, Raw(service, tls=trust, buffer=4_096) as stalled:
            for path, after in (("/sse/feed?limit=1", "/healthz"), ("/sse/feed?limit=1", "/sse/feed?limit=30")):
                client.ask(path)
                client.head()
                client.chunk()
                feed.note(0)
                assert numbers(next_events(client, 2)) == [0]
                assert client.chunk() == b""
                client.ask(after)
                if after == "/healthz":
                    assert client.answer().status == 200
            client.head()
            client.chunk()
            assert client.chunk() == b":\n\n"
            stalled.ask("/sse/feed")
            stalled.head()
            wait_until(lambda: service.hub.subscriptions == 2)
            assert all(outlet._fd == -1 for outlet in service.outlets)
            texts = ["x" * (3 * MEGABYTE if n == 5 else 100_000) for n in range(30)]
            for n, text in enumerate(texts):
                feed.note(n, text=text)
            events = next_events(client, 31)
            assert [event.data for event in events[:-1]] == [{"n": n, "text": text} for n, text in enumerate(texts)]
            assert client.chunk() == b""
            wait_until(lambda: service.hub.subscriptions == 0, "the one that takes nothing to be cut off")
    assert caplog.text.count("took nothing") == 1


# Between the stream and the server


class Shouting:
    """Changes the body, as it passes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def shout(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": message.get("body", b"").replace(b"quiet", b"LOUD!")}
            await send(message)

        await self.app(scope, receive, shout)


class Prefixing(Shouting):
    """Sends something of its own behind the first bytes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_first = True

        async def prefix(message: Message) -> None:
            nonlocal is_first
            await send(message)
            if message["type"] == "http.response.body" and is_first:
                is_first = False
                await send({"type": "http.response.body", "body": b": hello\n\n", "more_body": True})

        await self.app(scope, receive, prefix)


class Rewriting(Shouting):
    """Changes the first bytes only; it would change what follows if it were so."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def rewrite(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": message.get("body", b"").replace(b"retry: 2000", b"retry: 2001")}
            await send(message)

        await self.app(scope, receive, rewrite)


@both_loops
@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
def test_behind_compression_streams_are_right(loop: str, accept: str) -> None:
    feed = Feed()

    def prepare(app: FastAPI) -> None:
        app.add_middleware(GZipMiddleware, minimum_size=1, exclude_content_types=())

    with running(settings_of(feed.source), loop=loop, prepare=prepare) as service:
        url, headers = f"{service.url}/sse/feed?limit=3", {"accept": accept, "accept-encoding": "gzip"}
        with httpx2.stream("GET", url, headers=headers, trust_env=False, timeout=PATIENCE) as response:
            wait_until(lambda: service.hub.subscriptions == 1)
            feed.note(1, 2, 3, text="x" * 100_000)
            text = response.read()
            assert response.headers["content-encoding"] == "gzip"
        assert text.count(b"x" * 100_000) == 3
        assert b'"reason":"limit"' in text


@both_loops
@pytest.mark.parametrize("middleware", [Prefixing, Rewriting])
def test_behind_a_middleware_that_changes_the_beginning_streams_go_through_it(
    loop: str, middleware: type[Shouting]
) -> None:
    feed = Feed()
    prepared = {"loop": loop, "prepare": lambda app: app.add_middleware(middleware)}
    with running(settings_of(feed.source), **prepared) as service, service.open("/sse/feed") as stream:  # type: ignore[arg-type] # both
        feed.note(1, 2)
        assert numbers(stream.take(2)) == [1, 2]
        assert service.outlets == []
        assert stream.parser.comments == [" hello"] if middleware is Prefixing else stream.parser.retry == 2_001


def test_behind_a_middleware_that_changes_events_each_event_goes_through_it_where_streams_are_not_direct() -> None:
    """What passes the beginning untouched and changes what follows needs `direct: false`."""
    feed = Feed()
    settings = settings_of(feed.source, server=PORTABLE)
    with running(settings, prepare=lambda app: app.add_middleware(Shouting)) as service:
        with service.open("/sse/feed?limit=2") as stream:
            feed.note(1, 2, text="quiet")
            assert [event.data["text"] for event in stream.take(2)] == ["LOUD!", "LOUD!"]


@both_loops
@pytest.mark.parametrize("count", [1, 2])
def test_behind_a_base_http_middleware_streams_are_right(loop: str, count: int) -> None:
    async def passing(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        response = await call_next(request)
        response.headers["x-passed"] = "yes"
        return response

    def prepare(app: FastAPI) -> None:
        for _ in range(count):
            app.add_middleware(BaseHTTPMiddleware, dispatch=passing)

    feed = Feed()
    with running(settings_of(feed.source), loop=loop, prepare=prepare) as service:
        with Raw(service) as client:
            for path in ("/sse/feed?limit=3", "/sse/feed?limit=2"):
                client.ask(path)
                assert client.head()[1]["x-passed"] == "yes"
                client.chunk()
                wait_until(lambda: service.hub.subscriptions == 1)
                feed.note(1, 2, 3, text="x" * 100_000)
                limit = int(path[-1])
                assert numbers(next_events(client, limit + 1)) == [1, 2, 3][:limit]
                assert client.chunk() == b""
                wait_until(lambda: service.hub.subscriptions == 0)
        with service.open("/sse/feed"):
            wait_until(lambda: service.hub.subscriptions == 1)
        wait_until(lambda: service.hub.subscriptions == 0, "the stream to end with its client")


@source
async def three() -> AsyncIterator[Note]:
    for n in (1, 2, 3):
        yield Note(n=n, text="x" * 50_000)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["/sse/three", "/sse/three?limit=2"])
def test_in_a_test_client_streams_are_right(path: str) -> None:
    with TestClient(create_app(settings_of(three))) as client:
        response = client.get(path)
        answer = Answer(response.status_code, {}, response.content, None)
        assert answer.numbers == [1, 2, 3][: 2 if "limit" in path else 3]
        assert answer.events[-1].event == "stream.end"


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/sse/three", "/sse/three?limit=2"])
async def test_in_an_asgi_transport_streams_are_right(path: str, anyio_backend: str) -> None:
    app = create_app(settings_of(three))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service") as client:
        response = await client.get(path)
    answer = Answer(response.status_code, {}, response.content, None)
    assert answer.numbers == [1, 2, 3][: 2 if "limit" in path else 3]
    assert app.state.hub.subscriptions == 0
    await app.state.hub.close()


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


async def with_a_variable(send: Send, message: Message) -> None:
    token = variable.set("inside")
    await send(message)
    await asyncio.sleep(0)
    assert variable.get() == "inside"
    variable.reset(token)  # raises in another context
    assert variable.get() == "outside"


async def in_a_scope(send: Send, message: Message) -> None:
    with anyio.CancelScope() as scope:
        await send(message)
    assert not scope.cancelled_caught


async def in_a_time_out(send: Send, message: Message) -> None:
    async with asyncio.timeout(5):
        await send(message)


async def in_a_task_group(send: Send, message: Message) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0))
        await send(message)


async def with_a_turn_before(send: Send, message: Message) -> None:
    await asyncio.sleep(0)
    await send(message)


async def with_a_pause_behind(send: Send, message: Message) -> None:
    await send(message)
    await asyncio.sleep(0.002)


async def under_a_lock(send: Send, message: Message) -> None:
    async with lock:
        await send(message)
        await asyncio.sleep(0)


async def past_a_time_out(send: Send, message: Message) -> None:
    with anyio.move_on_after(0.001):
        await asyncio.sleep(PATIENCE)
    try:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(PATIENCE)
    except TimeoutError:
        await send(message)


lock = asyncio.Lock()
SENDS: list[Callable[[Send, Message], Any]] = [
    with_a_variable,
    in_a_scope,
    in_a_time_out,
    in_a_task_group,
    with_a_turn_before,
    with_a_pause_behind,
    under_a_lock,
    past_a_time_out,
]


@pytest.mark.parametrize(
    ("through", "loop"),
    [(through, LOOPS[number % 2]) for number, through in enumerate(SENDS)],
    ids=lambda found: getattr(found, "__name__", found),
)
def test_whatever_sending_does_around_itself_the_portable_path_is_right(
    loop: str, through: Callable[[Send, Message], Any], caplog: pytest.LogCaptureFixture
) -> None:
    global lock  # noqa: PLW0603 - it belongs to a loop
    lock = asyncio.Lock()

    class Between:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(scope, receive, lambda message: through(send, message))

    feed = Feed()
    server = ServerConfig(direct=False, heartbeat=0.05)
    count = 50
    with running(
        settings_of(feed.source, server=server), loop=loop, prepare=lambda app: app.add_middleware(Between)
    ) as service:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(service.open(f"/sse/feed?limit={count}")) for _ in range(4)]
            leaver = stack.enter_context(service.open("/sse/feed"))
            for n in range(count):
                feed.note(n, text="x" * (100_000 if n == 7 else 10))
                if n % 10 == 9:
                    assert numbers(streams[0].take(10)) == list(range(n - 9, n + 1))
            leaver.take(5)
            leaver.close()
            assert [event.event for event in streams[0].rest()] == ["stream.end"]
            assert [numbers(stream.rest()) for stream in streams[1:]] == [list(range(count))] * 3
        wait_until(lambda: service.hub.subscriptions == 0)
        wait_until(service.is_idle, "the requests to be over")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@both_loops
def test_what_sending_raises_ends_its_stream_alone_and_the_server_sees_it(
    loop: str, uvicorn_log: pytest.LogCaptureFixture
) -> None:
    class Between:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def broken(message: Message) -> None:
                if b"qualify" in scope.get("query_string", b"") and b"event: feed/note" in message.get("body", b""):
                    raise ZeroDivisionError("on its way")
                await send(message)

            await self.app(scope, receive, broken)

    feed = Feed()
    settings = settings_of(feed.source, server=PORTABLE)
    with running(settings, loop=loop, prepare=lambda app: app.add_middleware(Between)) as service:
        with service.open("/sse/feed") as well, service.open("/sse/feed?qualify=true") as ill:
            feed.note(1, 2)
            assert numbers(well.take(2)) == [1, 2]
            with pytest.raises(httpx2.RemoteProtocolError):
                ill.rest()
            feed.note(3)
            assert numbers(well.take(1)) == [3]
    errors = [record for record in uvicorn_log.records if record.name == "uvicorn.error" and record.exc_info]
    assert len(errors) == 1
    assert "on its way" in str(errors[0].exc_info)


# Another server


@contextlib.contextmanager
def hypercorn(app: FastAPI) -> Iterator[str]:
    """The application on Hypercorn; gives its URL."""
    config = hypercorn_config.Config()
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = 1
    ends = threading.Event()

    async def ended() -> None:
        while not ends.is_set():
            await asyncio.sleep(0.01)

    async def main() -> None:
        await hypercorn_asyncio.serve(app, config, shutdown_trigger=ended)  # type: ignore[arg-type] # FastAPI is ASGI

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        ends.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_on_another_server_streams_are_right(version: str) -> None:
    feed = Feed()
    hot = enable(feed.source, history=Bounds(bytes=100 * MEGABYTE))
    app = create_app(settings_of(hot, server=ServerConfig(heartbeat=0.1)))
    is_two = version == "HTTP/2"
    with (
        hypercorn(app) as url,
        httpx2.Client(http1=not is_two, http2=is_two, trust_env=False, timeout=PATIENCE) as client,
    ):

        def read(path: str, said: Callable[[], None]) -> list[Any]:
            with client.stream("GET", url + path) as response:
                assert response.http_version == version
                parser, events = Parser(), []
                for part in response.iter_raw():
                    if parser.retry is None:
                        said()
                    events += map(received, parser.feed(part))
            return events

        events = read("/sse/feed?limit=5", lambda: feed.note(1, 2, 3, 4, 5, text="x" * 100_000))
        assert numbers(events) == [1, 2, 3, 4, 5]
        assert all(event.data["text"] == "x" * 100_000 for event in events[:-1])
        together = threading.Barrier(3)
        said = [lambda: together.wait(PATIENCE), lambda: together.wait(PATIENCE)]

        def say() -> None:
            together.wait(PATIENCE)
            wait_until(lambda: app.state.hub.subscriptions == 2)
            feed.note(*range(10, 30))

        two = [lambda one=one: read("/sse/feed?limit=20", one) for one in said]
        _, one, other = in_threads(say, *two)
        assert numbers(one) == numbers(other) == list(range(10, 30))
        wait_until(lambda: app.state.hub.subscriptions == 0)
        with httpx2.Client(http1=not is_two, http2=is_two, trust_env=False) as leaver:
            with leaver.stream("GET", f"{url}/sse/feed") as response:
                next(response.iter_raw())
        wait_until(lambda: app.state.hub.subscriptions == 0, "the stream to end with its client")


# Finding the route


def many() -> Any:
    sources = [source(name=f"source-{number}")(three_of) for number in range(50)]
    return settings_of(*sources)


async def three_of() -> AsyncIterator[Note]:
    for n in (1, 2, 3):
        yield Note(n=n)


@pytest.mark.anyio
@pytest.mark.parametrize("root_path", ["", "/prefix"])
async def test_a_route_is_found_without_trying_the_others(
    root_path: str, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    tried: list[str] = []
    matches = APIRoute.matches

    def counting(self: APIRoute, scope: Scope) -> Any:
        tried.append(self.path)
        return matches(self, scope)

    monkeypatch.setattr(APIRoute, "matches", counting)
    app = create_app(many())
    transport = httpx2.ASGITransport(app, root_path=root_path)
    async with httpx2.AsyncClient(transport=transport, base_url=f"http://service{root_path}") as client:
        for method, path, status in [
            ("GET", "/sse/source-49?limit=1", 200),
            ("POST", "/sse/source-0", 200),
            ("HEAD", "/sse/source-25", 200),
            ("GET", "/sse?sources=source-49,source-1", 200),
            ("GET", "/sse/source-50", 404),
            ("DELETE", "/sse/source-1", 405),
            ("PUT", "/sse", 405),
            ("GET", "/nowhere", 404),
        ]:
            tried.clear()
            response = await client.request(method, path)
            assert response.status_code == status, path
            if status == 200 and not root_path:
                assert tried == [path.partition("?")[0]]
            if path == "/sse/source-50":
                assert "source-5" in response.json()["detail"]
    await app.state.hub.close()


def test_mounted_in_another_application_every_route_is_found() -> None:
    inner = create_app(many())
    outer = Starlette(routes=[Mount("/events", inner)])
    with TestClient(outer) as client:
        answer = Answer(200, {}, client.get("/events/sse/source-7?limit=2").content, None)
        assert answer.numbers == [1, 2]
        assert client.get("/events/sse/source-50").status_code == 404
        assert client.delete("/events/sse/source-1").status_code == 405
        assert client.get("/sse/source-7").status_code == 404
        assert client.get("/events/healthz").status_code == 200


@both_loops
def test_under_a_prefix_that_the_server_is_told_every_route_is_found(loop: str) -> None:
    with running(settings_of(three), loop=loop, plain={"http": Protocol, "root_path": "/prefix"}) as service:
        with Raw(service) as client:
            client.ask("/sse/three?limit=2")
            assert client.answer().numbers == [1, 2]
            client.ask("/sse/four")
            assert client.answer().status == 404
