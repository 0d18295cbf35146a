"""Bytes that no client means to send: headers, cursors, queries and bodies. The service answers, and goes on as before.

`EVENTMUX_EXAMPLES=5000 pytest tests/test_fuzz.py --timeout 0` draws so many for each test, anew each time.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote_from_bytes

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eventsource import PATIENCE, wait_until
from service import Service, serving_file
from whatwg import Message, Parser

CONFIG = """
server: {heartbeat: 0.02, grace: 2}
sources:
  counter: {linger: 0, defaults: {interval: 0.001}}
  echo: {linger: 0, defaults: {interval: 0.001}}
  reverse-echo: {linger: 0, defaults: {interval: 0.001}}
  clock: {linger: 0, defaults: {interval: 0.01}}
streams:
  all-of-them: [counter, echo, clock]
"""
EVENTS = {"tick", "count", "echo", "reverse_echo", "stream.gap", "stream.end"}
LOOK = 0.04  # seconds of an endless stream
EXAMPLES = int(os.environ.get("EVENTMUX_EXAMPLES", "0"))
HEADER = b"host accept content-type authorization traceparent tracestate cookie origin x-forwarded-for".split()

any_number = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving_file(CONFIG, tmp_path_factory.mktemp("fuzz")) as service:
        yield service


@pytest.fixture(autouse=True)
def unharmed(service: Service, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After each test: no traceback, no run or subscription left, and the service answers."""
    with caplog.at_level(logging.DEBUG):
        yield
        wait_until(service.is_quiet, "every run to be closed after its clients have gone")
    assert [] == [record.getMessage() for record in caplog.records if record.exc_info or record.levelname == "ERROR"]
    assert service.get("/healthz").json() == {"status": "ok"}
    with service.open("/sse/counter?stop=3") as stream:
        assert ["count"] * 4 + ["stream.end"] == [event.event for event in stream.rest()]


@dataclass
class Answer:
    status: int
    media_type: str
    messages: list[Message]


