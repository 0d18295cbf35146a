"""Several replicas over one store: one of them runs a shared source, all of them serve it, whatever breaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from eventmux import Context, Event, Inbox, source
from eventmux.channel import WINDOW_EVENTS
from eventmux.errors import StoreAwayError
from eventmux.policy import Bounds
from eventmux.replica import BEHIND
from eventmux.runs import Wanted
from eventmux.store.memory import Shelf
from replicas import LEASE, Site, sites, until
from service import enable
from taking import Taking
from virtual_time import run


class Number(Event):
    n: int
    by: int = 0


class Feed:
    """A shared source that counts on from its last event, one for each `put`; which of its runs says what is in it."""

    def __init__(self, **policy: object) -> None:
        self.runs = self.open = self.yielded = 0
        self.allowed = asyncio.Semaphore(0)

        @source(name="feed", shared=True)
        async def feed(ctx: Context) -> AsyncIterator[Number]:
            self.runs += 1
            self.open += 1
            by, n = self.runs, ctx.last.n if ctx.last else 0
            try:
                while True:
                    await self.allowed.acquire()
                    n += 1
                    self.yielded += 1
                    yield Number(n=n, by=by)
            finally:
                self.open -= 1

        self.enabled = enable(feed, **{"linger": 1, **policy})

    def put(self, count: int) -> None:
        for _ in range(count):
            self.allowed.release()


def numbers(taking: Taking) -> list[int]:
    return [json.loads(message.data)["n"] for message in taking.messages() if message.event == "number"]


class Seen:
    """All that a client was told so far."""

    def __init__(self, taking: Taking) -> None:
        self.taking = taking
        self.numbers: list[int] = []
        self.controls: list[tuple[str, str]] = []

    def look(self) -> Seen:
        for message in self.taking.messages():
            data = json.loads(message.data)
            if message.event == "number":
                self.numbers.append(data["n"])
            elif message.event.startswith("stream."):
                self.controls.append((message.event, data["reason"]))
        return self

    def has(self, last: int) -> bool:
        return self.look().numbers[-1:] == [last]


async def reading(site: Site, feed: Feed, cursor: str | None = None) -> Seen:
    return Seen(await site.take(feed.enabled, cursor=cursor))


def test_one_replica_runs_a_shared_source_and_all_serve_it() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(3) as (a, b, c):
            clients = [await reading(site, feed) for site in (a, b, c)]
            feed.put(300)
            await until(lambda: all(client.has(300) for client in clients))
            assert all(client.numbers == list(range(1, 301)) for client in clients)
            assert feed.runs == feed.open == 1
        assert feed.open == 0

    run(main())


def test_a_cursor_of_one_replica_is_good_on_any_other_from_where_it_was() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            first = await reading(a, feed)
            feed.put(5)
            await until(lambda: first.has(5))
            cursor = first.taking.cursor
            feed.put(95)
            await until(lambda: first.has(100))
            other = await reading(b, feed, cursor)
            assert other.look().numbers == list(range(6, 101)), "there at once, from before it was read there"
            feed.put(1)
            await until(lambda: other.has(101))
            assert other.controls == []

    run(main())


def test_a_client_that_is_ahead_of_its_new_replica_is_not_told_of_a_gap() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            one, other = await reading(a, feed), await reading(b, feed)
            feed.put(3)
            await until(lambda: one.has(3) and other.has(3))
            b.store.cut()
            feed.put(3)
            await until(lambda: one.has(6))
            cursor = one.taking.cursor
            joining = asyncio.create_task(reading(b, feed, cursor))
            await asyncio.sleep(0)
            b.store.mend()
            moved = await joining
            feed.put(1)
            await until(lambda: moved.has(7))
            assert moved.numbers == [7]
            assert moved.controls == []

    run(main())


def test_when_a_replica_dies_another_continues_the_log_within_two_leases() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            one, other = await reading(a, feed), await reading(b, feed)
            feed.put(10)
            await until(lambda: one.has(10) and other.has(10))
            a.store.cut()
            began = asyncio.get_running_loop().time()
            await until(lambda: feed.runs == 2)
            assert asyncio.get_running_loop().time() - began < 2 * LEASE
            feed.put(10)
            await until(lambda: feed.yielded >= 20)
            await asyncio.sleep(1)
            taken = other.look().numbers
            assert taken == list(range(1, len(taken) + 1)), "with the next number, and no other log"
            assert other.controls == []

    run(main())


def test_a_replica_that_has_lost_its_lease_writes_nothing_and_follows_the_one_that_has_it() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            one, other = await reading(a, feed), await reading(b, feed)
            feed.put(10)
            await until(lambda: one.has(10) and other.has(10))
            a.store.cut()
            feed.put(5)  # the zombie yields them, for nobody has told it
            await until(lambda: feed.runs == 2)
            a.store.mend()
            await until(lambda: feed.open == 1)
            feed.put(10)
            await until(lambda: one.has(20) and other.has(20))
            assert one.numbers == other.numbers == list(range(1, 21))
            assert one.controls == other.controls == []

    run(main())


def test_while_the_store_is_away_a_source_is_held_when_a_window_waits_and_then_goes_on() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(1) as (a,):
            client = await reading(a, feed)
            feed.put(1)
            await until(lambda: client.has(1))
            a.store.cut()
            feed.put(900)
            await asyncio.sleep(5)
            assert feed.yielded == 1 + WINDOW_EVENTS
            assert client.look().numbers == [1], "nobody sees what the store has not"
            a.store.mend()
            await until(lambda: client.has(901))
            assert client.numbers == list(range(1, 902))
            assert feed.runs == 1

    run(main())


def test_a_run_goes_on_for_readers_on_another_replica_when_its_own_have_left() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            one, other = await reading(a, feed), await reading(b, feed)
            await until(lambda: feed.runs == 1)
            one.taking.close()
            await asyncio.sleep(5 * LEASE)
            feed.put(3)
            await until(lambda: other.has(3))
            assert feed.runs == 1
            other.taking.close()
            await asyncio.sleep(5 * LEASE)
            assert feed.open == 0, "nobody reads it anywhere"

    run(main())


def restart(shelf: Shelf) -> None:
    """What a store does that may have lost something, and has not: the logs go on under other epochs."""
    for log in shelf.logs.values():
        log.epoch = f"E{len(log.lineage)}xx"
        log.lineage.append((log.epoch, log.last))


def test_a_cursor_with_an_epoch_that_its_new_replica_has_not_heard_of_is_no_gap() -> None:
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
            b.store.mend()
            b.replica._due.clear()  # the client is faster
            moved = await reading(b, feed, one.taking.cursor)
            feed.put(1)
            await until(lambda: moved.has(7) and other.has(7))
            assert (moved.numbers, moved.controls) == ([7], [])
            assert (other.numbers, other.controls) == ([1, 2, 3, 4, 5, 6, 7], [])

    run(main())


def test_a_replica_that_is_behind_when_a_log_gets_another_epoch_reads_all_of_it() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            one, other = await reading(a, feed), await reading(b, feed)
            feed.put(3)
            await until(lambda: one.has(3) and other.has(3))
            b.store.cut()
            feed.put(3)
            await until(lambda: one.has(6))
            restart(a.store.shelf)
            feed.put(3)
            await until(lambda: one.has(9))
            kept, b.store._kept = b.store._kept, {}
            b.store.mend()  # it learns of the other epoch before it reads
            await until(lambda: one.taking.cursor[:4] == other.taking.cursor[:4])
            for address, (after, sink) in kept.items():
                if address not in b.store._followed:
                    b.store.follow(address, after, sink)
            await until(lambda: other.has(9))
            assert other.numbers == list(range(1, 10))
            assert other.controls == []

    run(main())


def test_a_replica_that_ends_hands_its_runs_over_at_once() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            one = await reading(a, feed)
            await until(lambda: feed.runs == 1)
            other = await reading(b, feed)
            feed.put(3)
            await until(lambda: one.has(3) and other.has(3))
            began = asyncio.get_running_loop().time()
            await a.hub.close()
            await until(lambda: feed.runs == 2)
            assert asyncio.get_running_loop().time() - began < 1
            assert feed.open == 1
            feed.put(1)
            await until(lambda: other.has(4))
            assert other.numbers == [1, 2, 3, 4]

    run(main())


def test_where_the_store_has_lost_a_log_its_readers_are_told_and_go_on_with_the_new_one() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(1) as (a,):
            client = await reading(a, feed)
            feed.put(3)
            await until(lambda: client.has(3))
            cursor = client.taking.cursor
            a.store.shelf.logs.clear()
            await until(lambda: client.taking.is_sent_away)
            back = await reading(a, feed, cursor)
            feed.put(2)
            await until(lambda: len(back.look().numbers) == 2)
            assert back.controls == [("stream.gap", "restarted")]

    run(main())


def test_a_run_that_is_being_loaded_for_somebody_does_not_expire_meanwhile() -> None:
    async def main() -> None:
        feed = Feed(linger=1, history=Bounds(events=500))
        async with sites(2) as (a, b):
            one = await reading(a, feed)
            feed.put(5)
            await until(lambda: one.has(5))
            other = await reading(b, feed)
            other.taking.close()
            b.store.delay = 0.5
            await asyncio.sleep(0.8)
            again = Seen(await b.take(feed.enabled, since=0))
            assert again.look().numbers == [1, 2, 3, 4, 5]

    run(main())


def test_a_run_that_is_over_is_over_on_all_replicas() -> None:
    @source(name="brief", shared=True)
    async def brief() -> AsyncIterator[Number]:
        for n in range(1, 4):
            await asyncio.sleep(1)
            yield Number(n=n)

    async def main() -> None:
        enabled = enable(brief)
        async with sites(2) as (a, b):
            clients = [Seen(await site.take(enabled)) for site in (a, b)]
            await until(lambda: all(client.look().taking.is_ended for client in clients))
            for client in clients:
                assert client.numbers == [1, 2, 3]
                assert client.controls == [("stream.end", "completed")]
            again = Seen(await b.take(enabled))
            await until(lambda: again.look().taking.is_ended)
            assert again.numbers == [1, 2, 3], "who comes later gets a run of its own time"

    run(main())


def counting(total: int, *, pause: float = 0.0) -> Feed:
    """A private source that counts to `total`."""
    feed = Feed()

    @source(name="answer")
    async def answer() -> AsyncIterator[Number]:
        feed.open += 1
        try:
            for n in range(1, total + 1):
                await asyncio.sleep(pause)
                feed.yielded = n
                yield Number(n=n)
        finally:
            feed.open -= 1

    feed.enabled = enable(answer, linger=60)
    return feed


def test_a_private_run_is_replayed_and_followed_on_another_replica() -> None:
    async def main() -> None:
        feed = counting(400, pause=0.01)
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled, principal="ann"))
            await until(lambda: len(one.look().numbers) >= 100)
            had, cursor = len(one.numbers), one.taking.cursor
            one.taking.close()
            other = Seen(await b.take(feed.enabled, cursor=cursor, principal="ann"))
            await until(lambda: other.look().taking.is_ended)
            assert other.numbers == list(range(had + 1, 401))
            assert other.controls == [("stream.end", "completed")]

    run(main())


def test_a_copy_takes_what_has_come_for_a_while_by_one_append_but_for_a_reader_at_once() -> None:
    async def main() -> None:
        feed = counting(1_000, pause=BEHIND / 10)
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled))
            await until(lambda: one.look().numbers[-1:] >= [500])
            assert a.store.appends < 500 / 10 + 5
            before = a.store.appends
            other = Seen(await b.take(feed.enabled, cursor=one.taking.cursor))
            await until(lambda: other.look().taking.is_ended)
            assert a.store.appends - before > 300, "it is hurried on for who reads it elsewhere"

    run(main())


def test_a_private_run_is_nobody_elses_on_another_replica_either() -> None:
    async def main() -> None:
        feed = counting(400, pause=0.01)
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled, principal="ann"))
            await until(lambda: len(one.look().numbers) >= 10)
            other = Seen(await b.take(feed.enabled, cursor=one.taking.cursor, principal="bob"))
            await until(lambda: len(other.look().numbers) >= 10)
            assert other.numbers[0] == 1, "a run of his own"
            assert other.controls == [("stream.gap", "unknown")]

    run(main())


def test_a_private_run_waits_for_its_reader_on_another_replica() -> None:
    async def main() -> None:
        feed = counting(5_000)
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled))
            await until(lambda: len(one.look().numbers) >= 1)
            cursor = one.taking.cursor
            one.taking.close()
            other = Seen(await b.take(feed.enabled, cursor=cursor))
            await asyncio.sleep(2 * LEASE)
            assert feed.yielded < 1_000, "its reader has taken nothing yet"
            assert feed.open == 1
            await until(lambda: other.look().taking.is_ended)
            assert other.numbers[-1] == 5_000
            assert other.controls == [("stream.end", "completed")]
            assert len(other.numbers) == other.numbers[-1] - other.numbers[0] + 1

    run(main())


def test_when_the_replica_of_a_private_run_has_died_there_is_what_there_was_and_then_it_is_lost() -> None:
    async def main() -> None:
        feed = counting(1_000, pause=0.1)
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled))
            await until(lambda: one.has(20))
            cursor = one.taking.cursor
            await until(lambda: one.has(40 + 1 + int(BEHIND / 0.1)))
            a.store.cut()
            other = Seen(await b.take(feed.enabled, cursor=cursor))
            await until(lambda: other.look().taking.is_ended)
            assert other.numbers[:20] == list(range(21, 41))
            assert other.controls == [("stream.end", "lost")]

    run(main())


def test_a_private_run_is_not_called_lost_because_the_store_was_away_for_all() -> None:
    async def main() -> None:
        feed = counting(400, pause=0.5)
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled))
            await until(lambda: one.has(4))
            other = Seen(await b.take(feed.enabled, cursor=one.taking.cursor))
            await until(lambda: other.has(8))
            a.store.cut()
            b.store.cut()
            await asyncio.sleep(3 * LEASE)
            b.store.mend()
            await asyncio.sleep(LEASE / 2)
            a.store.mend()
            await until(lambda: other.look().taking.is_ended, 300)
            assert other.numbers == list(range(5, 401))
            assert other.controls == [("stream.end", "completed")]

    run(main())


def test_a_private_run_outlives_its_last_reader_on_another_replica_as_long_as_one_on_its_own() -> None:
    async def main() -> None:
        feed = counting(400, pause=0.5)  # and a linger of 60
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled))
            await until(lambda: one.has(4))
            other = Seen(await b.take(feed.enabled, cursor=one.taking.cursor))
            one.taking.close()
            await until(lambda: other.has(80))
            b.store.cut()
            await until(lambda: feed.yielded >= 130)
            b.store.mend()
            await until(lambda: other.look().taking.is_ended, 300)
            assert other.numbers == list(range(5, 401))
            assert other.controls == [("stream.end", "completed")]

    run(main())


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, ("stream.gap", "unknown")), (1, ("stream.end", "lost"))],
    ids=["its copy is let go", "nobody could be told to let go its copy"],
)
def test_a_private_run_that_has_expired_while_the_store_was_away_is_gone_for_all(
    seconds: int, told: tuple[str, str]
) -> None:
    async def main() -> None:
        feed = counting(100_000, pause=0.5)
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled))
            await until(lambda: one.has(4))
            one.taking.close()
            a.store.cut()
            await until(lambda: feed.open == 0, 300)
            await asyncio.sleep(seconds)
            a.store.mend()
            await asyncio.sleep(LEASE)
            other = Seen(await b.take(feed.enabled, cursor=one.taking.cursor))
            await until(lambda: bool(other.look().controls))
            assert other.controls == [told]

    run(main())


def test_a_private_run_whose_replica_ends_in_order_is_copied_to_its_last_event() -> None:
    async def main() -> None:
        feed = counting(1_000, pause=0.1)
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled))
            await until(lambda: one.has(20))
            cursor = one.taking.cursor
            a.store.cut()
            await until(lambda: one.has(40))
            a.store.mend()
            await a.hub.close()
            other = Seen(await b.take(feed.enabled, cursor=cursor))
            await until(lambda: other.look().taking.is_ended)
            assert other.numbers == list(range(21, 41))
            assert other.controls == [("stream.end", "lost")]

    run(main())


def test_who_is_faster_than_the_first_copy_of_a_private_run_is_not_given_another_one() -> None:
    async def main() -> None:
        feed = counting(100, pause=0.01)
        async with sites(2) as (a, b):
            a.store.delay = 0.1
            one = Seen(await a.take(feed.enabled))
            await until(lambda: one.has(1))
            other = Seen(await b.take(feed.enabled, cursor=one.taking.cursor))
            await until(lambda: other.look().taking.is_ended)
            assert other.numbers == list(range(2, 101))
            assert other.controls == [("stream.end", "completed")]

    run(main())


def test_a_private_run_that_began_while_the_store_was_away_is_found_when_it_is_back() -> None:
    async def main() -> None:
        feed = counting(400, pause=0.5)
        async with sites(2) as (a, b):
            for site in (a, b):
                site.store.cut()
            one = Seen(await a.take(feed.enabled))
            await until(lambda: one.has(50))
            b.store.mend()
            coming = asyncio.create_task(patient(b, feed, one.taking.cursor))
            await asyncio.sleep(2)
            a.store.mend()
            other = await coming
            await until(lambda: other.look().taking.is_ended, 300)
            assert other.numbers == list(range(51, 401))
            assert other.controls == [("stream.end", "completed")]

    run(main())


async def patient(site: Site, feed: Feed, cursor: str) -> Seen:
    """A client that comes back until it is let in."""
    while True:
        try:
            return Seen(await site.take(feed.enabled, cursor=cursor))
        except StoreAwayError:
            await asyncio.sleep(1)


def test_who_has_more_of_a_private_run_than_its_dead_replica_had_copied_is_told_that_it_is_lost() -> None:
    async def main() -> None:
        feed = counting(1_000, pause=0.1)
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled))
            await until(lambda: one.has(20))
            a.store.cut()
            await until(lambda: one.has(40))
            other = await patient(b, feed, one.taking.cursor)
            await until(lambda: other.look().taking.is_ended)
            assert other.controls == [("stream.end", "lost")], "and no other run in its place"
            assert other.numbers == []
            assert feed.open == 1

    run(main())


def test_what_is_published_to_one_replica_reaches_the_run_on_another() -> None:
    @source(name="news", shared=True)
    async def news(inbox: Inbox[Number]) -> AsyncIterator[Number]:
        async for number in inbox:
            yield number

    async def main() -> None:
        enabled = enable(news, linger=5)
        async with sites(2) as (a, b):
            clients = [Seen(await site.take(enabled)) for site in (a, b)]
            for n in range(1, 21):
                site = (a, b)[n % 2]
                await site.hub.post(Wanted(enabled, enabled.validate({})), json.dumps({"n": n}).encode())
            await until(lambda: all(client.has(20) for client in clients))
            assert all(client.numbers == list(range(1, 21)) for client in clients)
            boxes = [log for address, log in a.store.shelf.logs.items() if address.name.endswith(".box")]
            await until(lambda: [log.records for log in boxes] == [[]], 5)

    run(main())


def test_what_is_published_when_nobody_listens_is_in_the_log_for_who_comes_to_any_replica() -> None:
    @source(name="news", shared=True)
    async def news(inbox: Inbox[Number]) -> AsyncIterator[Number]:
        async for number in inbox:
            yield number

    async def main() -> None:
        enabled = enable(news, linger=1)
        async with sites(2) as (a, b):
            for n in (1, 2):
                await a.hub.post(Wanted(enabled, enabled.validate({})), json.dumps({"n": n}).encode())
            await until(lambda: a.hub.runs == 0)
            reader = Seen(await b.take(enabled, since=0))
            await a.hub.post(Wanted(enabled, enabled.validate({})), json.dumps({"n": 3}).encode())
            await until(lambda: reader.has(3))
            assert reader.numbers == [1, 2, 3]

    run(main())


def test_a_replica_that_never_read_a_log_serves_all_of_it_that_there_is() -> None:
    async def main() -> None:
        feed = Feed(history=Bounds(events=500))
        async with sites(2) as (a, b):
            one = await reading(a, feed)
            for last in range(100, 1_001, 100):
                feed.put(100)
                await until(lambda last=last: one.has(last))
            other = Seen(await b.take(feed.enabled, since=0))
            assert other.look().numbers == list(range(501, 1_001))
            assert other.controls == []

    run(main())


def test_a_position_that_the_store_has_let_go_is_a_gap_on_a_replica_that_never_read_the_log() -> None:
    async def main() -> None:
        feed = Feed(history=Bounds(events=500))
        async with sites(2) as (a, b):
            one = await reading(a, feed)
            feed.put(1)
            await until(lambda: one.has(1))
            cursor = one.taking.cursor
            for last in range(101, 1_002, 100):
                feed.put(100)
                await until(lambda last=last: one.has(last))
            other = await reading(b, feed, cursor)
            assert other.look().numbers == list(range(502, 1_002))
            assert other.controls == [("stream.gap", "evicted")]

    run(main())


@pytest.mark.parametrize("phase", [0.0, 0.02, 0.04, 0.06, 0.08], ids=str)
def test_what_was_not_appended_before_another_had_the_lease_is_not_when_that_one_has_died(phase: float) -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(3) as (a, b, c):
            one = await reading(a, feed)
            feed.put(3)
            await until(lambda: one.has(3))
            a.store.cut()
            feed.put(2)  # taken by the run that is here, which cannot append them
            await until(lambda: feed.yielded == 5)
            other = await reading(b, feed, one.taking.cursor)
            await until(lambda: feed.runs == 2)
            feed.put(4)
            await until(lambda: feed.yielded >= 7)
            b.store.cut()
            await asyncio.sleep(1)
            last = other.look().numbers[-1]
            await asyncio.sleep(LEASE + phase)  # whether it claims or appends first
            a.store.mend()
            await asyncio.sleep(0.5)
            third = await reading(c, feed, other.taking.cursor)
            for _ in range(20):
                feed.put(1)
                await asyncio.sleep(2)
            await until(lambda: len(third.look().numbers) > 3)
            assert third.numbers == list(range(last + 1, last + 1 + len(third.numbers)))
            assert one.look().numbers == list(range(1, third.numbers[-1] + 1))
            assert one.controls == third.controls == []

    run(main())


def test_events_that_the_store_has_lost_are_a_named_gap_for_who_has_seen_them_and_for_nobody_else() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            one, other = await reading(a, feed), await reading(b, feed)
            feed.put(5)
            await until(lambda: one.has(5) and other.has(5))
            b.store.deafen()
            feed.put(5)
            await until(lambda: one.has(10))
            a.store.shelf.lose(3)
            feed.put(1)
            await until(lambda: one.taking.is_sent_away)
            back = await reading(a, feed, one.taking.cursor)
            b.store.hear()
            await until(lambda: feed.runs == 2)
            feed.put(5)
            await until(lambda: back.has(12) and other.has(12))
            assert (back.numbers, back.controls) == ([8, 9, 10, 11, 12], [("stream.gap", "restarted")])
            assert (other.numbers, other.controls) == (list(range(1, 13)), [])

    run(main())


def test_a_client_that_is_ahead_of_what_the_store_has_kept_goes_on_where_that_ends() -> None:
    async def main() -> None:
        feed = Feed()
        async with sites(2) as (a, b):
            one = await reading(a, feed)
            feed.put(10)
            await until(lambda: one.has(10))
            cursor = one.taking.cursor
            a.store.cut()
            a.store.shelf.lose(4)
            other = await reading(b, feed)
            await until(lambda: feed.runs == 2)
            feed.put(8)
            await until(lambda: len(other.look().numbers) >= 4)
            back = await reading(b, feed, cursor)
            assert back.look().controls == [("stream.gap", "restarted")]
            assert back.numbers[0] == 7, "the first after what has been kept"

    run(main())


def test_the_copy_of_a_private_run_that_the_store_has_lost_is_made_again_for_who_reads_it_elsewhere() -> None:
    async def main() -> None:
        feed = counting(400, pause=0.1)
        async with sites(2) as (a, b):
            one = Seen(await a.take(feed.enabled))
            await until(lambda: len(one.look().numbers) >= 10)
            cursor = one.taking.cursor
            one.taking.close()
            other = Seen(await b.take(feed.enabled, cursor=cursor))
            for count in (3, 1_000):
                had = len(other.look().numbers)
                await until(lambda had=had: len(other.look().numbers) >= had + 10)
                for site in (a, b):
                    site.store.cut()
                a.store.shelf.lose(count)
                for site in (a, b):
                    site.store.mend()
            await until(lambda: other.look().taking.is_ended)
            assert other.numbers == list(range(11, 401))
            assert other.controls == [("stream.end", "completed")]

    run(main())
