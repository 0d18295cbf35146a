"""What every store promises, as tests. A store of yours passes them: in a test module, subclass StoreContract with a
fixture `make`. They are for pytest with anyio's plugin, which comes with eventmux.

    from eventmux.testing.store import Make, StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def make(self) -> Make:
            return lambda: MyStore("where:it/is")
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ..policy import Bounds
from ..store.contract import Address, Append, Appended, Claim, Record, Standing, Store

PATIENCE = 10.0  # seconds that a test waits for what must come
LEASE = 30.0  # seconds: longer than a test
SHORT = 0.3
KEEP = 60.0
SECOND = 1_000_000_000

Make = Callable[[], Store]


def address(source: str = "quotes") -> Address:
    """Of a log that no other test has."""
    return Address(source, secrets.token_hex(8))


def record(body: bytes = b"1", event: str = "quote", *, is_json: bool = True, at: int | None = None) -> Record:
    return Record(0, "", time.time_ns() if at is None else at, event, is_json, body)


def numbered(first: int, last: int) -> list[Record]:
    return [record(b"%d" % number) for number in range(first, last + 1)]


def bodies(records: Sequence[Record]) -> list[bytes]:
    return [one.body for one in records if one.ended is None]


async def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"did not come: {what or condition}"
        await asyncio.sleep(0.005)
    return found


async def until(ask: Callable[[], Awaitable[Any]], what: str = "") -> Any:
    """What `ask` gives when that is true at last."""
    deadline = time.monotonic() + PATIENCE
    while not (found := await ask()):
        assert time.monotonic() < deadline, f"did not come: {what}"
        await asyncio.sleep(0.02)
    return found


async def claim(store: Store, log: Address, replica: str = "a", **words: Any) -> Standing | None:
    (standing,) = await store.claim([Claim(log, replica, **{"lease": LEASE, "keep": KEEP, **words})])
    return standing


async def begin(store: Store, log: Address, replica: str = "a", **words: Any) -> Standing:
    """As the one that writes it."""
    standing = await claim(store, log, replica, **{"epoch": "E1", "writes": True, "opens": "none", **words})
    assert standing
    return standing


async def append(
    store: Store, log: Address, term: int | None, after: int, records: Sequence[Record], **words: Any
) -> Appended:
    assert term is not None
    words = {"bounds": Bounds(), "keep": KEEP, **words}
    (done,) = await store.append([Append(log, term, after, records, **words)])
    return done


class StoreContract:
    """All stores that `make` makes see the same logs. They are closed after each test; the logs may stay."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError("a function that makes a store; all of them see the same logs")

    @pytest.fixture
    async def store(self, make: Make) -> AsyncIterator[Store]:
        store = make()
        await store.open(lambda: None)
        yield store
        await store.close()

    @pytest.fixture
    async def other(self, make: Make) -> AsyncIterator[Store]:
        """Of another replica."""
        store = make()
        await store.open(lambda: None)
        yield store
        await store.close()

    # Who may write

    async def test_a_log_begins_where_a_claim_says_so_and_once(self, store: Store, other: Store) -> None:
        log = address()
        assert await claim(store, log) is None
        assert await claim(store, log, writes=True, reads=True) is None
        first = await claim(store, log, epoch="E1", label="symbol=X", opens="none")
        assert first == Standing("E1", (("E1", 0),), 0, None, "symbol=X", None, "", is_owned=False, readers=())
        assert await claim(other, log, "b", epoch="E2", label="other", opens="none") == first
        assert await claim(other, log, "b", epoch="E2", label="other", opens="over") == first

    async def test_one_replica_writes_and_the_others_are_told_which(self, store: Store, other: Store) -> None:
        log = address()
        first = await begin(store, log, "a")
        assert first.term is not None
        assert (first.owner, first.is_owned) == ("a", True)
        second = await begin(other, log, "b", epoch="E2")
        assert (second.term, second.owner, second.is_owned, second.epoch) == (None, "a", True, "E1")
        again = await begin(store, log, "a")
        assert again.term == first.term

    async def test_who_only_looks_does_not_become_the_writer(self, store: Store) -> None:
        log = address()
        await claim(store, log, "a", opens="none", epoch="E1", reads=True)
        seen = await claim(store, log, "a")
        assert seen
        assert (seen.term, seen.owner, seen.is_owned) == (None, "", False)

    async def test_a_writer_that_does_not_claim_again_is_followed_by_another_and_fenced(
        self, store: Store, other: Store
    ) -> None:
        log = address()
        first = await begin(store, log, "a", lease=SHORT)
        assert await append(store, log, first.term, 0, numbered(1, 2)) == Appended(2)

        async def takes_over() -> Standing | None:
            standing = await begin(other, log, "b")
            return standing if standing.term else None

        second = await until(takes_over, "the other's turn")
        assert second.term > first.term
        assert (second.last, second.epoch, second.lineage) == (2, "E1", (("E1", 0),))
        assert await append(store, log, first.term, 2, numbered(3, 3)) == Appended(2, "fenced")
        assert await append(other, log, second.term, 2, numbered(3, 3)) == Appended(3)
        assert bodies(await store.read(log, 0, 10)) == [b"1", b"2", b"3"]

    async def test_a_writer_that_claims_again_goes_on(self, store: Store, other: Store) -> None:
        log = address()
        first = await begin(store, log, "a", lease=SHORT)
        deadline = time.monotonic() + 2 * SHORT
        while time.monotonic() < deadline:
            assert (await begin(store, log, "a", lease=SHORT)).term == first.term
            assert (await begin(other, log, "b", lease=SHORT)).term is None
            await asyncio.sleep(SHORT / 10)

    async def test_a_log_without_a_lease_is_owned_while_its_owner_lives(self, store: Store, other: Store) -> None:
        log = address()
        await store.live("a", LEASE)
        first = await begin(store, log, "a", lease=0.0)
        assert first.term is not None
        assert (await begin(other, log, "b", lease=0.0)).term is None
        await store.live("a", SHORT)

        async def takes_over() -> Standing | None:
            await other.live("b", LEASE)
            standing = await begin(other, log, "b", lease=0.0)
            return standing if standing.term else None

        second = await until(takes_over, "the owner's death")
        assert await append(store, log, first.term, 0, numbered(1, 1)) == Appended(0, "fenced")
        assert await append(other, log, second.term, 0, numbered(1, 1)) == Appended(1)

    async def test_who_releases_a_log_is_followed_by_another_at_once(self, store: Store, other: Store) -> None:
        log = address()
        await begin(store, log, "a", reads=True)
        await claim(other, log, "b", reads=True)
        assert list(await store.release(log, "a")) == ["b"]
        standing = await begin(other, log, "b")
        assert standing.term is not None
        assert standing.readers == ()
        assert list(await other.release(log, "b")) == []
        assert list(await other.release(address(), "b")) == []

    async def test_other_readers_are_named_while_they_claim(self, store: Store, other: Store) -> None:
        log = address()
        await begin(store, log, "a", reads=True)
        assert (await begin(store, log, "a", reads=True)).readers == ()
        seen = await claim(other, log, "b", reads=True, lease=SHORT)
        assert seen
        assert seen.readers == ("a",)
        assert (await begin(store, log, "a", reads=True)).readers == ("b",)

        async def is_gone() -> bool:
            return (await begin(store, log, "a", reads=True)).readers == ()

        await until(is_gone, "the end of the other's interest")

    async def test_of_many_who_claim_at_once_one_may_write(self, store: Store, other: Store) -> None:
        log = address()
        standings = await asyncio.gather(
            *(begin((store, other)[i % 2], log, f"r{i}", epoch=f"E{i}", lease=LEASE) for i in range(20))
        )
        writers = {standing.owner for standing in standings if standing.term}
        assert len([standing for standing in standings if standing.term]) == 1
        assert len({standing.epoch for standing in standings}) == 1
        assert {standing.owner for standing in standings} == writers

    async def test_who_has_released_a_log_writes_no_more_and_takes_it_from_nobody(
        self, store: Store, other: Store
    ) -> None:
        log = address()
        first = await begin(store, log, "a")
        assert await append(store, log, first.term, 0, numbered(1, 1)) == Appended(1)
        await other.release(log, "b")
        assert await append(store, log, first.term, 1, numbered(2, 2)) == Appended(2)
        await store.release(log, "a")
        assert await append(store, log, first.term, 2, numbered(3, 3)) == Appended(2, "fenced")
        second = await begin(other, log, "b")
        await store.release(log, "a")
        assert await append(other, log, second.term, 2, numbered(3, 3)) == Appended(3)

    # What is written

    async def test_an_event_is_read_as_it_was_written(self, store: Store, other: Store) -> None:
        log, at = address(), 1_700_000_000_123_456_789
        term = (await begin(store, log)).term
        written = [
            record(b'{"price":1}', "quote", at=at),
            record("Grüße\r\n\0".encode(), "last trade.v2", is_json=False, at=at + 1),
            record(b"", "é", at=at + 2),
            record(bytes(range(256)) * 400, "big", at=at + 3),
        ]
        assert await append(store, log, term, 0, written) == Appended(4)
        expected = [one._replace(offset=i, epoch="E1") for i, one in enumerate(written, 1)]
        assert list(await other.read(log, 0, 10)) == expected
        assert list(await other.read(log, 1, 2)) == expected[1:3]
        assert list(await other.read(log, 4, 2)) == []
        assert list(await other.read(address(), 0, 2)) == []

    async def test_an_append_that_does_not_follow_is_refused_so_that_a_repeated_one_is_not_doubled(
        self, store: Store
    ) -> None:
        log = address()
        term = (await begin(store, log)).term
        assert await append(store, log, term, 0, numbered(1, 3)) == Appended(3)
        assert await append(store, log, term, 0, numbered(1, 3)) == Appended(3, "offset")
        assert await append(store, log, term, 4, numbered(5, 5)) == Appended(3, "offset")
        assert await append(store, log, term, 3, numbered(4, 4)) == Appended(4)
        assert bodies(await store.read(log, 0, 10)) == [b"1", b"2", b"3", b"4"]

    async def test_who_takes_a_log_to_have_another_epoch_than_it_has_appends_nothing(self, store: Store) -> None:
        log = address()
        standing = await begin(store, log)
        term, epoch = standing.term, standing.epoch
        assert await append(store, log, term, 0, numbered(1, 3), epoch="other") == Appended(0, "epoch")
        assert await append(store, log, term, 0, numbered(1, 3), epoch=epoch) == Appended(3)

    async def test_what_was_let_go_before_it_was_written_leaves_a_hole(self, store: Store) -> None:
        log = address()
        term = (await begin(store, log)).term
        assert await append(store, log, term, 0, numbered(1, 2)) == Appended(2)
        assert await append(store, log, term, 1, numbered(2, 2), skips=True) == Appended(2, "offset")
        assert await append(store, log, term, 5, numbered(6, 7), skips=True) == Appended(7)
        assert [one.offset for one in await store.read(log, 0, 10)] == [1, 2, 6, 7]

    async def test_a_log_that_is_not_there_takes_nothing(self, store: Store) -> None:
        assert await append(store, address(), 1, 0, numbered(1, 1)) == Appended(0, "epoch")

    async def test_the_end_comes_after_the_last_event_and_nothing_after_it(self, store: Store, other: Store) -> None:
        log = address()
        term = (await begin(store, log)).term
        got: list[Record] = []
        other.follow(log, 0, got.extend)
        assert await append(store, log, term, 0, numbered(1, 2), ended="complete") == Appended(2)
        await eventually(lambda: got and got[-1].ended)
        assert got == list(await store.read(log, 0, 10))
        assert [(one.offset, one.ended) for one in got] == [(1, None), (2, None), (2, "complete")]
        assert [one.ended for one in await store.read(log, 2, 10)] == ["complete"]
        assert (await append(store, log, term, 2, numbered(3, 3))).refused
        seen = await begin(other, log, "b")
        assert (seen.ended, seen.last, seen.term) == ("complete", 2, None)
        late: list[Record] = []
        store.follow(log, 2, late.extend)
        await eventually(lambda: [one.ended for one in late] == ["complete"])

    async def test_a_log_without_an_event_can_be_over(self, store: Store, other: Store) -> None:
        log = address()
        term = (await begin(store, log)).term
        got: list[Record] = []
        other.follow(log, 0, got.extend)
        assert await append(store, log, term, 0, [], ended="failed") == Appended(0)
        await eventually(lambda: [(one.offset, one.ended) for one in got] == [(0, "failed")])
        assert [(one.offset, one.ended) for one in await other.read(log, 0, 10)] == [(0, "failed")]

    async def test_a_log_that_is_over_begins_again_where_a_claim_says_so(self, store: Store) -> None:
        log = address()
        term = (await begin(store, log)).term
        await append(store, log, term, 0, numbered(1, 2), ended="complete")
        assert (await begin(store, log, epoch="E2")).epoch == "E1"
        again = await begin(store, log, epoch="E2", opens="over")
        assert (again.epoch, again.lineage, again.last, again.ended) == ("E2", (("E2", 0),), 0, None)
        assert await append(store, log, again.term, 0, numbered(1, 1)) == Appended(1)
        assert [(one.offset, one.epoch) for one in await store.read(log, 0, 10)] == [(1, "E2")]

    # How much is kept

    async def test_only_so_many_events_are_kept(self, store: Store) -> None:
        log = address()
        term = (await begin(store, log)).term
        await append(store, log, term, 0, numbered(1, 10), bounds=Bounds(events=3))
        assert bodies(await store.read(log, 0, 10)) == [b"8", b"9", b"10"]
        await append(store, log, term, 10, numbered(11, 12), bounds=Bounds(events=3))
        assert [one.offset for one in await store.read(log, 0, 10)] == [10, 11, 12]
        await append(store, log, term, 12, [], bounds=Bounds(events=3), ended="complete")
        assert [one.offset for one in await store.read(log, 0, 10)] == [10, 11, 12, 12]

    async def test_only_so_many_bytes_are_kept_and_the_newest_event_always(self, store: Store) -> None:
        log, bounds, size = address(), Bounds(bytes=40_000), 10_000
        term = (await begin(store, log)).term
        for after in range(20):
            await append(store, log, term, after, [record(b"x" * size)], bounds=bounds)
        kept = [one.offset for one in await store.read(log, 0, 100)]
        assert kept == list(range(21 - len(kept), 21))
        assert 3 <= len(kept) <= 4
        await append(store, log, term, 20, [record(b"x" * 100_000)], bounds=bounds)
        assert [one.offset for one in await store.read(log, 0, 100)] == [21]
        await append(store, log, term, 21, [record(b"x" * size) for _ in range(100)], bounds=bounds)
        kept = [one.offset for one in await store.read(log, 0, 100)]
        assert kept == list(range(122 - len(kept), 122))
        assert 3 <= len(kept) <= 4

    async def test_what_is_too_old_is_let_go_but_for_the_newest_event(self, store: Store) -> None:
        log, bounds, now = address(), Bounds(age=60.0), time.time_ns()
        term = (await begin(store, log)).term
        old = [record(b"%d" % i, at=now - (100 - i) * SECOND) for i in range(5)]
        await append(store, log, term, 0, old, bounds=bounds)
        assert bodies(await store.read(log, 0, 10)) == [b"4"]
        young = [record(b"new", at=now - 10 * SECOND), record(b"newest", at=now)]
        await append(store, log, term, 5, young, bounds=bounds)
        assert bodies(await store.read(log, 0, 10)) == [b"new", b"newest"]

    async def test_a_log_that_nobody_claims_goes_after_a_time(self, store: Store) -> None:
        log = address()
        first = await begin(store, log, lease=SHORT / 4, keep=SHORT)
        assert await append(store, log, first.term, 0, numbered(1, 2), keep=SHORT) == Appended(2)

        async def is_gone() -> bool:
            return not await store.read(log, 0, 1)

        await until(is_gone, "the end of its time")
        assert await claim(store, log) is None
        again = await begin(store, log, epoch="E2")
        assert (again.epoch, again.last) == ("E2", 0)
        assert list(await store.read(log, 0, 10)) == []

    async def test_a_log_stays_for_the_longest_time_that_anybody_has_asked_for(self, store: Store) -> None:
        log, goes = address(), address()
        first = await begin(store, log, keep=KEEP, lease=SHORT / 4)
        await begin(store, goes, keep=SHORT, lease=SHORT / 4)
        assert await append(store, log, first.term, 0, numbered(1, 1), keep=SHORT) == Appended(1)
        await claim(store, log, keep=SHORT, lease=SHORT / 4)

        async def is_gone() -> bool:
            return await claim(store, goes, keep=0.0, lease=0.0) is None

        await until(is_gone, "the end of the other's time")
        assert await claim(store, log)

    async def test_a_log_that_is_dropped_is_gone(self, store: Store) -> None:
        log, stays = address(), address()
        for one in (log, stays):
            await append(store, one, (await begin(store, one)).term, 0, numbered(1, 2))
        await store.drop([log, address()])
        assert await claim(store, log) is None
        assert list(await store.read(log, 0, 10)) == []
        assert len(await store.read(stays, 0, 10)) == 2
        await store.drop([])

    # Who follows

    async def test_who_follows_gets_everything_after_a_position_in_order_and_once(
        self, store: Store, other: Store
    ) -> None:
        log = address()
        term = (await begin(store, log)).term
        await append(store, log, term, 0, numbered(1, 5))
        all_of_it: list[Record] = []
        rest: list[Record] = []
        other.follow(log, 0, all_of_it.extend)
        store.follow(log, 3, rest.extend)
        assert not all_of_it, "before follow has returned"
        for after in range(5, 500, 5):
            await append(store, log, term, after, numbered(after + 1, after + 5))
        await eventually(lambda: len(all_of_it) >= 500 and len(rest) >= 497)
        assert all_of_it == list(await store.read(log, 0, 1000))
        assert [one.offset for one in all_of_it] == list(range(1, 501))
        assert rest == all_of_it[3:]

    async def test_a_log_can_be_followed_before_it_begins(self, store: Store, other: Store) -> None:
        log = address()
        got: list[Record] = []
        other.follow(log, 0, got.extend)
        term = (await begin(store, log)).term
        await append(store, log, term, 0, numbered(1, 1))
        await eventually(lambda: bodies(got) == [b"1"])

    async def test_many_logs_are_followed_at_once_and_each_is_given_its_own(self, store: Store, other: Store) -> None:
        logs = [address(f"source{number % 3}") for number in range(50)]
        got: dict[Address, list[Record]] = {log: [] for log in logs}
        for log in logs:
            other.follow(log, 0, got[log].extend)
        claims = [Claim(log, "a", LEASE, KEEP, "E1", writes=True, opens="none") for log in logs]
        standings = await store.claim(claims)
        for _ in range(3):
            wanted = [
                Append(log, standing.term or 0, after, numbered(after + 1, after + 2), Bounds(), KEEP)
                for log, standing in zip(logs, standings, strict=True)
                if standing and (after := standing.last) is not None
            ]
            assert {one.refused for one in await store.append(wanted)} == {None}
            standings = await store.claim(claims)
        await eventually(lambda: all(len(found) == 6 for found in got.values()))
        assert all(bodies(found) == [b"%d" % i for i in range(1, 7)] for found in got.values())

    async def test_nothing_comes_to_who_follows_no_more(self, store: Store) -> None:
        log, marker = address(), address()
        terms = [(await begin(store, one)).term for one in (log, marker)]
        got: list[Record] = []
        seen: list[Record] = []

        def once(records: Sequence[Record]) -> None:
            got.extend(records)
            store.unfollow(log)

        store.follow(log, 0, once)
        store.follow(marker, 0, seen.extend)
        await append(store, log, terms[0], 0, numbered(1, 1))
        await eventually(lambda: got)
        await append(store, log, terms[0], 1, numbered(2, 9))
        await append(store, marker, terms[1], 0, numbered(1, 1))
        await eventually(lambda: seen)
        assert bodies(got) == [b"1"]
        store.unfollow(log)
        again: list[Record] = []
        store.follow(log, 1, again.extend)
        await eventually(lambda: len(again) == 8)

    async def test_who_follows_anew_is_given_what_comes_after_the_new_position(self, store: Store) -> None:
        log = address()
        term = (await begin(store, log)).term
        first: list[Record] = []
        second: list[Record] = []
        store.follow(log, 0, first.extend)
        await append(store, log, term, 0, numbered(1, 5))
        await eventually(lambda: len(first) == 5)
        store.follow(log, 2, second.extend)
        await eventually(lambda: len(second) == 3)
        await append(store, log, term, 5, numbered(6, 6))
        await eventually(lambda: len(second) == 4)
        assert len(first) == 5

    async def test_nothing_comes_from_a_store_that_is_closed(self, make: Make, store: Store) -> None:
        closed, log = make(), address()
        await closed.open(lambda: None)
        got: list[Record] = []
        seen: list[Record] = []
        closed.follow(log, 0, got.extend)
        term = (await begin(store, log)).term
        await append(store, log, term, 0, numbered(1, 1))
        await eventually(lambda: got)
        await closed.close()
        store.follow(log, 0, seen.extend)
        await append(store, log, term, 1, numbered(2, 2))
        await eventually(lambda: len(seen) == 2)
        assert len(got) == 1

    # Batches

    async def test_a_batch_is_answered_in_its_order_and_a_refused_one_spoils_no_other(self, store: Store) -> None:
        logs = [address(f"s{number}") for number in range(6)]
        claims = [
            Claim(log, "a", LEASE, KEEP, f"E{i}", writes=True, opens="none" if i % 2 else "never")
            for i, log in enumerate(logs)
        ]
        standings = await store.claim(claims)
        assert [standing and standing.epoch for standing in standings] == [None, "E1", None, "E3", None, "E5"]
        terms = [standing.term if standing else 7 for standing in standings]
        wanted = [Append(log, terms[i] or 0, 0, numbered(1, i), Bounds(), KEEP) for i, log in enumerate(logs)]
        wanted[3] = replace(wanted[3], term=wanted[3].term + 1)
        wanted[5] = replace(wanted[5], after=2)
        done = await store.append(wanted)
        assert [one.refused for one in done] == ["epoch", None, "epoch", "fenced", "epoch", "offset"]
        assert done[1].last == 1
        assert list(await store.claim([])) == []
        assert list(await store.append([])) == []

    # Boxes and values

    async def test_everybody_posts_to_a_box_until_it_is_full_and_one_empties_it(
        self, store: Store, other: Store
    ) -> None:
        box = address("box")
        got: list[Record] = []
        other.follow(box, 0, got.extend)
        assert await store.post(box, b"1", 2, KEEP)
        assert await other.post(box, b"2", 2, KEEP)
        assert not await store.post(box, b"3", 2, KEEP)
        await eventually(lambda: bodies(got) == [b"1", b"2"])
        await other.trim(box, got[0].offset)
        assert bodies(await store.read(box, 0, 10)) == [b"2"]
        assert await store.post(box, b"4", 2, KEEP)
        await other.trim(box, got[1].offset)
        await eventually(lambda: bodies(got) == [b"1", b"2", b"4"])
        await other.trim(box, got[2].offset)
        assert await store.post(box, b"5", 1, KEEP)
        await eventually(lambda: bodies(got) == [b"1", b"2", b"4", b"5"])
        offsets = [one.offset for one in got]
        assert offsets == sorted(set(offsets))
        await other.trim(address("box"), 1)

    async def test_a_box_goes_after_a_time_and_who_follows_it_gets_what_comes_later(
        self, store: Store, other: Store
    ) -> None:
        box = address("box")
        got: list[Record] = []
        other.follow(box, 0, got.extend)

        async def has_come() -> bool:
            await store.post(box, b"early", 100, SHORT)
            return bool(got)

        await until(has_come, "what was posted")

        async def is_gone() -> bool:
            return not await store.read(box, 0, 1)

        await until(is_gone, "the end of its time")
        assert await store.post(box, b"late", 10, KEEP)
        await eventually(lambda: bodies(got)[-1] == b"late")
        offsets = [one.offset for one in got]
        assert offsets == sorted(set(offsets))

    async def test_of_many_who_put_a_value_at_once_one_does(self, store: Store, other: Store) -> None:
        key = f"{address('key')}"
        put = await asyncio.gather(*((store, other)[i % 2].swap(key, None, b"%d" % i, LEASE) for i in range(20)))
        assert put.count(True) == 1
        assert await store.get(key) == b"%d" % put.index(True)

    async def test_a_value_is_there_until_its_time_is_over(self, store: Store, other: Store) -> None:
        key = f"{address('key')}"
        assert await store.get(key) is None
        assert await store.swap(key, None, b"\0one", LEASE)
        assert await other.get(key) == b"\0one"
        assert not await other.swap(key, None, b"two", LEASE)
        assert not await other.swap(key, b"zero", b"two", LEASE)
        assert await other.swap(key, b"\0one", b"", LEASE)
        assert await store.get(key) == b""
        assert await store.swap(key, b"", b"three", SHORT)

        async def is_gone() -> bool:
            return await other.get(key) is None

        await until(is_gone, "the end of its time")
        assert await store.swap(key, None, b"four", LEASE)
        assert await store.swap(key, b"four", None, LEASE)
        assert await store.swap(key, None, None, LEASE)
        assert await store.get(key) is None

    async def test_a_store_that_is_well_has_no_fault(self, store: Store) -> None:
        assert store.fault is None
