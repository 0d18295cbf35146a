"""Nothing is left in Redis by runs that are gone, however they went."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from eventmux import source
from eventmux.catalog import EnabledSource
from redis_server import RedisServer
from redis_site import RedisSite, redis_sites
from replicas import until
from service import enable
from taking import Taking
from test_replicas import Number

pytestmark = pytest.mark.anyio

RUNS = 10_000
CLIENTS = 500  # at a time


@source
async def answer(is_endless: bool = False) -> AsyncIterator[Number]:
    for n in range(3):
        yield Number(n=n)
    if is_endless:
        await asyncio.Event().wait()


def logs(server: RedisServer) -> set[str]:
    """Keys of logs; beside them each replica has a few of its own."""
    return server.keys("*:answer:*")


async def crowd(site: RedisSite, enabled: EnabledSource, count: int, **given: bool) -> list[Taking]:
    """So many clients that have taken all there is."""
    clients = [await site.take(enabled, **given) for _ in range(count)]
    seen = [0] * count
    while any(events < 3 for events in seen):
        await asyncio.sleep(0)
        for i, client in enumerate(clients):
            seen[i] += client.events().count("number")
    return clients


async def test_ten_thousand_private_runs_leave_no_key_behind(own_redis: Callable[..., RedisServer]) -> None:
    server, enabled = own_redis(appendonly=False), enable(answer, linger=0.1)
    async with redis_sites(server, count=2, shards=3, timeout=5.0) as (site, other):
        await until(lambda: len(server.keys("*:live:*")) == 6, 10)  # of each replica in each shard
        before = server.count_keys("*")
        for turn in range(RUNS // CLIENTS):
            clients = await crowd((site, other)[turn % 2], enabled, CLIENTS, is_endless=turn % 4 == 3)
            await until(lambda: len(logs(server)) >= 2 * CLIENTS, 20)  # all of them are in Redis, and who is going
            for client in clients:
                client.close()
        await until(lambda: not logs(server), 20)
        await until(lambda: server.count_keys("*") == before, 10)  # signs of life lapse on a busy machine
        assert site.hub.runs == other.hub.runs == 0

        # Of a replica that dies nobody lets go anything: then it is their time.
        await crowd(site, enabled, CLIENTS, is_endless=True)
        await until(lambda: len(logs(server)) == 2 * CLIENTS, 10)
        await site.die()
        assert len(logs(server)) == 2 * CLIENTS
        assert all(0 < ttl < 10_000 for ttl in ttls(server))
        await until(lambda: not logs(server), 20)


def ttls(server: RedisServer) -> list[int]:
    with server.client() as client:
        pipeline = client.pipeline(transaction=False)
        for key in logs(server):
            pipeline.pttl(key)
        return pipeline.execute()
