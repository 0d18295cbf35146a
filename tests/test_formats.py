"""One stream, three ways to read it; and what the words of the service do to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from sse_starlette import ServerSentEvent

from eventmux import Event, source
from eventmux.config import ServerConfig
from eventmux.web.formats import media_type
from eventsource import PATIENCE
from service import Service, serving, settings_of


class Even(Event):
    n: int


class Odd(Event):
    n: int


@source
async def numbers(stop: int = 6) -> AsyncIterator[Even | Odd]:
    for n in range(stop):
        yield Odd(n=n) if n % 2 else Even(n=n)


@source
async def more(stop: int = 2) -> AsyncIterator[Even]:
    for n in range(stop):
        yield Even(n=n)


@source
async def relay() -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent("event: message", comment="event: message")
    yield ServerSentEvent('two "lines"\nhere', event="odd.name")


@source
async def endless() -> AsyncIterator[Even | Odd]:
    n = 0
    while True:
        yield Even(n=n)
        n += 2
        await asyncio.sleep(0)


@source
async def silent() -> AsyncIterator[Even]:
    await asyncio.Event().wait()
    yield Even(n=0)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    server = ServerConfig(heartbeat=0.02, retry=1234)
    with serving(settings_of(numbers, more, relay, endless, silent, server=server)) as service:
        yield service


def test_the_stream_begins_with_retry_and_a_cursor(service: Service) -> None:
    with httpx2.stream("GET", f"{service.url}/sse/numbers", trust_env=False) as response:
        text = response.read().decode()
    assert "\r" not in text
    first, second, *_ = text.split("\n\n")
    epoch = first.removeprefix("retry: 1234\nid: ").removesuffix(".0")
    assert len(epoch) >= 22
    assert second == f'id: {epoch}.1\nevent: even\ndata: {{"n":0}}'


def test_the_headers_keep_proxies_from_holding_events_back(service: Service) -> None:
    headers = httpx2.head(f"{service.url}/sse/numbers", trust_env=False).headers
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "content-length" not in headers


def test_json_lines_and_an_array_hold_the_same_events_as_sse(service: Service) -> None:
    with service.open("/sse/numbers") as stream:
        events = [(event.event, event.data) for event in stream.rest()]
    lines = service.get("/sse/numbers", headers={"accept": "application/x-ndjson"})
    array = service.get("/sse/numbers", headers={"accept": "application/json"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert array.headers["content-type"] == "application/json"
    parsed = [json.loads(line) for line in lines.text.splitlines() if line]
    assert [(line["event"], line["data"]) for line in parsed] == events
    assert [(line["event"], line["data"]) for line in array.json()] == events
    assert {line["source"] for line in array.json()} == {"numbers"}
    assert parsed[-1]["id"] == "numbers!"


def test_text_of_a_relay_is_a_json_string_in_json(service: Service) -> None:
    found = service.get("/sse/relay", headers={"accept": "application/json"}).json()
    assert [(line["event"], line["data"]) for line in found[:2]] == [
        ("message", "event: message"),
        ("odd.name", 'two "lines"\nhere'),
    ]


def test_an_array_without_limit_ends_after_a_thousand_events_and_says_so(service: Service) -> None:
    found = service.get("/sse/endless", headers={"accept": "application/json"}).json()
    assert len(found) == 1001
    assert found[-1]["data"] == {"source": "endless", "reason": "limit"}


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson", "application/json"])
def test_limit_ends_the_stream_after_so_many_events(service: Service, accept: str) -> None:
    text = service.get("/sse?sources=endless,silent&limit=3", headers={"accept": accept}).text
    assert text.count('"n":') == 3
    assert text.count('"reason":"limit"') == 2


def test_events_leaves_out_all_others_and_limit_counts_what_is_left(service: Service) -> None:
    found = service.get("/sse/numbers?events=odd&limit=2", headers={"accept": "application/json"}).json()
    assert [line["data"] for line in found] == [{"n": 1}, {"n": 3}, {"source": "numbers", "reason": "limit"}]
    with service.open("/sse/numbers?events=odd,even&events=odd") as stream:
        assert len(stream.rest()) == 7


def test_events_and_qualify_tell_two_sources_with_one_event_name_apart(service: Service) -> None:
    with service.open(
        "/sse?sources=numbers,more,relay&qualify=true&events=numbers/even,more/even,message,odd.name"
    ) as s:
        names = {event.event for event in s.rest()}
    assert names == {"numbers/even", "more/even", "relay/message", "relay/odd.name", "stream.end"}


def test_qualify_renames_the_event_and_nothing_in_its_data(service: Service) -> None:
    with service.open("/sse/relay?qualify=1") as stream:
        events = stream.rest()
        assert stream.parser.comments[0] == " event: message"
    assert (events[0].event, events[0].data) == ("relay/message", "event: message")
    found = service.get("/sse/relay?qualify=1", headers={"accept": "application/json"}).json()
    assert [line["event"] for line in found] == ["relay/message", "relay/odd.name", "stream.end"]


def test_a_heartbeat_is_sent_only_where_nothing_else_was(service: Service) -> None:
    with service.open("/sse/silent") as stream:
        chunks = stream.response.iter_raw()
        while len(stream.parser.comments) < 3:
            stream.parser.feed(next(chunks))
    with service.open("/sse/endless?limit=500") as stream:
        stream.rest()
        assert stream.parser.comments == []


def test_a_cursor_that_filtered_events_have_moved_goes_along_with_the_heartbeat(service: Service) -> None:
    with service.open("/sse?sources=numbers,silent&numbers.stop=5&events=silent/even") as stream:
        (end,) = stream.take(1)  # of numbers: all five events of it were left out
        assert end.data == {"source": "numbers", "reason": "completed"}
    with service.open("/sse/endless?events=odd") as stream:
        first, chunks = stream.cursor, stream.response.iter_raw()
        while stream.cursor in {"", first} or not stream.parser.comments:
            first = first or stream.cursor
            assert stream.parser.feed(next(chunks)) == []


def test_heartbeats_keep_json_valid(service: Service) -> None:
    with httpx2.stream(
        "GET",
        f"{service.url}/sse/silent",
        headers={"accept": "application/x-ndjson"},
        trust_env=False,
        timeout=PATIENCE,
    ) as response:
        assert next(response.iter_text()) == "\n"
    with httpx2.stream(
        "GET", f"{service.url}/sse/silent", headers={"accept": "application/json"}, trust_env=False, timeout=PATIENCE
    ) as response:
        text = response.iter_text()
        assert next(text) + next(text) == "[\n"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "text/event-stream"),
        ("*/*", "text/event-stream"),
        ("text/event-stream", "text/event-stream"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/event-stream"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json;q=0.5, application/x-ndjson", "application/x-ndjson"),
        ("application/json;q=0.1, */*;q=0.9", "text/event-stream"),
        ("application/json;q=0, */*", "text/event-stream"),
        ("Application/X-NDJSON; charset=utf-8", "application/x-ndjson"),
        ("application/json;q=nonsense", "text/event-stream"),
        ("image/png", "text/event-stream"),
    ],
)
def test_accept_chooses_the_format(accept: str, chosen: str) -> None:
    assert media_type(accept) == chosen
