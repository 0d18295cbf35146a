"""Behind Debian's nginx, with the file of docs/deployment: both versions of HTTP over TLS, and nothing is lost."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h2.connection
import h2.errors
import h2.events
import httpx2
import pytest
from fastapi import FastAPI, Request

from edge import DEPLOYMENT, Edge, nginx
from eventmux.config import ServerConfig
from eventsource import PATIENCE, wait_until
from follower import Follower, following
from proxy import proxying
from raw import Feed, Running, numbers, running
from restart import RestartableService, restartable
from service import enable, settings_of
from test_chromium import ARGUMENTS

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.needs("nginx")
both_versions = pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2"])

QUICK = ServerConfig(heartbeat=0.1, retry=50)
CLOCK = "server: {retry: 50}\nsources:\n  clock: {params: {interval: 0.02}}\n"


@pytest.fixture
def feed() -> Feed:
    return Feed(linger=60)


@pytest.fixture
def service(feed: Feed) -> Iterator[Running]:
    settings = settings_of(enable(feed.source), server=QUICK)
    with running(settings, prepare=add_whoami) as service:
        yield service


@pytest.fixture
def edge(service: Running, tmp_path: Path) -> Iterator[Edge]:
    with nginx(service.url, tmp_path) as edge:
        yield edge


def add_whoami(app: FastAPI) -> None:
    @app.api_route("/whoami", methods=["GET", "POST"])
    async def whoami(request: Request) -> dict[str, Any]:
        assert request.client
        return {
            "client": request.client.host,
            "scheme": request.url.scheme,
            "host": request.headers["host"],
            "forwarded": request.headers.getlist("x-forwarded-for"),
            "size": len(await request.body()),
        }


@both_versions
def test_each_event_arrives_before_the_next_one_is_made(service: Running, edge: Edge, feed: Feed, http2: bool) -> None:
    with edge.open("/sse/feed", http2=http2) as stream:
        assert stream.response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert "content-encoding" not in stream.response.headers
        for number in range(50):
            feed.note(number)
            assert [number] == numbers(stream.take(1))


@both_versions
def test_heartbeats_pass(edge: Edge, http2: bool) -> None:
    with edge.open("/sse/feed", http2=http2) as stream:
        for chunk in stream.chunks:
            stream.parser.feed(chunk)
            if len(stream.parser.comments) >= 3:
                break
        assert len(stream.parser.comments) >= 3


def test_nginx_waits_for_several_heartbeats() -> None:
    text = (DEPLOYMENT / "nginx.conf").read_text("utf-8")
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", text)
    assert int(seconds) >= 2 * ServerConfig().heartbeat


def test_a_client_that_has_gone_is_not_served_on(service: Running, edge: Edge) -> None:
    with ExitStack() as streams:
        for _ in range(3):
            streams.enter_context(edge.open("/sse/feed", http2=False))
        assert service.hub.subscriptions == 3
    wait_until(lambda: service.hub.subscriptions == 0, "the service to hear that its clients have gone")


def test_a_stream_that_is_reset_is_not_served_on_and_its_connection_stays(
    service: Running, edge: Edge, feed: Feed
) -> None:
    with Http2(edge) as client:
        opened = [client.ask("/sse/feed") for _ in range(3)]
        for stream in opened:
            client.until(stream, b"id: ")
        assert service.hub.subscriptions == 3
        for stream in opened[:2]:
            client.reset(stream)
        wait_until(lambda: service.hub.subscriptions == 1, "the service to hear that two streams are over")
        feed.note(7)
        client.until(opened[2], b'"n":7')


class Http2:
    """One connection and its streams, each to be reset alone, as browsers do; httpx2 only leaves them."""

    def __init__(self, edge: Edge) -> None:
        host, port = edge.url.removeprefix("https://").split(":")
        context = ssl.create_default_context(cafile=str(edge.certificate))
        context.set_alpn_protocols(["h2"])
        raw = socket.create_connection((host, int(port)), PATIENCE)
        self._socket = context.wrap_socket(raw, server_hostname=host)
        self._host = f"{host}:{port}"
        self._h2 = h2.connection.H2Connection()
        self._h2.initiate_connection()
        self._texts: dict[int, bytes] = {}
        self._flush()

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())

    def ask(self, path: str) -> int:
        stream = self._h2.get_next_available_stream_id()
        head = [(":method", "GET"), (":scheme", "https"), (":authority", self._host), (":path", path)]
        self._h2.send_headers(stream, head, end_stream=True)
        self._texts[stream] = b""
        self._flush()
        return stream

    def reset(self, stream: int) -> None:
        self._h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        self._flush()

    def until(self, stream: int, end: bytes) -> None:
        while end not in self._texts[stream]:
            for event in self._h2.receive_data(self._socket.recv(65_536)):
                assert not isinstance(event, h2.events.ConnectionTerminated | h2.events.StreamEnded)
                if isinstance(event, h2.events.DataReceived):
                    self._texts[event.stream_id] += event.data
            self._flush()


@both_versions
def test_a_client_that_is_cut_off_anywhere_goes_on_where_it_was(
    service: Running, edge: Edge, feed: Feed, http2: bool
) -> None:
    with following(f"{edge.url}/sse/feed", cuts=20, seed=5, verify=edge.trust, http2=http2) as follower:
        total = 0
        while follower.cuts_left or total < 300:
            feed.note(*range(total, total + 5))
            total += 5
            wait_until(lambda end=total: len(follower.numbers) >= end or follower.error, "the events to come")
            assert not follower.error
        assert list(range(total)) == follower.numbers
    assert {200} == set(follower.statuses)
    assert len(follower.statuses) >= 21


@pytest.mark.needs("curl")
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_streams_do_not_notice_a_reload(edge: Edge, feed: Feed, version: str) -> None:
    """curl, because httpx2 takes HTTP/2's GOAWAY for the end of the streams that it lets be."""
    command = ["curl", "-sN", version, "--cacert", str(edge.certificate), f"{edge.url}/sse/feed"]
    curl = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert curl.stdout
    lines = iter(curl.stdout.readline, b"")
    try:
        assert next(lines).startswith(b"retry:")  # it is there
        edge.reload()
        wait_until(lambda: "gracefully shutting down" in error_log(edge), "the old workers to hear of it")
        with edge.open("/sse/feed") as new:
            for number in range(20):
                feed.note(number)
                assert [number] == numbers(new.take(1))
                assert f'"n":{number},' in str(next(line for line in lines if line.startswith(b"data:")))
    finally:
        curl.kill()
        curl.wait()
        curl.stdout.close()


