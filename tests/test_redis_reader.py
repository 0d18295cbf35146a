"""How Redis is asked: in the words that it reads, and by who follows many logs not for each event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from eventmux.policy import Bounds
from eventmux.store.contract import Address, Append, Claim, Record
from eventmux.store.redis import RedisStore
from eventmux.store.redis.commands import RUN_ID, packed
from eventmux.store.redis.reader import FEW, GATHERING
from redis_server import Redis

PATIENCE = 20.0


def test_words_of_every_kind_are_packed_as_redis_reads_them() -> None:
    commands = [("GET", b"a\r\nb"), ("SET", "ä", 12, RUN_ID)]
    assert packed(commands, "abc") == (
        b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n*4\r\n$3\r\nSET\r\n$2\r\n\xc3\xa4\r\n$2\r\n12\r\n$3\r\nabc\r\n"
    )


def reads(server: Redis) -> int:
    with server.client() as client:
        return int(client.info("commandstats").get("cmdstat_xread", {"calls": 0})["calls"])


def test_who_follows_many_logs_lets_events_gather(redis_server: Redis) -> None:
    logs = [Address("source", f"log-{number}") for number in range(3 * FEW)]
    seen: list[Record] = []

    async def follow_and_append(store: RedisStore, events: int) -> tuple[int, float]:
        """The XREADs that it took, and the time."""
        await store.open(lambda: None)
        claims = [Claim(log, "me", 10.0, 60.0, epoch="e", writes=True, opens="none") for log in logs]
        standings = await store.claim(claims)
        for log in logs:
            store.follow(log, 0, take)
        before, began = reads(redis_server), time.monotonic()
        for log, standing in list(zip(logs, standings, strict=True))[:events]:
            assert standing
            assert standing.term
            record = Record(0, "", time.time_ns(), "tick", is_json=True, body=b"data: 1\n\n")
            await store.append([Append(log, standing.term, 0, [record], Bounds(), 60.0)])
        async with asyncio.timeout(PATIENCE):
            while len(seen) < events:
                await asyncio.sleep(0.01)
        return reads(redis_server) - before, time.monotonic() - began

    def take(records: Sequence[Record]) -> None:
        seen.extend(records)

    async def main() -> None:
        store = RedisStore(redis_server.url, prefix=redis_server.prefix)
        try:
            asked, seconds = await follow_and_append(store, 2 * FEW)
        finally:
            await store.close()
        assert len(seen) == 2 * FEW
        assert (asked - 2) * len(logs) * GATHERING <= seconds

    asyncio.run(main())
