"""Ways in which bytes once came to the wrong client, too late or not at all, each as the promise that is kept now."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Generator
from functools import partial
from typing import Any

import pytest
from fastapi import Depends
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventmux import source
from eventmux.app import create_app
from eventmux.config import ServerConfig
from eventmux.fanout import Fanout
from eventmux.hub import Hub, Start, Wanted
from eventmux.policy import Bounds
from eventmux.reader import Entry, Reader
from eventmux.selection import Selection
from eventmux.step import Piece
from eventmux.web import trial
from eventmux.web.direct import DirectOutlet, Taken
from eventmux.web.formats import JSON, MEDIA_TYPES, NDJSON, SSE, format_of
from eventmux.web.outlet import Outlet
from eventmux.web.protocol import Protocol
from eventmux.web.server import Server
from eventmux.web.trial import Watched
from eventsource import wait_until
from raw import LOOPS, Feed, Note, Other, Raw, in_threads, request, running, spend
from service import enable, serving, settings_of

DIRECT = ServerConfig(direct=True)
LIMITS = range(1, 41)

both_loops = pytest.mark.parametrize("loop", LOOPS)
ways = pytest.mark.parametrize(
    ("is_direct", "loop"), [(True, "uvloop"), (False, "asyncio")], ids=["direct", "portable"]
)
both_paths = pytest.mark.parametrize("is_direct", [True, False], ids=["direct", "portable"])


def begin(client: Raw, path: str = "/sse/feed", *headers: str) -> None:
    """Ask for a stream, and read its head and the first bytes."""
    client.ask(path, *headers)
    assert client.head()[0] == 200
    assert client.chunk().startswith(b"retry: ")


def has_ended(client: Raw) -> bool:
    """Whether the connection ends, whatever still comes on it."""
    try:
        client.rest()
    except ConnectionResetError:
        pass
    return True


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


# The next request


@both_loops
@pytest.mark.parametrize("kind", ["Content-Length", "chunked"])
def test_the_rest_of_a_requests_body_is_never_taken_for_the_next_request(loop: str, kind: str) -> None:
    feed, hidden = Feed(), request("/healthz")
    if kind == "chunked":
        headers, start, body = "Transfer-Encoding: chunked", b"%x\r\n" % len(hidden), hidden + b"\r\n0\r\n\r\n"
    else:
        headers, start, body = f"Content-Length: {len(hidden) + 1}", b"x", hidden
    with running(settings_of(feed.source, server=DIRECT), loop=loop) as service:
        with Raw(service) as other, Raw(service) as client:
            begin(other)
            wait_until(lambda: len(service.outlets) == 1, "a stream without a body to be direct")
            for is_early in (True, False):  # before the stream ends, and after it
                client.send(request("/sse/feed?limit=1", headers) + start)
                client.until(b"retry: ")
                if is_early:
                    client.send(body + request("/nowhere"))
                feed.note(1)
                client.until(b"\r\n0\r\n\r\n")
                if not is_early:
                    client.send(body + request("/nowhere"))
                assert client.answer().status == 404
                client.ask("/healthz")
                assert client.answer().status == 200


@both_loops
def test_what_a_client_does_not_take_of_the_next_answer_is_bounded(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is full when the first stream ends: as if its last events had just filled it."""
    feed, found, is_full = Feed(), [], []
    finish = DirectOutlet._finish
    mine: list[bool] = []

    def finish_on_a_full_socket(outlet: DirectOutlet) -> None:
        transport: Any = outlet._transport
        is_end = bool(mine) and outlet._last is not None and not outlet._rest and not outlet._is_done
        if not is_end or outlet._is_full:
            finish(outlet)
            return
        mine.clear()
        found.append(transport)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(outlet._fd, b"1\r\n\n\r\n" * 10)
        finish(outlet)
        is_full.append(transport.get_write_buffer_size() > 0)

    monkeypatch.setattr(DirectOutlet, "_finish", finish_on_a_full_socket)
    hot = enable(feed.source, linger=60, history=Bounds(bytes=50_000_000))
    count, text = 120, "x" * 10_000
    with running(settings_of(hot, server=DIRECT), loop=loop, expect_quiet=False) as service:
        with Raw(service) as neighbour, Raw(service, buffer=4_096) as client:
            begin(client, "/sse/feed?limit=1")
            begin(neighbour)
            wait_until(lambda: len(service.outlets) == 2, "the streams to be direct")
            client.send(request("/sse/feed?since=earliest") * 2)
            wait_until(lambda: any(outlet._early for outlet in service.outlets), "the next requests to be there")
            mine.append(True)
            feed.note(0)
            wait_until(lambda: is_full, "the first stream to end")
            assert is_full == [True]
            feed.note(*range(1, count + 1), text=text)
            neighbour.until(b'"n":%d,' % count)
            (transport,) = found
            spend(0.2, lambda: transport.get_write_buffer_size() > 500_000)
            assert transport.get_write_buffer_size() < 300_000
            client.size = 1 << 20
            client.until(b"HTTP/1.1 200 OK\r\n")  # the answer to the next request: from its beginning, and all of it
            numbers = [int(n) for n in re.findall(rb'"n":(\d+),', client.until(b'"n":%d,' % count))]
            assert numbers == list(range(count + 1))


