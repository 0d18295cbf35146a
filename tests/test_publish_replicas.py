"""Events from outside where there are two replicas over a real Redis: published at either, and streamed by both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from eventmux import Event, Inbox, source
from eventmux.config import StoreConfig
from eventmux.inbox import ROOM
from eventsource import wait_until
from redis_server import RedisServer, program
from service import Service, enable, serving, settings_of

MEGABYTE = 1_000_000


class Headline(Event):
    text: str


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


class Shown(Event):
    text: str


@source(shared=True)
async def news(inbox: Inbox[Headline]) -> AsyncIterator[Headline]:
    async for headline in inbox:
        yield headline


@source(shared=True)
async def mirror(inbox: Inbox[Anything]) -> AsyncIterator[Shown]:
    async for message in inbox:
        yield Shown(text=repr(message.model_extra))


@source(shared=True)
async def stuck(inbox: Inbox[Headline], room: str = "") -> AsyncIterator[Headline]:
    await asyncio.Event().wait()
    async for headline in inbox:
        yield headline


@dataclass(frozen=True)
class Pair:
    redis: RedisServer
    a: Service
    b: Service


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer(program(), appendonly=False))
        redis.start()
        settings = settings_of(news, mirror, enable(stuck, linger=5))
        config = settings.config.model_copy(update={"store": StoreConfig(url=redis.url, timeout=1)})
        settings = replace(settings, config=config)
        a, b = (stack.enter_context(serving(settings, expect_quiet=False)) for _ in range(2))
        yield Pair(redis, a, b)


@pytest.fixture(scope="module")
def alone() -> Iterator[Service]:
    """One with all that it has in its memory."""
    with serving(settings_of(mirror), expect_quiet=False) as service:
        yield service


def publish(service: Service, path: str, body: Any) -> int:
    return service.post(f"/publish/{path}", json=body).status_code


def state(service: Service, name: str) -> str:
    return str(service.get("/readyz").json()["sources"][name]["state"])


def test_what_is_published_at_either_replica_is_streamed_by_both_in_one_order(pair: Pair) -> None:
    with pair.a.open("/sse/news") as one, pair.b.open("/sse/news") as other:
        wait_until(lambda: {state(pair.a, "news"), state(pair.b, "news")} == {"running", "remote"}, "one to run it")
        for number in range(20):
            assert publish((pair.a, pair.b)[number % 2], "news", {"text": str(number)}) == 202
        for stream in (one, other):
            assert [event.data["text"] for event in stream.take(20)] == [str(number) for number in range(20)]
            cursor = stream.cursor
    assert publish(pair.a, "news", {"text": "last"}) == 202
    with pair.b.open("/sse/news", cursor=cursor) as stream:
        assert [event.data["text"] for event in stream.take(1)] == ["last"]


BODIES = [
    b'{"a": 1.0, "b": 1, "c": 0.1, "d": 0.30000000000000004, "e": -0.0, "f": 1e22, "g": 5e-324, "h": 1e999}',
    b'{"a": 123456789012345678901234567890, "b": -9223372036854775809, "c": 18446744073709551616}',
    b'{"a": ' + b"9" * 4_300 + b"}",
    b'{"a": ' + b"9" * 5_000 + b"}",
    b'{"a": 1, "b": 2, "a": {"c": 1, "c": 2}}',
    b'{"a": "\\ud83d\\ude00 \\u0000 \\u2028"}',
    b'{"a": "\\ud800"}',
    b'{"a": "\xff"}',
    b'{"a": NaN}',
    b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}",
    b'{"a": ' + b"[" * 1_000 + b"]" * 1_000 + b"}",
    b'\r\n {"a": "\xe4\xb8\xad\xf0\x9f\x98\x80"}\t',
    b'\xef\xbb\xbf{"a": 1}',
    b"{}",
    b" ",
]


def test_a_source_is_given_what_was_checked_when_it_came_wherever_it_waits(pair: Pair, alone: Service) -> None:
    headers = {"content-type": "application/json"}
    services = (alone, pair.a, pair.b)
    answers = [[one.post("/publish/mirror", content=body, headers=headers) for one in services] for body in BODIES]
    for body, found in zip(BODIES, answers, strict=True):
        assert len({(answer.status_code, answer.text) for answer in found}) == 1, body[:40]
    taken = [body for body, found in zip(BODIES, answers, strict=True) if found[0].status_code == 202]
    assert 0 < len(taken) < len(BODIES)
    with alone.open("/sse/mirror?since=earliest") as stream:
        expected = [event.data for event in stream.take(len(taken))]
    with pair.a.open("/sse/mirror?since=earliest") as stream:
        assert [event.data for event in stream.take(2 * len(taken))] == [data for data in expected for _ in range(2)]


def test_what_waits_is_bounded_for_both_replicas_together(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with pair.a.open("/sse/stuck"):
        megabyte = {"text": "\u00e9" * (MEGABYTE // 2)}  # of UTF-8; as \u00e9 it would be three
        assert [publish((pair.a, pair.b)[n % 2], "stuck", megabyte) for n in range(6)] == [*[202] * 4, 503, 503]
        assert publish(pair.a, "stuck", {"text": "a"}) == 202
    assert ROOM == 1_000
    monkeypatch.setattr("eventmux.box.ROOM", 4)
    with pair.a.open("/sse/stuck?room=b"):
        assert [publish((pair.a, pair.b)[n % 2], "stuck?room=b", {"text": "a"}) for n in range(5)] == [*[202] * 4, 503]
        answer = pair.b.post("/publish/stuck?room=b", json={"text": "a"})
        assert "does not keep up" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1


def test_while_redis_is_away_a_publisher_is_told_to_come_back(pair: Pair) -> None:
    with pair.a.open("/sse/news") as stream:
        assert publish(pair.b, "news", {"text": "before"}) == 202
        assert stream.take(1)[0].data["text"] == "before"
        pair.redis.pause()
        try:
            answer = pair.b.post("/publish/news", json={"text": "meanwhile"})
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
        finally:
            pair.redis.resume()
        wait_until(lambda: publish(pair.b, "news", {"text": "after"}) == 202, "Redis to be back")
        texts = [event.data["text"] for event in stream.take(1)]
        while texts[-1] != "after":
            texts += [event.data["text"] for event in stream.take(1)]
        assert set(texts) <= {"meanwhile", "after"}, "what was refused may have been heard"
