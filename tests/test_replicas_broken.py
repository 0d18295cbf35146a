"""Several replicas over one store: one promise for each way in which it was once broken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from eventmux import Context, Event, Inbox, source
from eventmux.catalog import Catalog
from eventmux.errors import FullError
from eventmux.policy import Bounds, Limits
from eventmux.replica import RETURN_SECONDS
from eventmux.runs import Wanted
from eventmux.store.contract import EMPTY_KEEP
from replicas import LEASE, Site, opened, sites, until
from service import enable
from test_replicas import Feed, Number, Seen, counting, reading, restart
from virtual_time import run


class Text(Event):
    n: int
    text: str


class Read(Seen):
    """The same of texts."""

    def look(self) -> Read:
        for message in self.taking.messages():
            data = json.loads(message.data)
            if message.event == "text":
                self.numbers.append(data["n"])
            elif message.event.startswith("stream."):
                self.controls.append((message.event, data["reason"]))
        return self


class Finite:
    """A shared source that counts to `last` and is over; when it is told to, that is."""

    def __init__(self, last: int = 3) -> None:
        self.runs = 0
        self.may_end = asyncio.Event()

        @source(name="finite", shared=True)
        async def finite(ctx: Context) -> AsyncIterator[Number]:
            self.runs += 1
            for n in range(ctx.last.n if ctx.last else 0, last):
                yield Number(n=n + 1)
            await self.may_end.wait()

        self.enabled = enable(finite, linger=1)

    async def read(self, site: Site, cursor: str | None = None) -> Seen:
        return Seen(await site.take(self.enabled, cursor=cursor, since=None if cursor else 0))


def private(name: str) -> object:
    @source(name=name)
    async def counter() -> AsyncIterator[Number]:
        yield Number(n=1)
        await asyncio.Event().wait()

    return enable(counter)


def test_a_client_of_many_private_runs_that_are_gone_gets_new_ones() -> None:
    async def main() -> None:
        many = [private(f"private-{n}") for n in range(32)]
        gone = ",".join(f"private-{n}={'A' * 22}.5" for n in range(32))
        async with sites(1) as (a,):
            await asyncio.sleep(2 * LEASE)
            client = await a.take(*many, cursor=gone)
            await until(lambda: client.messages() != [])

    run(main())


def test_a_client_that_has_more_of_a_log_that_is_over_than_the_store_gets_another() -> None:
    async def main() -> None:
        finite = Finite()
        async with sites(1) as (a,):
            client = await finite.read(a)
            finite.may_end.set()
            await until(lambda: client.look().controls != [])
            epoch = client.taking.subscription._stream._views[0].channel.epoch
            finite.may_end.clear()
            again = await finite.read(a, f"{epoch}.9")
            await until(lambda: again.look().numbers != [] or again.controls != [])

    run(main())


def test_a_run_that_was_over_when_another_replica_took_its_place_is_begun_again_when_that_dies() -> None:
    async def main() -> None:
        finite = Finite()
        async with sites(2) as (a, b):
            one = await finite.read(a)
            await until(lambda: one.has(3))
            await finite.read(b)
            a.store.cut()
            finite.may_end.set()
            await asyncio.sleep(1)  # it is over, and the store has not heard of it
            finite.may_end.clear()
            await until(lambda: finite.runs == 2)
            a.store.mend()
            await asyncio.sleep(LEASE)
            b.store.cut()
            finite.may_end.set()
            await until(lambda: one.look().controls != [], 10 * LEASE)
            assert one.controls[-1] == ("stream.end", "completed")

    run(main())


def test_who_comes_between_the_end_of_a_run_and_the_word_of_it_in_the_store_is_told_of_it() -> None:
    async def main() -> None:
        finite = Finite()
        async with sites(1) as (a,):
            one = await finite.read(a)
            await until(lambda: one.has(3))
            a.store.cut()
            finite.may_end.set()
            await asyncio.sleep(1.03)
            a.store.mend()
            two = await finite.read(a, one.taking.cursor)
            three = Seen(await a.take(finite.enabled))
            await until(lambda: all(("stream.end", "completed") in x.look().controls for x in (one, two, three)))

    run(main())


def test_a_hole_in_a_copy_is_a_gap_and_no_event_has_the_place_of_another() -> None:
    async def main() -> None:
        sizes: asyncio.Queue[int] = asyncio.Queue()

        @source(name="texts")
        async def texts() -> AsyncIterator[Text]:
            n = 0
            while True:
                size = await sizes.get()
                n += 1
                yield Text(n=n, text="x" * size)

        enabled = enable(texts, history=Bounds(bytes=5_000), linger=100)

        async def give(size: int, last: int, *readers: Read) -> None:
            sizes.put_nowait(size)
            await until(lambda: all(reader.has(last) for reader in readers))

        async with sites(2) as (a, b):
            one = Read(await a.take(enabled))
            await give(1, 1, one)
            early = one.taking.cursor
            other = Read(await b.take(enabled, cursor=early))
            await give(1, 2, one, other)
            await give(1, 3, one, other)
            a.store.cut()
            await give(4_700, 4, one)  # it is gone when the store is back
            await give(4_000, 5, one)
            a.store.mend()
            await until(lambda: other.has(5))
            assert other.controls == [("stream.gap", "lagged")]
            third = Read(await b.take(enabled, cursor=early))
            await until(lambda: third.has(5))
            assert (third.controls, third.numbers) == ([("stream.gap", "evicted")], [5])

    run(main())


def test_a_source_that_takes_events_since_a_change_takes_them() -> None:
    async def main() -> None:
        taken: list[int] = []

        @source(name="taker", shared=True)
        async def before() -> AsyncIterator[Number]:
            await asyncio.Event().wait()
            yield Number(n=1)

        @source(name="taker", shared=True)
        async def after(inbox: Inbox[Number]) -> AsyncIterator[Number]:
            async for number in inbox:
                taken.append(number.n)
                yield number

        old, new = enable(before), enable(after)
        async with sites(1) as (a,):
            client = await a.take(old)
            await asyncio.sleep(1)
            a.hub.apply(Catalog({"taker": new}, {}), Limits())
            await asyncio.sleep(1)
            if client.is_sent_away:
                client = await a.take(new, cursor=client.cursor)
            await a.hub.post(Wanted(new, new.validate({})), b'{"n": 7}')
            await until(lambda: taken == [7])

    run(main())


def test_who_asks_for_more_logs_than_there_is_room_for_leaves_none_in_the_store() -> None:
    async def main() -> None:
        @source(name="many", shared=True)
        async def many(n: int) -> AsyncIterator[Number]:
            yield Number(n=n)
            await asyncio.Event().wait()

        enabled = enable(many, max_runs=2)
        async with sites(1) as (a,):
            clients = [await a.take(enabled, n=n) for n in range(2)]
            for n in range(2, 10):
                with pytest.raises(FullError):
                    await a.take(enabled, n=n)
            assert len(a.store.shelf.logs) == 2
            assert len(clients) == 2

    run(main())


def test_logs_without_an_event_do_not_stay_for_long_when_nobody_reads_them() -> None:
    @source(name="silent", shared=True)
    async def silent(topic: str) -> AsyncIterator[Number]:
        await asyncio.Event().wait()
        yield Number(n=1)

    async def main() -> None:
        enabled = enable(silent, linger=0)
        async with sites(1) as (a,):
            for number in range(20):
                (await a.take(enabled, topic=str(number))).close()
            await asyncio.sleep(EMPTY_KEEP + 10)
            assert [one for one in list(a.store.shelf.logs) if one.source == "silent" and a.store.shelf.log(one)] == []

    run(main())


def test_who_comes_to_a_replica_that_is_about_to_end_gets_what_the_store_has() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            one, other = await reading(a, feed), await reading(b, feed)
            feed.put(3)
            await until(lambda: one.has(3) and other.has(3))
            b.store.cut()
            restart(a.store.shelf)
            feed.put(3)
            await until(lambda: one.has(6))
            b.hub.announce()
            b.store.mend()
            b.replica._due.clear()  # the client is faster
            moved = await reading(b, feed, one.taking.cursor)
            feed.put(1)
            await until(lambda: moved.has(7))
            assert (moved.numbers, moved.controls) == ([7], [])

    run(main())


def test_a_replica_that_begins_when_the_store_has_just_come_back_calls_no_run_lost() -> None:
    async def main() -> None:
        feed = counting(200, pause=0.5)
        async with sites(1) as (a,):
            one = Seen(await a.take(feed.enabled))
            await until(lambda: one.has(4))
            cursor = one.taking.cursor
            await until(lambda: one.has(6))
            a.store.cut()
            a.store.shelf.living.clear()  # the store was away for longer than signs of life last
            async with opened([Site(a.store.shelf)]) as (b,):
                other = Seen(await b.take(feed.enabled, cursor=cursor))
                await asyncio.sleep(RETURN_SECONDS / 2)
                a.store.mend()
                await until(lambda: other.look().taking.is_ended, 300)
                assert other.numbers == list(range(5, 201))
                assert other.controls == [("stream.end", "completed")]

    run(main())


def test_a_log_that_has_had_more_epochs_than_are_remembered_is_read_as_far_as_they_are_known() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(1) as (a,):
            one = await reading(a, feed)
            feed.put(3)
            await until(lambda: one.has(3))
            restart(a.store.shelf)
            feed.put(1)
            await until(lambda: one.has(4))
            cursor = one.taking.cursor
            feed.put(3)
            await until(lambda: one.has(7))
            (kept,) = [log for address, log in a.store.shelf.logs.items() if address.source == "feed"]
            del kept.lineage[0]
            async with opened([Site(a.store.shelf)]) as (b,):
                other = Seen(await b.take(feed.enabled, since=0))
                back = Seen(await b.take(feed.enabled, cursor=cursor))
                await until(lambda: other.has(7) and back.has(7))
                assert (other.numbers, other.controls) == ([4, 5, 6, 7], [])
                assert (back.numbers, back.controls) == ([5, 6, 7], [])

    run(main())


def test_a_replica_that_ends_says_so_before_it_is_gone_however_long_that_takes() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            one, other = await reading(a, feed), await reading(b, feed)
            feed.put(3)
            await until(lambda: one.has(3) and other.has(3))
            a.store.delay = 0.02  # as each question takes
            at = asyncio.get_running_loop().time()
            await a.hub.close()
            await until(lambda: feed.runs == 2)
            assert asyncio.get_running_loop().time() - at < LEASE / 10

    run(main())


def test_a_new_client_of_a_source_that_was_taken_away_and_put_back_is_not_told_that_it_is_gone() -> None:
    async def main() -> None:
        feed, more = Feed(), Feed()
        both = [feed.enabled, replace(more.enabled, name="more")]
        async with sites(1) as (a,):
            a.hub.apply(Catalog({one.name: one for one in both}, {}), Limits())
            old = Seen(await a.take(*both))
            feed.put(1)
            await until(lambda: old.has(1))
            a.hub.apply(Catalog({"more": both[1]}, {}), Limits())
            await until(lambda: old.look().controls == [("stream.end", "removed")])
            a.hub.apply(Catalog({one.name: one for one in both}, {}), Limits())
            new = Seen(await a.take(*both))
            feed.put(1)
            await until(lambda: new.has(2))
            assert new.controls == []

    run(main())
