"""What clients and operators see of a service whose Redis is away, full, or empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from pydantic import SecretStr

from eventmux import Inbox, source
from eventmux.catalog import EnabledSource
from eventmux.channel import WINDOW_EVENTS
from eventmux.config import LimitsConfig, ServerConfig, StoreConfig
from eventmux.settings import Settings
from eventmux.source import Source
from eventsource import EventSource, Received, wait_until
from raw import Feed, Note
from redis_server import RedisServer
from redis_writer import told
from service import Client, enable, serving, settings_of
from test_metrics import metrics, value
from whatwg import Message

Make = Callable[..., RedisServer]
PASSWORD = "secret of the store"  # noqa: S105


def settings(server: RedisServer, *sources: Source[...] | EnabledSource) -> Settings:
    store = StoreConfig(url=SecretStr(server.url), prefix=server.prefix, lease=1.0, timeout=1.0)
    return settings_of(*sources, server=ServerConfig(heartbeat=0.2, retry=50), store=store)


def readiness(service: Client) -> tuple[int, str, str, str]:
    answer = service.get("/readyz")
    assert PASSWORD not in answer.text
    told = answer.json()
    return answer.status_code, told["status"], told["store"]["state"], told["store"].get("reason", "")


def is_ready(service: Client) -> bool:
    return readiness(service) == (200, "ready", "ok", "")


def numbers(events: list[Received]) -> list[int]:
    return [event.data["n"] for event in events if event.event == "note"]


@source
async def ticking() -> AsyncIterator[Note]:
    n = 0
    while True:
        n += 1
        yield Note(n=n)
        await asyncio.sleep(0.01)


@source(shared=True)
async def news(inbox: Inbox[Note]) -> AsyncIterator[Note]:
    async for note in inbox:
        yield note


def test_a_service_whose_redis_is_away_at_the_start_serves_when_it_comes(
    own_redis: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server, feed = own_redis(start=False, password=PASSWORD), Feed()
    with serving(settings(server, feed.source, ticking, news)) as service:
        status, text, state, reason = readiness(service)
        assert (status, text, state) == (503, "store away", "away")
        assert f"127.0.0.1:{server.port}" in reason
        assert service.get("/healthz").json() == {"status": "ok"}
        assert value(service, "store_up") == 0

        with service.open("/sse/feed") as turned_away:  # softly: an EventSource comes back
            assert turned_away.response.status_code == 200
            assert turned_away.response.headers["content-type"].startswith("text/event-stream")
            assert turned_away.rest() == []
            assert turned_away.parser.retry >= 50
        refused = service.get("/sse/feed", headers={"accept": "application/json"})
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        unpublished = service.post("/publish/news", json={"n": 1})
        assert unpublished.status_code == 503
        softly = service.get("/sse/feed", headers={"accept": "text/event-stream"})
        for answer in (refused, unpublished, softly):
            assert "the store is away: try again" in answer.text
            assert str(server.port) not in answer.text, "where our store is, is not for clients"
        assert value(service, "refused_total store") == 3
        with service.open("/sse/ticking") as private:  # what is begun here needs no other
            assert numbers(private.take(3)) == [1, 2, 3]

        server.start()
        wait_until(lambda: is_ready(service), "the service to be ready")
        assert value(service, "store_up") == 1
        with service.open("/sse/feed") as stream:
            feed.note(1, 2, 3)
            assert numbers(stream.take(3)) == [1, 2, 3]
    assert told(caplog) == ["the store is away", "the store is back"]
    assert PASSWORD not in caplog.text


def test_while_redis_is_away_streams_stay_open_sources_wait_and_then_all_goes_on(
    own_redis: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server, feed = own_redis(), Feed()
    with serving(settings(server, feed.source, enable(ticking, linger=0.2))) as service:
        with service.open("/sse/feed") as stream, service.open("/sse/ticking") as private:
            feed.note(*range(1, 6))
            assert numbers(stream.take(5)) == [1, 2, 3, 4, 5]
            server.stop()
            wait_until(lambda: readiness(service)[:3] == (503, "store away", "away"), "the store to be away")
            feed.note(*range(6, 1_001))
            assert beats(stream, 5) == [], "heartbeats go on, and nobody sees what is not in the store"
            assert value(service, "events_appended_total feed") == 5 + WINDOW_EVENTS, "the source waits"
            assert value(service, "streams_open") == 2
            cursor = private.take(5)[-1].id
            with service.open("/sse/ticking", cursor=cursor) as back:  # a run that is here needs no store
                assert numbers(back.take(1)) == [int(cursor.rpartition(".")[2]) + 1]
            server.start()
            assert numbers(stream.take(995)) == list(range(6, 1_001))
            assert numbers(private.take(5))
            wait_until(lambda: is_ready(service), "the service to be ready")
            assert sum(count for name, count in metrics(service).items() if "_gaps_total" in name) == 0
    assert told(caplog) == ["the store is away", "the store is back"]


def beats(stream: EventSource, count: int) -> list[Message]:
    """Events that come with so many heartbeats, of which the parser says nothing."""
    found: list[Message] = []
    for chunk in stream.chunks:
        found += stream.parser.feed(chunk)
        count -= chunk.count(b":\n")
        if count <= 0:
            break
    return found


def test_when_redis_has_forgotten_all_clients_are_told_of_a_gap_and_what_runs_once_is_lost(own_redis: Make) -> None:
    server, feed, paid = own_redis(appendonly=False), Feed(), Feed("paid", once=True)
    with serving(settings(server, feed.source, paid.source)) as service:
        with service.open("/sse?sources=feed,paid") as stream:
            feed.note(1, 2)
            paid.note(1, 2)
            assert sorted(numbers(stream.take(4))) == [1, 1, 2, 2]
            server.restart()
            assert stream.rest() == [], "the stream ends, so that its client comes back"
            cursor = stream.cursor
        with service.open("/sse?sources=feed,paid", cursor=cursor) as stream:
            feed.note(3, 4)
            events = stream.take(4)
            said = [(event.event, event.data["source"], event.data["reason"]) for event in events[:2]]
            assert sorted(said) == [("stream.end", "paid", "lost"), ("stream.gap", "feed", "restarted")]
            assert numbers(events) == [3, 4]


def test_while_redis_is_full_the_service_says_so_and_what_there_is_is_served(own_redis: Make) -> None:
    server, feed, other = own_redis(appendonly=False), Feed(), Feed("other")
    with serving(settings(server, feed.source, other.source)) as service:
        with service.open("/sse/feed") as stream:
            feed.note(*range(1, 6))
            first = stream.take(5)[0].id
            server.command("CONFIG", "SET", "maxmemory", "1")
            wait_until(lambda: readiness(service)[:3] == (503, "store away", "away"), "it to be found out")
            assert "out of memory" in readiness(service)[3]
            feed.note(*range(6, 11))
            with service.open("/sse/feed", cursor=first) as late:
                assert numbers(late.take(4)) == [2, 3, 4, 5]
            with service.open("/sse/other") as turned_away:
                assert turned_away.rest() == []
            assert beats(stream, 2) == []
            server.command("CONFIG", "SET", "maxmemory", "0")
            assert numbers(stream.take(5)) == [6, 7, 8, 9, 10]
            wait_until(lambda: is_ready(service), "the service to be ready")


def test_two_services_of_one_redis_that_lose_it_go_on_together(own_redis: Make) -> None:
    server, feed = own_redis(), Feed()
    with serving(settings(server, feed.source)) as one, serving(settings(server, feed.source)) as other:
        with one.open("/sse/feed") as here, other.open("/sse/feed") as there:
            feed.note(*range(1, 101))
            assert numbers(here.take(100)) == numbers(there.take(100)) == list(range(1, 101))
            server.kill()
            wait_until(lambda: not is_ready(one) and not is_ready(other), "both to know")
            feed.note(*range(101, 201))
            server.start()
            feed.note(*range(201, 301))
            assert numbers(here.take(200)) == list(range(101, 301))
            assert numbers(there.take(200)) == list(range(101, 301))
            wait_until(lambda: is_ready(one) and is_ready(other), "both to be ready")


@source(shared=True)
async def numbered(n: int) -> AsyncIterator[Note]:
    yield Note(n=n)
    await asyncio.Event().wait()


def test_who_is_over_a_limit_begins_no_log_in_redis(own_redis: Make) -> None:
    server = own_redis()
    store = StoreConfig(url=SecretStr(server.url), prefix=server.prefix)
    with serving(settings_of(numbered, limits=LimitsConfig(streams_per_address=1), store=store)) as service:
        with service.open("/sse/numbered?n=0") as stream:
            stream.take(1)
            before = server.count_keys("*numbered*")
            for n in range(1, 20):
                assert service.get(f"/sse/numbered?n={n}", headers={"accept": "application/json"}).status_code == 503
            assert server.count_keys("*numbered*") == before