def ask(service: Service, request: bytes, *, may_wait: bool = False) -> Answer | None:
    """Send the bytes, and look for a short while at what comes. None: nothing has come (`may_wait`)."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        try:
            connection.sendall(request)
        except ConnectionError:
            pass  # refused before all of it was there; the answer says how
        if may_wait:
            connection.settimeout(LOOK)
        response = http.client.HTTPResponse(connection, method="HEAD" if request.startswith(b"HEAD") else "GET")
        try:
            response.begin()
        except (TimeoutError, http.client.RemoteDisconnected, ConnectionResetError):
            assert may_wait
            return None
        connection.settimeout(PATIENCE)  # it has begun to answer, and so goes on
        with response:
            body, deadline = b"", time.monotonic() + LOOK
            while chunk := response.read1(65_536):
                body += chunk
                if response.chunked and time.monotonic() > deadline:
                    break
    media_type = (response.headers.get("content-type") or "").partition(";")[0]
    return Answer(response.status, media_type, checked(body) if media_type == "text/event-stream" else [])


def checked(body: bytes) -> list[Message]:
    """The events of a stream, of which each line and each event is one that the service sends."""
    whole = body[: body.rfind(b"\n\n") + 2]
    for line in whole.split(b"\n"):
        assert re.fullmatch(rb"|:.*|(id|event|data|retry): .*", line), line
    messages = Parser().feed(whole)
    for message in messages:
        assert message.event.rpartition("/")[2] in EVENTS, message
        assert isinstance(json.loads(message.data), dict)
        assert re.fullmatch(r"[\w.,=!-]+", message.id, re.ASCII), message
    return messages


def get(target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    lines = [b"GET %b HTTP/1.1" % target, *(b"%b: %b" % header for header in headers), b"Connection: close"]
    return b"\r\n".join([*lines, b"", b""])


def a_service_answers(service: Service, statuses: set[int], request: bytes) -> Answer:
    answer = ask(service, request)
    assert answer
    assert answer.status in statuses, answer
    return answer


# What a header may hold (RFC 9110, 5.5), and more of what means something to somebody.
TEXT = st.lists(st.sampled_from(bytes([9, *range(32, 127), *range(128, 256)])), max_size=80).map(bytes)
WORDS = st.sampled_from(
    [
        b"*/*;q=0",
        b"text/event-stream;q=x, application/json;;,",
        b"application/x-ndjson",
        b"Bearer " + b"." * 500,
        b"Bearer",
        b"Basic Og==",
        b"00-ffffffffffffffffffffffffffffffff-ffffffffffffffff-ff",
        b"00-" + b"0" * 10_000,
        b"127.0.0.1, 127.0.0.1, [::1]:99999",
        b"eventmux_token=;;=; a=%00",
        b"\xff\xfe",
        b"",
    ]
)


@any_number
@given(
    st.lists(st.tuples(st.sampled_from([*HEADER, b"last-event-id", b"x-any"]), TEXT | WORDS), max_size=12),
    st.sampled_from([b"/sse/clock?limit=2", b"/sse?sources=echo,clock&message=a", b"/sources", b"/"]),
)
def test_headers_that_hold_anything(service: Service, headers: list[tuple[bytes, bytes]], target: bytes) -> None:
    # 403: a page of another origin, by its Origin.
    a_service_answers(service, {200, 204, 400, 403}, get(target, headers))


@any_number
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_headers_that_are_none(service: Service, name: bytes, value: bytes) -> None:
    ask(service, get(b"/sse/clock?limit=2", [(b"host", b"x"), (name, value)]), may_wait=True)


@any_number
@given(st.binary(max_size=300))
def test_bytes_that_are_no_http(service: Service, data: bytes) -> None:
    answer = ask(service, data + b"\r\n\r\n", may_wait=True)
    assert answer is None or answer.status in {400, 404, 405}


@pytest.mark.parametrize(("count", "size"), [(1_000, 10), (10_000, 4), (1, 60_000), (4, 16_000)])
def test_very_many_headers_and_very_long_ones(service: Service, count: int, size: int) -> None:
    headers = [(b"x-%d" % number, b"x" * size) for number in range(count)]
    a_service_answers(service, {200, 400, 431}, get(b"/sse/clock?limit=2", [(b"host", b"x"), *headers]))


def cursors_of(service: Service) -> list[bytes]:
    """Real ones: live, ended, of a merge, and of sources that have gone."""
    found = []
    for path in (
        "/sse/clock",
        "/sse/counter?stop=2",
        "/sse/all-of-them?message=a",
        "/sse?sources=clock,counter&stop=0",
    ):
        with service.open(path) as stream:
            stream.take(2)
            found.append(stream.cursor.encode())
    return [*found, b"counter!,echo!,clock!", b"counter!"]


def mutated(cursor: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """One to four of: a byte or a part less, more, other or elsewhere; a part of another cursor; a number grown."""
    letters = b".,=!-_0123456789azAZ~+/%\t \xc3\xa9\xff{}[]\"'<>\\"
    for _ in range(draw.randint(1, 4)):
        at, to = sorted((draw.randrange(len(cursor) + 1), draw.randrange(len(cursor) + 1)))
        mutations: list[Callable[[], bytes]] = [
            lambda: cursor[:at] + cursor[to:],  # noqa: B023 - called at once
            lambda: cursor[:at] + bytes(draw.choices(letters, k=draw.randint(1, 3))) + cursor[at:],  # noqa: B023
            lambda: cursor[:at] + bytes(draw.choices(letters)) + cursor[at + 1 :],  # noqa: B023
            lambda: cursor[:to] + cursor[at:],  # noqa: B023
            lambda: cursor[to:] + cursor[at:to] + cursor[:at],  # noqa: B023
            lambda: cursor[:at] + draw.choice(others),  # noqa: B023
            lambda: cursor + b"," + draw.choice(others),  # noqa: B023
            lambda: re.sub(rb"\d+", lambda _: b"9" * draw.randint(1, 25), cursor),  # noqa: B023
            lambda: cursor * draw.randint(2, 200),  # noqa: B023
        ]
        cursor = draw.choice(mutations)()
    return cursor[:8_000].strip()


def test_a_cursor_that_has_been_changed_is_a_stream_a_gap_or_the_end(service: Service) -> None:
    """Never an error status, at which EventSource would stop for ever; nor the events of somebody else."""
    draw = random.Random(None if EXAMPLES else 5)
    cursors = cursors_of(service)
    seen: set[str | int] = set()
    for number in range(EXAMPLES or 300):
        cursor = mutated(draw.choice(cursors), draw, cursors)
        path = draw.choice([b"/sse/clock?limit=2", b"/sse/counter?stop=2", b"/sse/all-of-them?message=a&limit=3"])
        if number % 2:
            request = get(path, [(b"host", b"x"), (b"last-event-id", cursor)])
        else:
            request = get(path + b"&last_event_id=" + quote_from_bytes(cursor).encode(), [(b"host", b"x")])
        answer = a_service_answers(service, {200, 204}, request)
        assert answer.status == 204 or "text/event-stream" == answer.media_type
        assert answer.status == 204 or answer.messages, (path, cursor)
        seen |= {answer.status, *(message.event for message in answer.messages)}
    assert {200, 204, "stream.gap", "stream.end", "tick", "count"} <= seen


NAMES = st.sampled_from(
    b"sources limit events since qualify last_event_id message interval echo.message clock.interval stop . a.b".split()
)
VALUES = st.sampled_from(
    [
        b"1" * 5_000,
        b"-1",
        b"9" * 25,
        b"1e400",
        b"nan",
        b"-inf",
        b"0x10",
        b"1_0",
        b"%D9%A3",
        b"%00",
        b"%",
        b"%%",
        b"%zz",
        b"%C3%28",
        b"%ED%A0%80",
        b"%F4%90%80%80",
        b"%0d%0aevent:%20x%0d%0adata:%20x%0d%0a%0d%0a",
        b"%E2%80%A8",
        b"\xff\xfe",
        b"+",
        b",,,",
        b"clock,clock",
        b"clock,counter,echo,reverse-echo",
        b"9999999999d",
        b"999999999d",
        b"9999-12-31T23:59:59-23:59",
        b"0001-01-01T00:00:00%2B23:59",
        b"true",
        b"[[[[[[",
        b"",
    ]
)
PRINTABLE = st.lists(st.sampled_from(bytes([*range(33, 127), *range(128, 256)])), max_size=40).map(bytes)
PAIR = st.tuples(NAMES | PRINTABLE, VALUES | PRINTABLE).map(lambda pair: b"=".join(pair))


@any_number
@given(
    st.sampled_from([b"/sse", b"/sse/clock", b"/sse/echo", b"/sse/counter", b"/sse/all-of-them"]),
    st.lists(PAIR | PRINTABLE, max_size=8).map(b"&".join),
)
def test_queries_of_anything(service: Service, path: bytes, query: bytes) -> None:
    query = query.replace(b"#", b"")
    a_service_answers(service, {200, 204, 400, 404, 413, 422, 431}, get(path + b"?" + query, [(b"host", b"x")]))


@pytest.mark.parametrize("pair", [b"a=1", b"message=x", b"limit=1", b"sources=clock", b"&", b"events=,"])
@pytest.mark.parametrize("count", [100, 2_000, 20_000])
def test_very_many_parameters(service: Service, pair: bytes, count: int) -> None:
    query = b"&".join([pair] * count)
    statuses = {413} if 32 * 1024 < len(query) < 60_000 else {200, 413, 422, 400, 431}
    answer = a_service_answers(service, statuses, get(b"/sse?" + query, [(b"host", b"x")]))
    assert answer.status != 200 or pair == b"&", answer


@any_number
@given(st.lists(st.sampled_from(["%2e", "..", "%2f", "/", "%00", "sse", "clock", "%ff", ";", "\\"]), max_size=6))
def test_paths_of_anything(service: Service, parts: list[str]) -> None:
    # 307: Starlette takes a slash away from the end.
    a_service_answers(service, {200, 307, 400, 404, 405}, get(b"/sse/" + "".join(parts).encode(), [(b"host", b"x")]))


def post(path: bytes, body: bytes, media_type: bytes = b"application/json", *headers: bytes) -> bytes:
    size = b"Content-Length: %d" % len(body)
    lines = [b"POST %b HTTP/1.1" % path, b"Host: x", b"Content-Type: " + media_type, size, *headers]
    return b"\r\n".join([*lines, b"Connection: close", b"", body])


BODIES = {
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"message":' * 50_000,
    "deep and whole": b'{"message":' * 300 + b"1" + b"}" * 300,
    "a deep value": b'{"sources":{"echo":{"message":' + b"[" * 150 + b"]" * 150 + b"}}}",
    "a huge number": b'{"message": ' + b"9" * 20_000 + b"}",
    "a huge number for an integer": b'{"stop": ' + b"9" * 20_000 + b"}",
    "a huge exponent": b'{"interval": 1e999999}',
    "not a number": b'{"interval": NaN}',
    "infinity": b'{"interval": -Infinity}',
    "a key twice": b'{"message": "a", "message": "b"}',
    "a source twice": b'{"sources": {"echo": {"message": "a"}, "echo": {"message": "b"}}}',
    "very many keys": json.dumps({f"k{number}": 1 for number in range(50_000)}).encode(),
    "very many sources": json.dumps({"sources": {f"k{number}": {} for number in range(40_000)}}).encode(),
    "half a surrogate": b'{"message": "\\ud800"}',
    "half a surrogate in a key": b'{"\\ud800": 1}',
    "NUL": b'{"message": "\\u0000"}',
    "a raw NUL": b'{"message": "\0"}',
    "UTF-16": '{"message": "a"}'.encode("utf-16"),
    "Latin-1": '{"message": "é"}'.encode("latin-1"),
    "a byte order mark": b'\xef\xbb\xbf{"message": "a"}',
    "line separators": '{"message": "\u2028\u2029\x85\\n\\r\\nid: 1\\n\\n"}'.encode(),
    "an array": b"[]",
    "null": b"null",
    "two values": b'{"message": "a"} {"message": "b"}',
    "nothing": b"",
    "blanks": b" " * 100_000,
    "sources of null": b'{"sources": null}',
    "sources of texts": b'{"sources": {"echo": "message"}}',
    "a source without a name": b'{"sources": {"": {}}}',
}


@pytest.mark.parametrize(
    "path", [b"/sse/echo?limit=2", b"/sse/counter?limit=2", b"/sse?limit=2", b"/sse/all-of-them?limit=2"]
)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_that_are_made_to_hurt(service: Service, path: bytes, body: bytes) -> None:
    began = time.process_time()  # of the service and this client, whatever else the machine does
    a_service_answers(service, {200, 404, 413, 415, 422}, post(path, body))
    assert time.process_time() - began < 1


@any_number
@given(
    st.sampled_from(
        [b'{"message": "hello", "interval": 0.01}', b'{"sources": {"echo": {"message": "a"}, "clock": {}}}']
    ),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    st.integers(0, 60),
    st.sampled_from(
        [b"application/json", b"application/x+json", b"text/plain", b"", b";;;", b"application/json; charset=utf-16"]
    ),
)
def test_bodies_with_bytes_changed_and_cut(
    service: Service, body: bytes, changes: list[tuple[int, int]], end: int, media_type: bytes
) -> None:
    changed = bytearray(body)
    for at, byte in changes:
        changed[at % len(changed)] = byte
    path = b"/sse?limit=2" if b"sources" in body else b"/sse/echo?limit=2"
    text = bytes(changed)[: len(body) - max(0, end - 40)]
    a_service_answers(service, {200, 404, 415, 422}, post(path, text, media_type))


@pytest.mark.parametrize(
    "headers",
    [
        [b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Content-Length: 5", b"Content-Length: 6"],
        [b"Content-Length: -1"],
        [b"Content-Length: 99999999999999999999999999"],
        [b"Content-Length: 1e3"],
        [b"Content-Length: 3000000000"],
        [b"Content-Length: +5"],
        [b"Expect: 100-continue", b"Content-Length: 5"],
        [b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eA=="],
        [b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQAAP__"],
    ],
    ids=lambda headers: headers[0].decode(),
)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD", b"OPTIONS", b"BREW"])
def test_framing_that_does_not_fit(service: Service, method: bytes, headers: list[bytes]) -> None:
    lines = [method + b" /sse/echo?message=a&limit=2 HTTP/1.1", b"Host: x", *headers, b"", b"zzz"]
    answer = ask(service, b"\r\n".join(lines), may_wait=True)
    assert answer is None or answer.status < 500


def test_a_client_that_sends_surrogates_and_controls_hears_them_as_text(service: Service) -> None:
    """What can be said is said whole: no byte of a parameter becomes a line of the stream."""
    text = "a\r\nevent: evil\r\ndata: x\r\n\r\n\u2028\u2029\x85\x0b\x0c\ufeff:b"
    with httpx2.stream("GET", f"{service.url}/sse/echo", params={"message": text, "limit": 3}, trust_env=False) as got:
        messages = checked(got.read())
    assert [text] * 3 == [json.loads(message.data)["message"] for message in messages if message.event == "echo"]
