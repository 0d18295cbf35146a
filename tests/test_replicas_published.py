"""What is published where there are several replicas is taken by one of them, whichever ends meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from eventmux import Event, Inbox, source
from eventmux.errors import FullError
from eventmux.policy import Limits
from eventmux.runs import Wanted
from replicas import LEASE, Site, sites, until
from service import enable
from virtual_time import run


class Number(Event):
    n: int


class Taker:
    """A shared source that takes numbers, and needs so many seconds to close. `is_deaf`: it takes none."""

    def __init__(self, closing: float = 0.0, *, is_deaf: bool = False) -> None:
        self.taken: list[int] = []
        self.open = 0

        @source(name="taker", shared=True)
        async def taker(inbox: Inbox[Number]) -> AsyncIterator[Number]:
            self.open += 1
            try:
                if is_deaf:
                    await asyncio.Event().wait()
                async for number in inbox:
                    self.taken.append(number.n)
                    yield number
            finally:
                await asyncio.sleep(closing)
                self.open -= 1

        self.enabled = enable(taker, linger=1)

    async def post(self, site: Site, n: int) -> None:
        await site.hub.post(Wanted(self.enabled, self.enabled.validate({})), json.dumps({"n": n}).encode())


def boxed(site: Site) -> int:
    """Messages that wait in the store."""
    logs = site.store.shelf.logs
    return sum(len(log.records) for address, log in logs.items() if address.name.endswith(".box"))


def test_what_is_published_while_the_replica_that_takes_it_dies_is_taken_by_another() -> None:
    async def main() -> None:
        taker = Taker()
        async with sites(2) as (a, b):
            reader = await b.take(taker.enabled)
            await taker.post(b, 1)
            await until(lambda: taker.taken == [1])
            b.store.cut()
            await taker.post(a, 2)
            reader.close()
            await until(lambda: taker.taken == [1, 2], 3 * LEASE)
            await until(lambda: a.hub.runs == 0, 3 * LEASE)

    run(main())


@pytest.mark.parametrize("after", [0.0, 0.5, 0.9, 1.5, 2.0, 2.5, 4.0, 5.5])
def test_what_is_published_while_the_replica_that_takes_it_ends_is_taken_by_another(after: float) -> None:
    async def main() -> None:
        taker = Taker(closing=3.0)
        async with sites(2) as (a, b):
            await taker.post(b, 1)
            await until(lambda: taker.taken == [1])
            await asyncio.sleep(after)
            await taker.post(a, 2)
            await until(lambda: taker.taken == [1, 2], LEASE)
            await until(lambda: a.hub.runs == b.hub.runs == 0, 3 * LEASE)
            assert boxed(a) == 0

    run(main())


def test_a_source_that_takes_nothing_is_not_waited_for_without_end() -> None:
    async def main() -> None:
        taker = Taker(is_deaf=True)
        async with sites(2) as (a, b):
            await taker.post(a, 1)
            await until(lambda: taker.open == 1)
            await until(lambda: a.hub.runs == b.hub.runs == 0, 5 * LEASE)
            assert boxed(b) == 1, "it waits for who comes next"

    run(main())


def test_where_there_is_no_room_for_a_run_nothing_is_posted() -> None:
    async def main() -> None:
        taker = Taker()
        async with sites(2) as (a, b):
            a.hub._runs.lifetimes.limits = Limits(runs=0)
            with pytest.raises(FullError, match="no more are started now"):
                await taker.post(a, 1)
            assert boxed(b) == 0
            await taker.post(b, 2)
            await until(lambda: taker.taken == [2])

    run(main())
