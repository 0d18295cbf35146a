"""Replicas of one service in one loop, over a store in memory: cut off, killed and brought back when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from eventmux.catalog import EnabledSource
from eventmux.cursor import parse_cursor
from eventmux.errors import StoreAwayError
from eventmux.hub import Hub
from eventmux.replica import Replica
from eventmux.runs import Wanted
from eventmux.selection import Start
from eventmux.store.contract import Address, Record
from eventmux.store.memory import MemoryStore, Shelf
from taking import Taking

LEASE = 10.0


class CableStore(MemoryStore):
    """A replica's way to the shelf, which can be cut: then nothing is answered, and nothing is heard. `delay`: seconds
    that a question takes.
    """

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.is_cut = False
        self.swaps: list[tuple[str, bytes | None, bytes | None, float]] = []  # that were asked for, done or not
        self.appends = 0  # that were asked for
        self.delay = 0.0
        self._on_return: Callable[[], None] = lambda: None
        self._kept: dict[Address, tuple[int, Any]] = {}

    async def open(self, on_return: Callable[[], None]) -> None:
        self._on_return = on_return

    @property
    def fault(self) -> str | None:
        return "the cable is cut" if self.is_cut else None

    def cut(self) -> None:
        if self.is_cut:
            return
        self.is_cut = True
        self.deafen()

    def mend(self) -> None:
        if not self.is_cut:
            return
        self.is_cut = False
        self._on_return()
        self.hear()

    def deafen(self) -> None:
        """What is asked is answered, but nothing is heard until `hear`."""
        self._kept |= {address: (one.after, one.sink) for address, one in self._followed.items()}
        for address in list(self._kept):
            super().unfollow(address)

    def hear(self) -> None:
        kept, self._kept = self._kept, {}
        for address, (after, sink) in kept.items():
            super().follow(address, after, sink)

    def follow(self, address: Address, after: int, sink: Any) -> None:
        if self.is_cut:
            self._kept[address] = after, sink
        else:
            super().follow(address, after, sink)

    def unfollow(self, address: Address) -> None:
        self._kept.pop(address, None)
        super().unfollow(address)

    async def _pass(self) -> None:
        await asyncio.sleep(self.delay)
        if self.is_cut:
            raise StoreAwayError("the cable is cut")

    async def claim(self, claims: Any) -> Any:
        await self._pass()
        return await super().claim(claims)

    async def append(self, appends: Any) -> Any:
        self.appends += len(appends)
        await self._pass()
        return await super().append(appends)

    async def read(self, address: Address, after: int, limit: int) -> Sequence[Record]:
        await self._pass()
        return await super().read(address, after, limit)

    async def release(self, address: Address, replica: str) -> Sequence[str]:
        await self._pass()
        return await super().release(address, replica)

    async def drop(self, addresses: Any) -> None:
        await self._pass()
        await super().drop(addresses)

    async def live(self, replica: str, seconds: float) -> None:
        await self._pass()
        await super().live(replica, seconds)

    async def post(self, address: Address, body: bytes, room: int, keep: float) -> bool:
        await self._pass()
        return await super().post(address, body, room, keep)

    async def trim(self, address: Address, offset: int) -> None:
        await self._pass()
        await super().trim(address, offset)

    async def get(self, key: str) -> bytes | None:
        await self._pass()
        return await super().get(key)

    async def swap(self, key: str, before: bytes | None, after: bytes | None, seconds: float) -> bool:
        self.swaps.append((key, before, after, seconds))
        await self._pass()
        is_done = await super().swap(key, before, after, seconds)
        await self._pass()  # what was cut meanwhile has been done, and nobody knows
        return is_done


class Site:
    """One replica: its hub, and the cable to the store."""

    def __init__(self, shelf: Shelf) -> None:
        self.store = CableStore(shelf)
        self.replica = Replica(self.store, lease=LEASE, keep=600)
        self.hub = Hub(replica=self.replica)

    async def take(
        self,
        *enabled: EnabledSource,
        cursor: str | None = None,
        since: int | None = None,
        principal: str | None = None,
        **given: Any,
    ) -> Taking:
        """A client that comes to this replica."""
        wanted = [Wanted(one, one.validate(given), given) for one in enabled]
        start = Start(parse_cursor(cursor) if cursor else None, since, principal)
        await self.hub.load(wanted, start)
        return Taking(self.hub, wanted, start)


S = TypeVar("S", bound=Site)


@contextlib.asynccontextmanager
async def opened(all_sites: list[S]) -> AsyncIterator[list[S]]:
    """These replicas begin, and end on leaving."""
    for site in all_sites:
        await site.hub.open()
    try:
        yield all_sites
    finally:
        for site in all_sites:
            await site.hub.close()


@contextlib.asynccontextmanager
async def sites(count: int) -> AsyncIterator[list[Site]]:
    """So many replicas. On leaving, those that are not cut off end in order, the others as they can."""
    shelf = Shelf(clock=asyncio.get_running_loop().time)
    try:
        async with opened([Site(shelf) for _ in range(count)]) as all_sites:
            yield all_sites
    finally:
        assert [task for task in asyncio.all_tasks() if "eventmux" in task.get_name()] == []


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return when it holds; time passes meanwhile."""
    ends = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < ends, "it did not come to pass"
        await asyncio.sleep(0.01)
