"""What replicas make of a Redis that has lost something, or is full: named gaps, and sources that wait."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from eventmux import Inbox, source
from eventmux.channel import WINDOW_EVENTS
from eventmux.errors import StoreAwayError
from eventmux.runs import Wanted
from redis_server import RedisServer
from redis_site import LEASE, RedisSite, redis_sites
from relay import relaying
from replicas import until
from service import enable
from test_replicas import Feed, Number, Seen, counting, reading

pytestmark = pytest.mark.anyio

Make = Callable[..., RedisServer]


@pytest.mark.parametrize("gone", [":h", ":s", ":?"], ids=["head", "stream", "all"])
async def test_where_keys_of_a_shared_log_are_deleted_clients_are_told_of_a_gap_or_miss_nothing(
    own_redis: Make, gone: str
) -> None:
    server, feed = own_redis(appendonly=False), Feed()
    async with redis_sites(server) as sites:
        clients = [await reading(site, feed) for site in sites]
        feed.put(5)
        await until(lambda: all(client.has(5) for client in clients), 10)
        cursor = clients[0].taking.cursor
        keys = server.keys(f"*:feed:*{gone}")
        assert server.command("DEL", *keys) == len(keys) > 0
        feed.put(5)
        if gone == ":s":
            await until(lambda: all(client.has(10) for client in clients), 10)
            assert all(client.numbers == list(range(1, 11)) for client in clients)
            assert all(client.controls == [] for client in clients)
            assert feed.runs == 1
            return
        await until(lambda: all(client.look().taking.is_sent_away for client in clients), 10)
        back = [await reading(site, feed, cursor) for site in sites]
        feed.put(3)
        await until(lambda: all(len(client.look().numbers) >= 3 for client in back), 10)
        assert all(client.controls == [("stream.gap", "restarted")] for client in back)
        assert back[0].numbers[-3:] == back[1].numbers[-3:]
        await asyncio.sleep(LEASE)
        assert not any(client.look().taking.is_sent_away for client in back)


async def test_a_replica_that_takes_over_goes_on_although_what_it_had_not_read_was_deleted(own_redis: Make) -> None:
    server, feed = own_redis(appendonly=False), Feed()
    with relaying(server.port) as relay:
        async with redis_sites(server, server.url, server.url_at(relay.port)) as (a, b):
            one, other = await reading(a, feed), await reading(b, feed)
            feed.put(5)
            await until(lambda: one.has(5) and other.has(5), 10)
            relay.stall()
            feed.put(5)
            await until(lambda: one.has(10), 10)
            (stream,) = server.keys("*:feed:*:s")
            server.command("DEL", stream)
            await a.die()
            relay.cut()
            relay.resume()
            await until(lambda: feed.runs == 2, 15)
            feed.put(3)
            await until(lambda: other.has(3) or other.has(13), 10)
            assert other.numbers[:5] == [1, 2, 3, 4, 5]
            assert ("stream.gap", "lagged") in other.controls


async def test_after_a_failover_to_less_who_has_what_is_not_in_the_log_is_told_and_reads_what_is(
    own_redis: Make,
) -> None:
    master, server, feed = own_redis(), own_redis(), Feed()
    with relaying(master.port) as relay:
        async with redis_sites(master, *[master.url_at(relay.port)] * 2) as (a, b):
            clients = [await reading(site, feed) for site in (a, b)]
            feed.put(5)
            await until(lambda: all(client.has(5) for client in clients), 10)
            server.replica_of(master)
            server.promote()
            feed.put(5)
            await until(lambda: all(client.has(10) for client in clients), 10)
            ahead = clients[0].taking.cursor
            relay.point_at("127.0.0.1", server.port)
            relay.cut()
            feed.put(5)
            await until(lambda: all(client.look().taking.is_sent_away for client in clients), 10)
            assert all(client.numbers == list(range(1, 11)) for client in clients)
            back = [await reading(site, feed, ahead) for site in (a, b)]
            feed.put(5)
            in_log = await until_read(a, 5)
            await until(lambda: all(client.look().numbers[-1:] == in_log[-1:] for client in back), 10)
            for client in back:
                assert [event for event, _ in client.controls] == ["stream.gap"]
                assert client.numbers == in_log[-len(client.numbers) :]
            assert in_log[:5] == [1, 2, 3, 4, 5]


async def until_read(site: RedisSite, count: int) -> list[int]:
    """The numbers in the log once there are so many beyond five."""
    (address,) = site.replica._parts
    while True:
        records = await site.store.read(address, 0, 1_000)
        if len(records) >= count + 5:
            return [int(found[1]) for record in records if (found := re.search(rb'"n":(\d+)', record.body))]
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("appendonly", [True, False], ids=["with its data", "without"])
async def test_a_private_run_is_copied_on_after_a_restart(own_redis: Make, appendonly: bool) -> None:
    server, feed = own_redis(appendonly=appendonly), counting(2_000, pause=0.01)
    async with redis_sites(server) as (a, b):
        one = Seen(await a.take(feed.enabled))
        await until(lambda: one.has(20), 10)
        server.restart()
        await until(lambda: one.look().numbers[-1] >= 100, 20)
        before = commands(server)
        had, cursor = one.numbers[-1], one.taking.cursor
        other = Seen(await b.take(feed.enabled, cursor=cursor))
        await until(lambda: len(other.look().numbers) >= 50, 10)
        assert other.numbers[:50] == list(range(had + 1, had + 51))
        assert other.controls == []
        assert commands(server) - before < 50 * 20, "it is not claimed again and again"


def streams_of(server: RedisServer) -> list[str]:
    return [*server.keys("*:feed:*:s"), *server.keys("*:answer:*:s")]


def commands(server: RedisServer) -> int:
    return int(server.info("stats")["total_commands_processed"])


async def test_the_copy_of_a_private_run_that_says_nothing_more_is_made_anew_when_redis_has_lost_it(
    own_redis: Make,
) -> None:
    @source
    async def answer() -> AsyncIterator[Number]:
        for n in range(1, 11):
            yield Number(n=n)
        await asyncio.Event().wait()

    server, enabled = own_redis(appendonly=False), enable(answer, linger=60)
    async with redis_sites(server) as (a, b):
        one = Seen(await a.take(enabled))
        await until(lambda: one.has(10), 10)
        first = one.taking.cursor.rpartition(".")[0] + ".1"
        await until(lambda: server.keys("*:answer:*") != set(), 10)
        server.restart()
        await until(lambda: server.keys("*:answer:*:s") != set(), 10)
        other = Seen(await b.take(enabled, cursor=first))
        await until(lambda: other.has(10), 10)
        assert other.numbers == list(range(2, 11))
        assert other.controls == []


async def test_what_redis_refuses_for_one_log_is_asked_seldom_and_said_seldom_until_it_takes_it(
    own_redis: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server, feed, answer = own_redis(appendonly=False), Feed(), counting(100, pause=0.02)
    async with redis_sites(server) as (a, b):
        shared, private = await reading(a, feed), Seen(await a.take(answer.enabled))
        feed.put(5)
        await until(lambda: shared.has(5) and private.has(5), 10)
        await until(lambda: len(streams_of(server)) == 2, 10)
        streams = streams_of(server)
        for stream in streams:
            server.command("SET", stream, "theirs")
        feed.put(5)
        await until(lambda: caplog.text.count("Redis refuses: WRONGTYPE") >= 2, 10)
        before = commands(server)
        await asyncio.sleep(LEASE)
        assert commands(server) - before < 500 * LEASE, "each try is five commands or so"
        assert caplog.text.count("Redis refuses") < 2 * 8
        assert shared.look().numbers == [1, 2, 3, 4, 5]
        await until(lambda: private.look().has(100), 10)
        server.command("DEL", *streams)
        await until(lambda: shared.has(10), 10)
        other = Seen(await b.take(answer.enabled, cursor=private.taking.cursor))
        assert (shared.controls, feed.runs, other.controls) == ([], 1, [])


@source(name="told", shared=True)
async def told(inbox: Inbox[Number]) -> AsyncIterator[Number]:
    async for number in inbox:
        yield number


async def test_while_redis_is_full_a_shared_source_waits_and_a_private_run_goes_on(own_redis: Make) -> None:
    enabled = enable(told, linger=60)
    posted = Wanted(enabled, enabled.validate({}))
    news = Feed()
    news.enabled = replace(news.enabled, name="news")
    server, feed, answer = own_redis(appendonly=False), Feed(), counting(1_200, pause=0.002)
    async with redis_sites(server, count=1) as (a,):
        client, private = await reading(a, feed), Seen(await a.take(answer.enabled))
        feed.put(5)
        await until(lambda: client.has(5) and len(private.look().numbers) > 5, 10)
        await a.hub.post(posted, b'{"n": 1}')
        server.command("CONFIG", "SET", "maxmemory", "1")
        feed.put(1_000)
        await until(lambda: feed.yielded == 5 + WINDOW_EVENTS, 10)
        had, first = len(private.look().numbers), client.taking.cursor.rpartition(".")[0] + ".1"
        await until(lambda: len(private.look().numbers) > had + 300, 10)
        assert feed.yielded == 5 + WINDOW_EVENTS
        with pytest.raises(StoreAwayError, match="out of memory"):
            await reading(a, news)
        with pytest.raises(StoreAwayError, match="out of memory"):
            await a.hub.post(posted, b'{"n": 1}')
        late = await reading(a, feed, first)
        assert late.look().numbers == [2, 3, 4, 5], "what is there is there for all"
        assert client.look().numbers == [1, 2, 3, 4, 5]
        server.command("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: client.has(1_005), 20)
        assert client.numbers == list(range(1, 1_006))
        assert feed.runs == 1
        await until(lambda: a.hub.fault is None, 10)
        await until(lambda: private.look().taking.is_ended, 20)
        assert private.numbers == list(range(1, 1_201))