@both_loops
def test_uvicorn_counts_each_direct_stream_once(loop: str) -> None:
    feed = Feed()
    with running(settings_of(feed.source, server=DIRECT), loop=loop) as service:
        state = service.server.server_state
        with Raw(service) as kept:
            for n in range(1, 7):
                is_closed = n % 2 == 0
                with Raw(service) if is_closed else contextlib.nullcontext(kept) as client:
                    begin(client, "/sse/feed?limit=1", *(["Connection: close"] if is_closed else []))
                    wait_until(lambda: len(service.outlets) == 1, "the stream to be direct")
                    feed.note(n)
                    client.until(b"\r\n0\r\n\r\n")
                    if is_closed:
                        assert client.is_closed()
                wait_until(lambda: service.outlets == [])
                assert state.total_requests == n
        wait_until(lambda: not state.connections)
        assert state.total_requests == 6


# Clients that leave


@ways
def test_clients_that_ask_and_leave_at_once_leave_no_traceback_and_start_no_run(
    loop: str, is_direct: bool, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[int] = []
    is_holding, gate = threading.Event(), threading.Event()

    @source(shared=False)
    async def mine() -> AsyncIterator[Note]:
        begun.append(1)
        yield Note(n=1)
        await asyncio.sleep(3_600)

    async def hold() -> None:
        """Nothing else is done on the loop until they have left."""
        is_holding.set()
        gate.wait()

    settings = settings_of(mine, server=ServerConfig(direct=is_direct))
    with running(settings, loop=loop, prepare=lambda app: app.add_api_route("/hold", hold)) as service:
        with Raw(service) as holder:
            holder.ask("/hold")
            is_holding.wait()
            for n in range(50):
                with Raw(service) as client:
                    client.ask("/sse/mine")
                    if n % 2:  # with a reset
                        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gate.set()
            assert holder.answer().status == 200
            wait_until(lambda: len(service.server.server_state.connections) == 1, "those that left to be forgotten")
            wait_until(service.is_idle)
            begin(holder, "/sse/mine?limit=1")
            holder.until(b"\r\n0\r\n\r\n")
    assert len(begun) == 1
    assert tracebacks(caplog) == []


@ways
def test_after_a_server_has_ended_in_its_grace_no_subscription_of_a_stalled_client_is_left(
    loop: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, left = Feed(), []
    server = ServerConfig(direct=is_direct, grace=1, send_timeout=60)
    hot = enable(feed.source, history=Bounds(bytes=50_000_000))
    serve = Server.serve

    async def serve_and_count(self: Server, sockets: list[socket.socket] | None = None) -> None:
        await serve(self, sockets)
        left.append(service.hub.subscriptions)
        clients.close()
        while self.server_state.connections:  # before the loop is closed on them
            await asyncio.sleep(0.01)

    monkeypatch.setattr(Server, "serve", serve_and_count)
    with contextlib.ExitStack() as clients:
        with running(settings_of(hot, server=server), loop=loop, expect_quiet=False) as service:
            for _ in range(5):
                begin(clients.enter_context(Raw(service, buffer=4_096)))
            quick = clients.enter_context(Raw(service))
            begin(quick)
            feed.note(*range(100), text="x" * 20_000)
            quick.until(b'"n":99,')
            assert service.hub.subscriptions == 6
        assert left == [0]


# Middleware


class Queued:
    """Passes messages on from a task of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages: asyncio.Queue[Message | None] = asyncio.Queue()

        async def pass_on() -> None:
            while (message := await messages.get()) is not None:
                await send(message)

        task = asyncio.create_task(pass_on())
        await self.app(scope, receive, messages.put)
        await messages.put(None)
        await task


class Upper:
    """Rewrites bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def rewrite(message: Message) -> None:
            await send({**message, "body": message["body"].upper()} if message.get("body") else message)

        await self.app(scope, receive, rewrite)


@pytest.mark.parametrize(("media_type", "loop"), [(SSE, "uvloop"), (NDJSON, "asyncio"), (JSON, "uvloop")])
@pytest.mark.parametrize("middleware", [Queued, Upper])
def test_behind_a_middleware_a_stream_has_its_head_and_is_what_the_middleware_makes_of_it(
    loop: str, media_type: str, middleware: type[Any]
) -> None:
    feed = Feed()
    settings = settings_of(feed.source, server=DIRECT)
    with running(settings, loop=loop, prepare=lambda app: app.add_middleware(middleware)) as service:
        with Raw(service) as client:
            for n in (1, 2):
                client.ask("/sse/feed?limit=1", f"Accept: {media_type}")
                wait_until(lambda: service.hub.subscriptions == 1)
                feed.note(n)
                answer = client.answer()
                assert answer.status == 200
                assert answer.headers["content-type"].startswith(media_type)
                text = answer.body.decode()
                assert ("NOTE" in text, "note" in text) == (middleware is Upper, middleware is Queued)
                assert f'"n":{n},' in text.lower()
                assert "stream.end" in text.lower()
                wait_until(lambda: service.hub.subscriptions == 0)


# Test clients


@source(shared=False)
async def quiet() -> AsyncIterator[Note]:
    await asyncio.sleep(0.2)
    yield Note(n=1)


def test_in_a_test_client_each_of_whose_requests_has_a_loop_of_its_own_heartbeats_come() -> None:
    client = TestClient(create_app(settings_of(quiet, server=ServerConfig(heartbeat=0.05))))
    for _ in range(2):
        text = client.get("/sse/quiet").text
        assert text.count("event: note\n") == 1
        assert text.count("\n:\n\n") >= 1


def test_what_a_closed_loop_has_left_undone_is_done_on_the_loop_of_the_next_client() -> None:
    class Job:
        is_done = False

        def advance(self, now: float) -> bool:
            self.is_done = True
            return False

    fanout, jobs = Fanout(), [Job(), Job(), Job()]

    async def add(job: Job) -> None:
        fanout.begin()
        fanout.add(job)

    async def come() -> None:
        await add(jobs[2])
        for _ in range(10):
            await asyncio.sleep(0)

    for main in (add(jobs[0]), add(jobs[1]), come()):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main)
        loop.close()
    assert [job.is_done for job in jobs] == [True, True, True]


class Stuck:
    """Takes the beginning of a response, and then nothing for a while."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def take(message: Message) -> None:
            if b"event: " in message.get("body", b""):
                await asyncio.sleep(3)
                raise AssertionError("not cut off")
            await send(message)

        await self.app(scope, receive, take)


def test_in_a_test_client_each_of_whose_requests_has_a_loop_of_its_own_time_outs_come() -> None:
    app = create_app(settings_of(quiet, server=ServerConfig(send_timeout=0.1)))
    app.add_middleware(Stuck)
    client = TestClient(app)
    for _ in range(2):
        with pytest.raises(TimeoutError, match="took nothing"):
            client.get("/sse/quiet")


# Cursors


@ways
def test_a_cursor_goes_along_with_the_heartbeat_also_after_events_of_which_the_first_was_wanted(
    loop: str, is_direct: bool
) -> None:
    feed = Feed()
    settings = settings_of(feed.source, server=ServerConfig(direct=is_direct, heartbeat=0.06))
    with running(settings, loop=loop) as service, Raw(service) as client:
        begin(client, "/sse/feed?events=note")
        feed.say(Note(n=1), Other(n=2), Other(n=3))
        assert re.match(rb"id: [\w-]+\.1\nevent: note\n", client.until(b"event: note\n").rpartition(b"\r\n")[2])
        client.until(b"\n\n\r\n")
        beats = [client.chunk() for _ in range(3)]
        assert sum(bool(re.fullmatch(rb":\n\nid: [\w-]+\.3\n\n", beat)) for beat in beats) == 1
        assert beats[-1] == b":\n\n"


# Dependencies


class Held:
    """Dependencies that are held, in several ways, and the source that says when."""

    def __init__(self) -> None:
        self.said: list[str] = []

        async def held() -> AsyncIterator[None]:
            with self.hold():
                yield

        def held_in_a_thread() -> Generator[None]:
            with self.hold():
                yield

        def nested(it: None = Depends(held)) -> None:
            pass

        @source(shared=False)
        async def two() -> AsyncIterator[Note]:
            for n in (1, 2):
                await asyncio.sleep(0.05)
                self.said.append(f"event {n}")
                yield Note(n=n)

        self.source = two
        self.ways: dict[str, Callable[..., Any]] = {
            "async": held,
            "in a thread": held_in_a_thread,
            "nested": nested,
        }

    @contextlib.contextmanager
    def hold(self) -> Generator[None]:
        self.said.append("held")
        try:
            yield
        finally:
            self.said.append("left")


@pytest.mark.parametrize(("way", "loop"), [("async", "uvloop"), ("in a thread", "asyncio"), ("nested", "uvloop")])
def test_a_dependency_that_yields_is_held_until_the_stream_has_ended(
    loop: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    monkeypatch.setattr("raw.create_app", partial(create_app, dependencies=[Depends(held.ways[way])]))
    with running(settings_of(held.source, server=DIRECT), loop=loop) as service, Raw(service) as client:
        client.ask("/sse/two")
        assert client.answer().numbers == [1, 2]
        wait_until(lambda: "left" in held.said)
    assert held.said == ["held", "event 1", "event 2", "left"]


# The trial


def test_services_that_start_at_once_in_one_process_are_all_direct(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    count = 8
    begin_trial, open_all = threading.Barrier(count, timeout=20), threading.Barrier(count, timeout=20)
    serve = trial._serve_two
    take_over = Watched.take_over

    async def all_at_once(*words: Any) -> Any:
        begin_trial.wait()
        return await serve(*words)

    def take_over_with_others(self: Watched) -> Taken | None:
        taken = take_over(self)
        begin_trial.wait()  # nobody is done before all have taken one over
        return taken

    monkeypatch.setattr(trial, "_serve_two", all_at_once)
    monkeypatch.setattr(Watched, "take_over", take_over_with_others)

    def serve_one(loop: str) -> int:
        feed = Feed()
        with running(settings_of(feed.source, server=DIRECT), loop=loop) as service, Raw(service) as client:
            open_all.wait()
            begin(client)
            feed.note(1)
            client.until(b'"n":1,')
            wait_until(service.is_idle)
            return len(service.outlets)

    assert in_threads(*(partial(serve_one, LOOPS[n % 2]) for n in range(count))) == [1] * count
    assert [record.getMessage() for record in caplog.records if record.name == "eventmux"] == []


def test_the_log_line_of_a_failed_trial_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    take_over = Protocol.take_over

    def talkative(self: Protocol) -> Taken | None:
        self.transport.write(b"%x\r\n: %b\n\n\r\n" % (100_004, b"x" * 100_000))
        return take_over(self)

    monkeypatch.setattr(Protocol, "take_over", talkative)
    with running(settings_of(Feed().source, server=DIRECT)):
        pass
    (line,) = [record.getMessage() for record in caplog.records if record.name == "eventmux"]
    assert line.startswith("streams go through ASGI, at more cost: the trial took over 2 of 2 connections")
    assert len(line) < 1_000


# Failures


def break_reads(monkeypatch: pytest.MonkeyPatch, name: str, when: Callable[[], bool]) -> None:
    """From then on no step can be made for streams of the source `name` alone that need a reader (`events=`)."""
    read = Reader.read

    def breaking(self: Reader, left: int | None) -> list[Entry]:
        if when() and self._views[0].source == name:
            raise MemoryError("no room for this one")
        return read(self, left)

    monkeypatch.setattr(Reader, "read", breaking)


@ways
def test_a_failure_while_a_step_is_made_is_that_streams_alone(
    loop: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, is_broken = Feed("good"), Feed("bad"), threading.Event()
    break_reads(monkeypatch, "bad", is_broken.is_set)
    server = ServerConfig(direct=is_direct, heartbeat=60)  # which would hide it
    with running(settings_of(good.source, bad.source, server=server), loop=loop) as service:
        with Raw(service) as first, Raw(service) as second, Raw(service) as alone, contextlib.ExitStack() as stack:
            begin(first, "/sse/good")
            for count in (2, 1):  # served together, and by itself
                is_broken.clear()
                failing = [stack.enter_context(Raw(service)) for _ in range(count)]
                for client in failing:
                    begin(client, "/sse/bad?events=note")
                bad.note(1)
                for client in failing:
                    client.until(b'"n":1,')
                is_broken.set()
                bad.note(2)
                good.note(count)
                first.until(b'"n":%d,' % count)
                assert all(has_ended(client) for client in failing)
                wait_until(lambda: service.hub.subscriptions == 1)
            begin(second, "/sse/good")
            good.note(3)
            for client in (first, second):
                client.until(b'"n":3,')
            begin(alone, "/sse/bad")  # of the same source, by another way
            bad.note(3)
            alone.until(b'"n":3,')


@ways
def test_a_failure_of_one_stream_at_the_end_of_the_service_keeps_no_other_from_its_end(
    loop: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, is_broken = Feed("good"), Feed("bad"), threading.Event()
    break_reads(monkeypatch, "bad", is_broken.is_set)
    settings = settings_of(good.source, bad.source, server=ServerConfig(direct=is_direct, grace=5))
    with contextlib.ExitStack() as stack:
        with running(settings, loop=loop, expect_quiet=False) as service:
            failing = [stack.enter_context(Raw(service)) for _ in range(3)]
            others = [stack.enter_context(Raw(service)) for _ in range(3)]
            for client in failing:
                begin(client, "/sse/bad?events=note")
            for client in others:
                begin(client, "/sse/good")
            wait_until(lambda: len(service.outlets) == 6 * is_direct)
            is_broken.set()
            service.server.should_exit = True
            for client in others:
                assert re.fullmatch(rb"retry: \d+\n\n", b"".join(client.chunks()))
                assert client.is_closed()
            assert all(has_ended(client) for client in failing)


@ways
def test_a_failure_in_one_clients_heartbeat_is_that_clients_alone(
    loop: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, made = Feed(), []
    start, beat = Outlet.start, Outlet._beat

    def start_and_note(self: Outlet) -> None:
        made.append(self)
        start(self)

    def beat_or_fail(self: Outlet, now: float) -> None:
        if self is chosen[0]:
            raise RuntimeError("no heartbeat for this one")
        beat(self, now)

    chosen: list[Outlet | None] = [None]
    monkeypatch.setattr(Outlet, "_beat", beat_or_fail)
    with running(settings_of(feed.source, server=ServerConfig(direct=is_direct, heartbeat=0.06)), loop=loop) as service:
        monkeypatch.setattr(Outlet, "start", start_and_note)
        with Raw(service) as failing, Raw(service) as one, Raw(service) as two, Raw(service) as late:
            for n, client in enumerate((failing, one, two), 1):
                begin(client)
                wait_until(lambda n=n: len(made) == n)
            chosen[0] = made[0]
            assert has_ended(failing)
            begin(late)
            for client in (one, two, late):
                client.until(b":\n\n")
                client.until(b":\n\n")
            feed.note(1)
            for client in (one, two, late):
                client.until(b'"n":1,')
            wait_until(lambda: service.hub.subscriptions == 3)


# Limits


class Taker:
    """A client of a hub: keeps the bytes that it is given, as the objects that they are."""

    def __init__(self, hub: Hub, wanted: Wanted, media_type: str, limit: int | None) -> None:
        self.form = format_of(media_type, qualify=False)
        self.bodies: list[bytes] = []
        self.is_ended = False
        self.limit = limit
        self.subscription = hub.subscribe([wanted], Start(), Selection(self.form, None, limit))
        self.opening = self.form.opening(self.subscription.cursor, 0)
        self.subscription.start(self)

    def write(self, piece: Piece, now: float) -> bool:
        assert not self.is_ended
        self.bodies.append(piece.body)
        return True

    def end(self) -> None:
        self.is_ended = True

    def fail(self) -> None:
        raise AssertionError("a subscription failed")

    @property
    def text(self) -> bytes:
        return self.opening + b"".join(self.bodies) + (self.form.closing() if self.is_ended else b"")


def numbers_of(text: bytes) -> list[int]:
    return [int(n) for n in re.findall(rb'"n":(\d+)', text)]


@pytest.mark.anyio
@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize("seed", range(2))
async def test_clients_with_a_limit_share_the_bytes_of_the_steps_between_their_first_and_their_last(
    anyio_backend: str, media_type: str, seed: int
) -> None:
    chance, feed, hub = random.Random(seed), Feed(), Hub()
    enabled = enable(feed.source)
    wanted = Wanted(enabled, enabled.validate({}))
    takers = [Taker(hub, wanted, media_type, limit) for limit in [*LIMITS, *LIMITS, None, None]]
    chance.shuffle(takers)
    *_, free = (taker for taker in takers if taker.limit is None)
    try:
        n = 0
        while n < LIMITS[-1] + 5:
            burst = range(n + 1, n + 1 + chance.choice([1, 1, 2, 3, 7]))
            feed.note(*burst)
            n = burst[-1]
            while len(numbers_of(free.text)) < n:
                await asyncio.sleep(0)
        async with asyncio.timeout(5):
            while not all(taker.is_ended for taker in takers if taker.limit):
                await asyncio.sleep(0)
        shared = {id(body) for body in free.bodies}
        for taker in takers:
            assert numbers_of(taker.text) == list(range(1, (taker.limit or n) + 1))
            assert {id(body) for body in taker.bodies[1:-1]} <= shared
            assert taker.limit is None or taker.text.count(b"stream.end") == 1
            if media_type == JSON and taker.is_ended:
                assert len(json.loads(taker.text)) == (taker.limit or 0) + 1
        assert max(len(taker.bodies) for taker in takers if taker.limit) > 5  # there are such steps
    finally:
        for taker in takers:
            taker.subscription.close()
        await hub.close()


@both_paths
def test_every_client_with_a_limit_gets_exactly_its_events_in_order_beside_those_without(is_direct: bool) -> None:
    chance, feed = random.Random(1), Feed()
    with serving(settings_of(feed.source, server=ServerConfig(direct=is_direct))) as service:
        port = int(service.url.rpartition(":")[2])
        with contextlib.ExitStack() as stack, service.open("/sse/feed") as free:
            clients: dict[tuple[str, int], Raw] = {}
            for media_type in MEDIA_TYPES:
                for limit in LIMITS:
                    client = clients[media_type, limit] = stack.enter_context(Raw(port=port))
                    client.ask(f"/sse/feed?limit={limit}", f"Accept: {media_type}")
            wait_until(lambda: service.hub.subscriptions == len(clients) + 1)
            n = 0
            while n < LIMITS[-1]:
                burst = range(n + 1, n + 1 + chance.choice([1, 1, 2, 3, 7]))
                feed.note(*burst)
                n = burst[-1]
                assert [event.data["n"] for event in free.take(len(burst))] == list(burst)
            for (media_type, limit), client in clients.items():
                answer = client.answer()
                wanted = list(range(1, limit + 1))
                if media_type == SSE:
                    assert answer.numbers == wanted
                    assert answer.events[-1].event == "stream.end"
                    continue
                lines = answer.body.splitlines() if media_type == NDJSON else []
                objects = [json.loads(line) for line in lines] or json.loads(answer.body)
                assert [found["data"]["n"] for found in objects[:-1]] == wanted
                assert objects[-1]["event"] == "stream.end"
