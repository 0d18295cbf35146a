"""A connection to Redis that breaks while nothing is asked on it is made anew, and nobody hears of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
import uvloop

from bench.relay import relaying
from eventmux.store.redis import RedisStore
from eventsource import wait_until
from redis_server import Redis


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("is_reset", [True, False], ids=["reset", "closed"])
def test_what_is_asked_next_is_asked_on_a_new_connection(
    redis_server: Redis,
    factory: Callable[[], asyncio.AbstractEventLoop],
    is_reset: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(port: int) -> None:
        store = RedisStore(redis_server.url.replace(place, f"127.0.0.1:{port}"), prefix=redis_server.prefix.strip(":"))
        await store.open(lambda: None)
        try:
            for _ in range(3):
                await store.live("a", 1)
                await asyncio.to_thread(relay.cut, reset=is_reset)
                await asyncio.sleep(0.01)  # the loop hears of it
                await store.live("a", 1)
        finally:
            await store.close()

    parts = urlsplit(redis_server.url)
    place, host, port = f"{parts.hostname}:{parts.port}", str(parts.hostname), parts.port or 6379
    with relaying(port, host) as relay, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(relay.port))
        wait_until(lambda: relay.connections == 0, "the connections to end")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
