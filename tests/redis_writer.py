"""What a test does with a store in Redis that fails: opens it, writes to it as a replica does, and follows a log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from eventmux.errors import StoreAwayError
from eventmux.store.contract import Address, Record, Store
from eventmux.store.redis import RedisStore
from eventmux.testing.store import PATIENCE, append, begin, numbered
from redis_server import Redis

TIMEOUT = 1.0
BLOCK = 0.3


class Returns:
    """How often a store has said that it is back."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@contextlib.asynccontextmanager
async def opened(
    server: Redis, url: str = "", on_return: Callable[[], None] = lambda: None, **words: Any
) -> AsyncIterator[RedisStore]:
    """A store on this server, by another URL if one is given."""
    words = {"prefix": server.prefix, "timeout": TIMEOUT, "max_block": BLOCK, **words}
    store = RedisStore(url or server.url, **words)
    await store.open(on_return)
    try:
        yield store
    finally:
        await store.close()


async def patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    """What is answered once the store can be asked."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await ask()
            except StoreAwayError:
                await asyncio.sleep(0.01)


class Writer:
    """Appends 1, 2, 3 and so on to a log, each batch again and again until it is in it, as a replica does."""

    def __init__(self, store: Store, log: Address, name: str = "writer") -> None:
        self.store, self.log, self.name = store, log, name
        self.term: int | None = None
        self.last = 0
        self.number = 0  # the last one that is in the log
        self.epochs = 0
        self.refusals: list[str] = []

    async def begin(self) -> Any:
        """Claim the log; what it is then."""
        self.epochs += 1
        standing = await patiently(
            lambda: begin(self.store, self.log, self.name, epoch=f"E{self.epochs}", label="numbers")
        )
        self.term, self.last = standing.term, standing.last
        return standing

    async def write(self, count: int) -> None:
        """One batch. What a store that has lost a part, or all, is still owed is appended with it."""
        wanted = self.number + count
        while self.number < wanted:
            await patiently(lambda: self._append(wanted))

    async def _append(self, wanted: int) -> None:
        after, records = self.last, numbered(self.number + 1, wanted)
        done = await append(self.store, self.log, self.term, after, records)
        if done.refused is not None:
            self.refusals.append(done.refused)
        if done.refused in {None, "offset"}:
            assert after <= done.last <= after + len(records), done
            self.number += done.last - after
            self.last = done.last
        elif done.refused == "epoch":
            await self.begin()
            self.number -= max(0, after - self.last) if self.last else 0
        elif done.refused == "full":
            raise StoreAwayError("full")


class Reader:
    """Follows a log from its beginning."""

    def __init__(self, store: Store, log: Address, after: int = 0) -> None:
        self.records: list[Record] = []
        store.follow(log, after, self.records.extend)

    @property
    def offsets(self) -> list[int]:
        return [one.offset for one in self.records]

    @property
    def bodies(self) -> list[bytes]:
        return [one.body for one in self.records]

    def has(self, last: int) -> bool:
        return self.offsets[-1:] == [last]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of the store, in a few words."""
    texts = [one.getMessage() for one in caplog.records if one.name.startswith("eventmux.store")]
    return [text.partition(":")[0].partition(",")[0] for text in texts]