@both_versions
def test_no_event_is_lost_where_nginx_reloads_and_cuts_off_what_is_open(
    service: Running, feed: Feed, tmp_path: Path, http2: bool
) -> None:
    with (
        nginx(service.url, tmp_path, main="worker_shutdown_timeout 100ms;") as edge,
        followed(edge, feed, http2=http2) as (follower, total),
    ):
        for count in range(1, 4):
            edge.reload()
            wait_until(lambda: follower.lost >= count or len(follower.statuses) > count, "the stream to be cut off")  # noqa: B023 - called at once
            wait_until(lambda seen=len(follower.numbers): len(follower.numbers) > seen, "events to go on")
    assert list(range(total[0])) == follower.numbers
    assert {200} == set(follower.statuses)


@both_versions
def test_no_event_is_lost_where_nginx_is_started_again(edge: Edge, feed: Feed, http2: bool) -> None:
    with followed(edge, feed, http2=http2) as (follower, total):
        for _ in range(3):
            edge.stop()
            edge.start()
            wait_until(lambda seen=len(follower.numbers): len(follower.numbers) > seen, "events to go on")
    assert list(range(total[0])) == follower.numbers
    assert {200} == set(follower.statuses)


class followed:  # noqa: N801 - used as a word of `with`
    """A follower of `feed`, which speaks without a pause; when left, all of it has come. Gives it, and [how much]."""

    def __init__(self, edge: Edge, feed: Feed, *, http2: bool) -> None:
        self._feed = feed
        self._stopping = threading.Event()
        self._total = [0]
        self._follower = Follower(f"{edge.url}/sse/feed", verify=edge.trust, http2=http2)
        self._speaker = threading.Thread(target=self._speak)

    def _speak(self) -> None:
        while not self._stopping.wait(0.002):
            self._feed.note(self._total[0])
            self._total[0] += 1

    def __enter__(self) -> tuple[Follower, list[int]]:
        self._follower.start()
        wait_until(lambda: self._follower.statuses, "the stream to begin")
        self._speaker.start()
        wait_until(lambda: self._follower.numbers, "the first event")
        return self._follower, self._total

    def __exit__(self, kind: object, *_: object) -> None:
        self._stopping.set()
        self._speaker.join()
        try:
            if kind is None:
                wait_until(lambda: len(self._follower.numbers) >= self._total[0], "the last event")
        finally:
            self._follower.stop()
            self._follower.join()
        assert self._follower.error is None


