"""Requests that dawdle, are too large or too many are cut off, and nobody else notices."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from eventmux.config import ServerConfig
from eventsource import wait_until
from raw import LOOPS, Feed, Raw, Running, in_threads, numbers, request, running
from service import settings_of

SECONDS = 0.6  # server.request_timeout here
both_loops = pytest.mark.parametrize("loop", LOOPS)


@contextlib.contextmanager
def strict(feed: Feed, loop: str = "uvloop", *, http2: bool = False) -> Iterator[Running]:
    server = ServerConfig(request_timeout=SECONDS, http2=http2)
    with running(settings_of(feed.source, server=server), loop=loop) as service:
        yield service


def drip(client: Raw, text: bytes, *, every: float = 0.05) -> tuple[bytes, float]:
    """Send a byte at a time until the server ends the connection; what it has said, and how long that took."""
    started = time.monotonic()
    client.socket.settimeout(every)
    got = b""
    for byte in text:
        try:
            client.send(bytes([byte]))
            part = client.socket.recv(65_536)
        except TimeoutError:
            continue
        except OSError:
            break
        got += part
        if not part:
            break
    return got, time.monotonic() - started


def is_408(got: bytes) -> bool:
    return bool(re.match(rb"HTTP/1\.1 408 Request Timeout\r\n(?s:.*)\r\nconnection: close\r\n", got))


@both_loops
@pytest.mark.parametrize("http2", [False, True])
def test_a_client_that_says_nothing_is_cut_off_without_a_word(loop: str, *, http2: bool) -> None:
    with strict(Feed(), loop, http2=http2) as service, Raw(service) as client:
        started = time.monotonic()
        assert client.rest() == b""
        assert SECONDS * 0.9 < time.monotonic() - started < SECONDS + 1


@both_loops
@pytest.mark.parametrize("http2", [False, True])
def test_a_head_that_drips_is_cut_off_with_408(loop: str, *, http2: bool) -> None:
    with strict(Feed(), loop, http2=http2) as service, Raw(service) as client:
        got, seconds = drip(client, request("/sse/feed", f"X: {'x' * 1000}"))
        assert is_408(got)
        assert SECONDS * 0.9 < seconds < SECONDS + 1


@both_loops
def test_a_head_that_drips_on_a_connection_that_was_idle_is_cut_off(loop: str) -> None:
    with strict(Feed(), loop) as service, Raw(service) as client:
        for _ in range(3):
            client.ask("/healthz")
            assert client.answer().status == 200
            time.sleep(SECONDS * 0.7)  # it may be idle for as long as uvicorn lets it
        got, seconds = drip(client, request("/sse/feed", f"X: {'x' * 1000}"))
        assert is_408(got)
        assert SECONDS * 0.9 < seconds < SECONDS + 1


@both_loops
def test_blank_lines_are_no_request(loop: str) -> None:
    with strict(Feed(), loop) as service, Raw(service) as client:
        client.ask("/healthz")
        assert client.answer().status == 200
        got, seconds = drip(client, b"\r\n" * 500)
        assert got == b""
        assert seconds < SECONDS + 1


@both_loops
@pytest.mark.parametrize("path", ["/sse/feed", "/sse"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_drips_is_cut_off_in_all_and_not_after_a_pause(
    loop: str, path: str, caplog: pytest.LogCaptureFixture, *, chunked: bool
) -> None:
    with strict(Feed(), loop) as service, Raw(service) as client:
        size = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100000"
        client.ask(path, "Content-Type: application/json", size, method="POST")
        got, seconds = drip(client, b"1\r\n{\r\n" * 200 if chunked else b'{"sources": ' + b" " * 1000)
        assert is_408(got)
        assert seconds < SECONDS + 1
        wait_until(service.is_idle, "the request to end")
    assert [record for record in caplog.records if record.exc_info] == []


@both_loops
def test_a_request_that_comes_in_parts_but_in_time_is_answered(loop: str) -> None:
    with strict(Feed(), loop) as service, Raw(service) as client:
        for _ in range(3):
            for part in (b"GET /hea", b"lthz HTTP/1.1\r\nHo", b"st: x\r\n\r", b"\n"):
                client.send(part)
                time.sleep(SECONDS / 8)
            assert client.answer().status == 200


@both_loops
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_stream_is_not_a_request_and_flows_longer_than_one_may_take(loop: str, version: str) -> None:
    feed = Feed()
    with strict(feed, loop) as service, Raw(service) as client:
        client.ask("/sse/feed?limit=3", version=version)
        for n in (1, 2, 3):
            wait_until(lambda: service.hub.subscriptions == 1)
            time.sleep(SECONDS * 0.7)
            feed.note(n)
        assert numbers(client.answer().events) == [1, 2, 3]


@both_loops
def test_half_a_request_behind_a_stream_does_not_cut_the_stream(loop: str) -> None:
    feed = Feed()
    with strict(feed, loop) as service, Raw(service) as client:
        client.send(request("/sse/feed?limit=2") + b"GET /heal")
        wait_until(lambda: service.hub.subscriptions == 1)
        time.sleep(SECONDS * 2.5)
        feed.note(1, 2)
        assert numbers(client.answer().events) == [1, 2]
        client.send(b"thz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.answer().status == 200


def test_two_hundred_that_drip_do_not_hinder_others() -> None:
    feed = Feed()
    with strict(feed) as service, contextlib.ExitStack() as stack:
        stop = threading.Event()
        slow = [stack.enter_context(Raw(service)) for _ in range(200)]
        reader = stack.enter_context(Raw(service))
        reader.ask("/sse/feed?limit=20")
        reader.head()

        def drip_all() -> list[Raw]:
            """Until all have been cut off; who has been."""
            cut: list[Raw] = []
            while len(cut) < len(slow) and not stop.wait(0.02):
                for client in slow:
                    if client not in cut:
                        try:
                            client.send(b"X")
                            client.socket.setblocking(False)
                            if not client.socket.recv(1) or True:
                                cut.append(client)
                        except BlockingIOError:
                            client.socket.setblocking(True)
                        except OSError:
                            cut.append(client)
            return cut

        def others() -> float:
            worst = 0.0
            for n in range(20):
                with Raw(service) as other:
                    started = time.monotonic()
                    other.ask("/healthz")
                    assert other.answer().status == 200
                    worst = max(worst, time.monotonic() - started)
                feed.note(n)
                time.sleep(0.03)
            return worst

        cut, worst = in_threads(drip_all, others)
        assert len(cut) == 200
        assert worst < 0.5
        assert b"".join(reader.chunks()).count(b"event: note") == 20
        wait_until(lambda: len(service.server.server_state.connections) <= 1, "their connections to be let go")


# Too much


def flood(client: Raw, part: bytes, times: int) -> bytes:
    """Send it so often, or until the server ends the connection; what it says."""
    with contextlib.suppress(OSError):
        for _ in range(times):
            client.send(part)
    with contextlib.suppress(OSError):
        client.rest()
    return client.text


@both_loops
@pytest.mark.parametrize(
    ("beginning", "part"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"X-Filler: %b\r\n" % (b"x" * 1000)),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Filler: ", b"x" * 1000),
        (b"GET /healthz?", b"x" * 1000),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"x" * 1000),
    ],
    ids=["headers", "value", "target", "name"],
)
def test_a_head_without_end_is_refused_with_431_and_not_kept(loop: str, beginning: bytes, part: bytes) -> None:
    with running(settings_of(Feed().source), loop=loop) as service, Raw(service) as client:
        sent = 0

        def count(data: bytes, send: Callable[[bytes], None] = client.send) -> None:
            nonlocal sent
            send(data)
            sent += len(data)

        client.send(beginning)
        client.send = count  # type: ignore[method-assign]
        got = flood(client, part, 20_000)
        assert sent < 20_000_000
        assert got == b"" or got.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
        with Raw(service) as other:
            other.ask("/healthz")
            assert other.answer().status == 200


@both_loops
def test_a_head_that_is_whole_and_too_large_is_refused_with_431(loop: str) -> None:
    with running(settings_of(Feed().source), loop=loop) as service:
        with Raw(service) as client:
            client.ask("/healthz", *[f"X-{n}: {'x' * 1000}" for n in range(80)])
            answer = client.answer()
            assert (answer.status, answer.headers["connection"]) == (431, "close")
            assert client.is_closed()
        with Raw(service) as client:
            client.ask("/healthz", *[f"X-{n}: {'x' * 1000}" for n in range(50)])
            assert client.answer().status == 200


@both_loops
def test_requests_behind_a_stream_are_bounded(loop: str) -> None:
    feed = Feed()
    with running(settings_of(feed.source), loop=loop) as service, Raw(service) as client:
        client.send(request("/sse/feed") + request("/healthz") * 5_000)
        assert b"healthz" not in flood(client, request("/healthz"), 200_000)
        wait_until(service.is_quiet)


# Nonsense

NONSENSE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"\x00" * 1000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /sse HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /sse HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /sse HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /sse/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
]


@pytest.mark.parametrize("http2", [False, True])
@both_loops
def test_nonsense_is_refused_without_a_traceback_and_others_go_on(
    loop: str, caplog: pytest.LogCaptureFixture, *, http2: bool
) -> None:
    feed = Feed()
    with strict(feed, loop, http2=http2) as service, Raw(service) as reader:
        reader.ask("/sse/feed?limit=3")
        reader.head()
        wait_until(lambda: service.hub.subscriptions == 1)
        for words in NONSENSE:
            with Raw(service) as client:
                client.send(words)
                with contextlib.suppress(OSError):
                    client.socket.shutdown(socket.SHUT_WR)
                    client.rest()
        feed.note(1, 2, 3)
        assert b"".join(reader.chunks()).count(b"event: note") == 3
        wait_until(service.is_idle, "all requests to end")
    assert [record for record in caplog.records if record.exc_info or "Traceback" in record.getMessage()] == []
