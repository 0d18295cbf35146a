"""Tickets of two replicas over a real Redis: each is good on both, once, and Redis may be away."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import pytest

from credentials import DASH, serving
from eventmux.shared_tickets import KEPT
from eventmux.tickets import REMEMBERED
from eventsource import EventSource, wait_until
from proxy import proxying
from raw import in_threads
from redis_server import RedisServer, program
from service import Service

TOKEN = "dash-token"  # noqa: S105 - of this test
CONFIG = """
store: {url: %s, timeout: 1}
sources: {open-clock: {}, mine: {}}
plugins: {dir: local}
server: {retry: 50}
auth: {tokens: [{name: dash, token: %s, read: ["*"]}]}
"""
RACES = 20


@dataclass(frozen=True)
class Pair:
    redis: RedisServer
    a: Service
    b: Service


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer(program(), appendonly=False))
        redis.start()
        config = CONFIG % (redis.url, TOKEN)
        a, b = (stack.enter_context(serving(config, tmp_path_factory.mktemp(name))) for name in "ab")
        yield Pair(redis, a, b)


def ticket_of(service: Service) -> str:
    answer = service.post("/tickets", headers=DASH)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["ticket"])


def status(service: Service, ticket: str, cursor: str | None = None, path: str = "/sse/mine") -> int:
    with service.open(f"{path}?ticket={ticket}", cursor=cursor) as stream:
        return int(stream.response.status_code)


def test_a_ticket_of_one_replica_opens_at_the_other_and_its_stream_comes_back_to_any(pair: Pair) -> None:
    ticket, cursor, numbers = ticket_of(pair.a), None, []
    with proxying(pair.a.url) as to_a, proxying(pair.b.url) as to_b:
        for proxy in (to_b, to_a, to_b, to_b, to_a):
            with EventSource(f"{proxy.url}/sse/mine?ticket={ticket}", cursor=cursor) as stream:
                assert stream.response.status_code == 200
                numbers += [event.data["n"] for event in stream.take(5)]
                cursor = stream.cursor
                proxy.cut()
                with pytest.raises(httpx2.TransportError):
                    stream.take(1000)
            for service in (pair.a, pair.b):
                answer = service.get(f"/sse/mine?ticket={ticket}")
                assert answer.status_code == 401
                assert "get a new one by POST /tickets" in answer.json()["detail"]
    assert numbers == list(range(1, 26))
    assert (cursor or "")[:1] == "~"


def test_of_two_that_bring_one_ticket_to_both_replicas_at_once_one_is_let_in(pair: Pair) -> None:
    for _ in range(RACES):
        ticket = ticket_of(pair.a)
        found = in_threads(partial(status, pair.a, ticket), partial(status, pair.b, ticket))
        assert sorted(found) == [200, 401]


def test_a_stream_that_is_refused_at_one_replica_leaves_its_ticket_to_the_other(pair: Pair) -> None:
    ticket = ticket_of(pair.a)
    assert status(pair.b, ticket, path="/sse/nothing") == 404
    assert pair.b.request("HEAD", f"/sse/mine?ticket={ticket}").status_code == 200
    assert pair.b.get(f"/sources?ticket={ticket}").status_code == 401
    assert status(pair.a, ticket) == 200


def test_a_token_that_a_replica_does_not_know_any_more_opens_nothing_there(pair: Pair, tmp_path: Path) -> None:
    with serving(CONFIG % (pair.redis.url, "another-token"), tmp_path) as changed:
        ticket = ticket_of(pair.a)
        with pair.a.open(f"/sse/mine?ticket={ticket}") as stream:
            stream.take(1)
            cursor = stream.cursor
        assert status(changed, ticket, cursor) == 401
        assert status(pair.b, ticket, cursor) == 200
        assert status(changed, ticket_of(pair.b)) == 401


def test_what_lies_in_redis_opens_nothing_and_goes_with_its_time(pair: Pair) -> None:
    unused, used = ticket_of(pair.a), ticket_of(pair.a)
    before = pair.redis.keys("*:value:ticket:*")
    with pair.b.open(f"/sse/mine?ticket={used}") as stream:
        stream.take(1)
        proof = stream.cursor[1:9]
        with contextlib.closing(pair.redis.client(decode_responses=False)) as client:
            values = {key: client.get(key) for key in before}
            left = [client.pttl(key) / 1000 for key in before]
    everything = b"\n".join(word for pair in values.items() for word in (pair[0].encode(), pair[1] or b""))
    digest = hashlib.sha256(TOKEN.encode())
    secrets = [unused, used, proof, TOKEN, "dash", digest.hexdigest()]
    assert [word for word in secrets if word.encode() in everything] == []
    assert digest.digest() not in everything
    assert all(len(value or b"") < 300 for value in values.values())
    assert all(0 < seconds <= KEPT for seconds in left)
    assert any(seconds <= 30 for seconds in left)
    assert any(seconds > REMEMBERED for seconds in left)


def test_while_redis_is_away_nobody_is_told_anything_at_which_an_eventsource_stops(pair: Pair) -> None:
    unused, used = ticket_of(pair.a), ticket_of(pair.a)
    with pair.a.open(f"/sse/open-clock?ticket={used}") as stream:
        number, cursor = stream.take(1)[0].data["n"], stream.cursor
    pair.redis.pause()
    try:
        for service in (pair.a, pair.b):
            for path in (f"/sse/mine?ticket={unused}", f"/sse/open-clock?ticket={used}&last_event_id={cursor}"):
                with service.open(path) as stream:
                    assert stream.response.status_code == 200
                    assert stream.rest() == []
                    assert stream.parser.retry
        answer = pair.a.post("/tickets", headers=DASH)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert pair.a.get(f"/sse/mine?ticket={unused}").status_code == 503, "who is no EventSource is told as it is"
        assert status(pair.a, "garbage") == 401
    finally:
        pair.redis.resume()
    with wait_until(lambda: _let_in(pair.b, f"/sse/open-clock?ticket={used}", cursor), "Redis to be back") as stream:
        assert stream.take(1)[0].data["n"] == number + 1
    with wait_until(lambda: _let_in(pair.b, f"/sse/mine?ticket={unused}"), "the ticket to be good again") as stream:
        assert stream.take(1)[0].data["n"] == 1


def _let_in(service: Service, path: str, cursor: str | None = None) -> EventSource | None:
    """A stream that has begun. None for one that is sent away to come back; a refusal fails."""
    stream = service.open(path, cursor=cursor)
    assert stream.response.status_code == 200
    if stream.response.headers.get("content-length"):
        stream.close()
        return None
    return stream