@both_versions
def test_the_service_sees_the_address_of_the_client_and_nothing_that_it_claims(edge: Edge, http2: bool) -> None:
    claims = {"x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "gopher"}
    transport = httpx2.HTTPTransport(verify=edge.trust, http2=http2, local_address="127.0.0.9")
    with httpx2.Client(transport=transport, trust_env=False) as client:
        seen = client.get(f"{edge.url}/whoami", headers=claims).json()
    host = edge.url.removeprefix("https://")
    assert {"client": "127.0.0.9", "scheme": "https", "host": host, "forwarded": ["127.0.0.9"], "size": 0} == seen


@both_versions
def test_what_the_service_takes_nginx_takes(edge: Edge, feed: Feed, http2: bool) -> None:
    def first(path: str, **options: object) -> str:
        with edge.open(path, http2=http2, **options) as stream:
            return stream.take(1)[0].event

    # A cursor as long as they are read, in the header and in the query; and a query and a body as long as they may be.
    others = (f"source-{number}={'x' * 22}.{number}" for number in range(110))
    long = ",".join(["feed=xxxx.1", *others])[:4_096]
    assert "stream.gap" == first("/sse/feed", cursor=long)
    assert "stream.gap" == first(f"/sse/feed?last_event_id={long}")
    query = "last_event_id=".ljust(32 * 1024, "x")
    assert "stream.gap" == first(f"/sse/feed?{query}")
    assert edge.get(f"/sse/feed?{query}y", http2=http2).status_code == 413
    assert edge.get("/whoami", http2=http2, headers={"authorization": f"Bearer {'x' * 16_000}"}).status_code == 200
    feed.note(0)
    assert "note" == first("/sse?since=earliest", method="POST", body={"sources": {"feed": {}}})
    assert 1024 * 1024 == edge.post("/whoami", http2=http2, content=b"x" * 1024 * 1024).json()["size"]
    # httpx2 sends all of a body before it reads, and over HTTP/2 nobody makes room for it.
    assert edge.post("/whoami", http2=False, content=b"x" * (1024 * 1024 + 1)).status_code == 413


def test_what_is_for_those_inside_is_not_to_be_had(service: Running, edge: Edge) -> None:
    assert [404, 404] == [edge.get(path).status_code for path in ("/metrics", "/readyz")]
    assert [200, 200] == [edge.get(path).status_code for path in ("/healthz", "/sources")]
    assert service.get("/readyz").status_code == 200


def test_a_hundred_streams_share_one_http2_connection(service: Running, edge: Edge, feed: Feed) -> None:
    connections: set[Any] = set()

    async def follow(client: httpx2.AsyncClient) -> list[int]:
        async with client.stream("GET", f"{edge.url}/sse/feed?limit=5") as response:
            connections.add(response.extensions["network_stream"].get_extra_info("client_addr"))
            assert response.http_version == "HTTP/2"
            text = b"".join([chunk async for chunk in response.aiter_raw()])
            return [int(number) for number in re.findall(rb'"n":(\d+)', text)]

    async def follow_all() -> list[list[int]]:
        one = httpx2.Limits(max_connections=1)
        async with httpx2.AsyncClient(http2=True, verify=edge.trust, trust_env=False, timeout=10, limits=one) as client:
            tasks = [asyncio.create_task(follow(client)) for _ in range(100)]
            while service.hub.subscriptions < 100:
                assert not any(task.done() for task in tasks)
                await asyncio.sleep(0.01)
            feed.note(*range(5))
            return await asyncio.gather(*tasks)

    assert [list(range(5))] * 100 == asyncio.run(follow_all())
    assert 1 == len(connections)


def test_connections_to_the_service_are_used_again(service: Running, feed: Feed, tmp_path: Path) -> None:
    feed.note(*range(20))
    with proxying(service.url) as between, nginx(between.url, tmp_path) as edge:
        for _ in range(20):
            with edge.open("/sse/feed?limit=1&since=earliest") as stream:
                assert ["note", "stream.end"] == [event.event for event in stream.rest()]
        assert 20 <= len(between.requests)
        assert between.accepted <= 4  # nginx has two workers


@pytest.fixture
def restarted(tmp_path: Path) -> Iterator[RestartableService]:
    (tmp_path / "service").mkdir()
    with restartable(CLOCK, tmp_path / "service") as service:
        yield service


@pytest.fixture
def edge_of_restarted(restarted: RestartableService, tmp_path: Path) -> Iterator[Edge]:
    with nginx(restarted.url, tmp_path) as edge:
        yield edge


@both_versions
def test_an_event_source_is_sent_away_to_come_back_while_the_service_is_down(
    restarted: RestartableService, edge_of_restarted: Edge, http2: bool
) -> None:
    edge = edge_of_restarted
    with edge.open("/sse/clock", http2=http2) as before:
        before.take(2)
        restarted.kill()
        with pytest.raises(httpx2.TransportError):
            before.rest()
    waits = set()
    for _ in range(10):
        with edge.open("/sse/clock", http2=http2) as away:
            assert (200, "text/event-stream") == (away.response.status_code, away.response.headers["content-type"])
            assert [] == away.rest()
            waits.add(away.parser.retry)
    assert len(waits) > 1
    assert waits <= set(range(1_000, 4_000))
    response = edge.get("/sources", http2=http2)
    assert (503, "3") == (response.status_code, response.headers["retry-after"])
    restarted.start()
    with edge.open("/sse/clock", http2=http2, cursor=before.cursor) as after:
        assert ["stream.gap", "tick"] == [event.event for event in after.take(2)]


FOLLOW = """
([path, count]) => {
  window.sources = Array.from({length: count}, () => {
    const source = new EventSource(path), seen = {source, ticks: 0, gaps: 0, errors: 0, opens: 0};
    source.onopen = () => seen.opens++;
    source.onerror = () => seen.errors++;
    source.addEventListener("tick", () => seen.ticks++);
    source.addEventListener("stream.gap", () => seen.gaps++);
    return seen;
  });
}
"""


@pytest.fixture
def page() -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser.new_page(ignore_https_errors=True)
        browser.close()


def wait_for(page: Page, condition: str) -> None:
    """`condition` is JavaScript about each `seen` of the page's sources."""
    page.wait_for_function(f"() => sources.every(seen => {condition})", polling=10, timeout=10_000)


@pytest.mark.needs("chromium")
def test_chromium_opens_more_than_six_streams_over_http2_and_comes_back_after_a_restart(
    page: Page, restarted: RestartableService, edge_of_restarted: Edge
) -> None:
    page.goto(f"{edge_of_restarted.url}/healthz")
    assert "h2" == page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol")
    page.evaluate(FOLLOW, ["/sse/clock", 12])
    wait_for(page, "seen.ticks >= 5")
    restarted.kill()
    wait_for(page, "seen.opens >= 2 && seen.errors >= 2")  # it has been at @away
    assert page.evaluate("sources.every(seen => seen.source.readyState !== EventSource.CLOSED)")
    page.evaluate("sources.forEach(seen => seen.ticks = 0)")
    restarted.start()
    wait_for(page, "seen.ticks >= 5 && seen.gaps === 1")


@pytest.mark.needs("chromium")
def test_without_the_remedy_chromium_stops_for_ever_at_a_502(
    page: Page, restarted: RestartableService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the remedy is there: should this ever fail, it may go."""
    plain = tmp_path / "deployment"
    plain.mkdir()
    text = (DEPLOYMENT / "nginx.conf").read_text("utf-8").replace("error_page 502 504 = @away;", "")
    (plain / "nginx.conf").write_text(text, "utf-8")
    monkeypatch.setattr("edge.DEPLOYMENT", plain)
    with nginx(restarted.url, tmp_path) as edge:
        page.goto(f"{edge.url}/healthz")
        page.evaluate(FOLLOW, ["/sse/clock", 1])
        wait_for(page, "seen.ticks >= 5")
        restarted.kill()
        wait_for(page, "seen.source.readyState === EventSource.CLOSED")


def error_log(edge: Edge) -> str:
    return (edge.log.parent / "error.log").read_text("utf-8")
