"""Replicas of one service in one loop over a real Redis, which a test may break."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from eventmux.hub import Hub
from eventmux.replica import Replica
from eventmux.store.redis import RedisStore
from redis_server import Redis
from redis_writer import BLOCK, TIMEOUT
from replicas import Site, opened

LEASE = 1.0


class RedisSite(Site):
    """One replica: its hub, and its own connections to the server."""

    def __init__(self, server: Redis, url: str = "", *, keep: float = 60.0, **words: Any) -> None:
        words = {"prefix": server.prefix, "timeout": TIMEOUT, "max_block": BLOCK, **words}
        self.store = RedisStore(url or server.url, **words)  # type: ignore[assignment]
        self.replica = Replica(self.store, lease=LEASE, keep=keep)
        self.hub = Hub(replica=self.replica)

    async def die(self) -> None:
        """As by SIGKILL: nothing is said to anybody."""
        for task in [*self.replica._loops, *self.replica._tasks]:
            task.cancel()
        self.replica._is_open = False
        await self.store.close()
        await self.hub.close()


@contextlib.asynccontextmanager
async def redis_sites(server: Redis, *urls: str, count: int = 2, **words: Any) -> AsyncIterator[list[RedisSite]]:
    """So many replicas, or one for each URL. On leaving they end in order."""
    async with opened([RedisSite(server, url, **words) for url in urls or [server.url] * count]) as all_sites:
        yield all_sites
