"""One event on its way to many: who gets what, in which order, and what others have of the loop meanwhile."""

from __future__ import annotations

import asyncio
import gc
import re
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import virtual_time
from eventmux import Event, source
from eventmux.channel import Channel, Clock
from eventmux.fanout import JOBS, TURN_SECONDS, Fanout
from eventmux.policy import Bounds
from eventmux.reader import View
from eventmux.selection import Selection
from eventmux.sse import encode
from eventmux.step import Piece
from eventmux.stream import KEPT_STEPS, MEMBERS, Stream
from eventmux.subscription import Subscription
from eventmux.web.formats import SSE, EventStreamFormat, format_of
from virtual_time import Turns, loop

COST = 0.000_005  # seconds of a write
FORM = format_of(SSE, qualify=False)


class Note(Event):
    n: int
    text: str = ""


class Other(Event):
    n: int


@source
async def notes() -> AsyncIterator[Note | Other]:
    yield Note(n=0)


class Client:
    """Takes what it is given, at a cost. `has_room`: whether there may come more at once. `fault` is raised instead."""

    def __init__(self, hub: Bench, *, at: int | None = None, limit: int | None = None) -> None:
        self.pieces: list[bytes] = []
        self.has_room = True
        self.fault: Exception | None = None
        self.is_ended = self.is_failed = False
        offset = hub.channel.history.last if at is None else at
        self.subscription = Subscription(hub.stream, (offset,), limit, hub.fanout)
        self.subscription.start(self)

    def write(self, piece: Piece, now: float) -> bool:
        loop().now += COST
        assert abs(now - loop().now) < 1
        if self.fault:
            raise self.fault
        self.pieces.append(piece.body)
        return self.has_room

    def end(self) -> None:
        self.is_ended = True

    def fail(self) -> None:
        self.is_failed = True

    @property
    def numbers(self) -> list[int]:
        return [int(found) for found in re.findall(rb'"n":(\d+)', b"".join(self.pieces))]

    @property
    def offsets(self) -> list[int]:
        return [int(found) for found in re.findall(rb"id: epoch\.(\d+)\n", b"".join(self.pieces))]


class Bench:
    """A log that a test writes, and the stream of its clients. `is_under_way` until everyone has what there is."""

    def __init__(self, selection: Selection | None = None, *, events: int = 1_000) -> None:
        self.fanout = Fanout()
        self.channel = Channel("notes", "epoch", bounds=Bounds(events), clock=Clock(), on_news=self.fanout.mark)
        self.is_empty = False
        self.stream = Stream([View(self.channel, "notes")], selection or Selection(FORM), self._on_empty)
        self._n = 0

    def _on_empty(self) -> None:
        self.is_empty = True

    def say(self, count: int = 1, text: str = "") -> None:
        for _ in range(count):
            self._n += 1
            self.channel.append(encode(notes, Note(n=self._n, text=text)))

    @property
    def is_under_way(self) -> bool:
        return self.fanout._is_called

    async def settle(self) -> None:
        while self.is_under_way:
            await asyncio.sleep(0)


def test_ten_thousand_members_leave_turns_to_others() -> None:
    async def main() -> None:
        bench = Bench()
        clients = [Client(bench) for _ in range(10_000)]
        await bench.settle()
        turns = Turns()
        bench.say()
        await bench.settle()
        turns.stop()
        assert all(client.numbers == [1] for client in clients)
        # A slice is done to its end, and the clock is looked at after some of them.
        assert turns.longest <= TURN_SECONDS + JOBS * MEMBERS * COST + COST
        assert turns.count >= 10_000 * COST / (TURN_SECONDS + JOBS * MEMBERS * COST)

    virtual_time.run(main())


def test_a_thousand_streams_of_one_member_leave_turns_to_others() -> None:
    async def main() -> None:
        bench = Bench()
        streams = []
        for _ in range(5_000):
            bench.stream = Stream([View(bench.channel, "notes")], Selection(FORM), lambda: None)
            streams.append(Client(bench))
        await bench.settle()
        turns = Turns()
        bench.say()
        await bench.settle()
        turns.stop()
        assert all(client.numbers == [1] for client in streams)
        assert turns.longest <= TURN_SECONDS + (JOBS + 1) * COST

    virtual_time.run(main())


def test_what_comes_while_many_are_served_comes_to_all_in_order() -> None:
    async def main() -> None:
        bench = Bench()
        clients = [Client(bench) for _ in range(3_000)]
        await bench.settle()
        for _ in range(50):
            bench.say()
            await asyncio.sleep(0)
        await bench.settle()
        assert all(client.numbers == list(range(1, 51)) for client in clients)

    virtual_time.run(main())


def test_what_is_said_while_the_last_one_is_served_is_given_too() -> None:
    async def main() -> None:
        bench = Bench()
        client = Client(bench)
        await bench.settle()
        write = client.write

        def says_more(piece: Piece, now: float) -> bool:
            if len(client.pieces) < 5:
                bench.say()
            return write(piece, now)

        client.write = says_more  # type: ignore[method-assign]
        bench.say()
        await bench.settle()
        assert client.numbers == [1, 2, 3, 4, 5, 6]

    virtual_time.run(main())


def test_a_hot_log_of_many_does_not_starve_another() -> None:
    async def main() -> None:
        hot = Bench()
        clients = [Client(hot) for _ in range(5_000)]
        quiet = Bench()
        quiet.fanout = hot.fanout
        quiet.channel._on_news = hot.fanout.mark
        client = Client(quiet)
        await hot.settle()
        hot.say()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        quiet.say()
        turns = Turns()
        while not client.pieces:
            hot.say()
            await asyncio.sleep(0)
        turns.stop()
        assert sum(len(one.pieces) for one in clients) < 2 * len(clients)  # it has not waited for all of the others
        assert turns.count < 6
        await hot.settle()
        assert all(one.numbers == clients[0].numbers for one in clients)

    virtual_time.run(main())


@pytest.mark.parametrize("limit", [None, 5])
def test_a_member_whose_outlet_raises_is_failed_alone(limit: int | None, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench()
        clients = [Client(bench, limit=limit) for _ in range(200)]
        await bench.settle()
        bad = clients[::50]
        for client in bad:
            client.fault = ZeroDivisionError("this client's")
        bench.say()
        await bench.settle()
        bench.say()
        await bench.settle()
        assert [client for client in clients if client.is_failed] == bad
        assert all(client.numbers == [1, 2] for client in clients if client not in bad)
        assert all(client.subscription.is_held for client in bad)

    virtual_time.run(main())
    assert len([record for record in caplog.records if "a stream was cut off" in record.message]) == 4


@pytest.mark.parametrize("count", [1, 100])
def test_bytes_that_cannot_be_made_fail_their_members_and_nobody_elses(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(EventStreamFormat):
        def body(self, *_: object, **__: object) -> bytes:
            raise ZeroDivisionError("this format's")

    async def main() -> None:
        broken = Bench(Selection(Broken(qualify=True)))
        well = Bench()
        well.fanout, well.channel._on_news = broken.fanout, broken.fanout.mark
        ill_clients = [Client(broken) for _ in range(count)]
        clients = [Client(well) for _ in range(count)]
        await well.settle()
        for _ in range(2):
            broken.say()
            well.say()
            await well.settle()
        assert all(client.is_failed for client in ill_clients)
        assert all(client.numbers == [1, 2] for client in clients)

    with asyncio.Runner(loop_factory=virtual_time.VirtualLoop) as runner:
        runner.run(asyncio.wait_for(main(), 60))
    assert len(caplog.records) == count


def test_who_stands_where_bytes_cannot_be_made_gets_nobody_elses_bytes() -> None:
    class Broken(EventStreamFormat):
        def body(self, entries: Any, **words: Any) -> bytes:
            if len(entries) > 1:
                raise ZeroDivisionError("not for those that lag")
            return super().body(entries, **words)

    async def main() -> None:
        bench = Bench(Selection(Broken(qualify=True)))
        clients = [Client(bench) for _ in range(9)]
        behind = clients[3:6]
        await bench.settle()
        for client in behind:
            client.subscription.is_held = True
        bench.say()
        await bench.settle()
        for client in behind:
            client.subscription.is_held = False
        bench.say()
        await bench.settle()
        assert all(client.is_failed and client.pieces == [] for client in behind)
        assert all(client.numbers == [1, 2] for client in clients if client not in behind)

    virtual_time.run(main())


def test_members_at_one_place_get_the_very_same_bytes() -> None:
    async def main() -> None:
        bench = Bench()
        clients = [Client(bench) for _ in range(500)]
        behind = [Client(bench) for _ in range(3)]
        for client in behind:
            client.subscription.is_held = True
        await bench.settle()
        for _ in range(3):
            bench.say()
            await bench.settle()
        for number in range(3):
            assert len({id(client.pieces[number]) for client in clients}) == 1
        for client in behind:
            client.subscription.resume()
        await bench.settle()
        assert {client.numbers == [1, 2, 3] for client in behind} == {True}
        assert len({id(client.pieces[0]) for client in behind}) == 1

    virtual_time.run(main())


def test_a_chunk_of_a_piece_is_made_once() -> None:
    piece = Piece(b"x" * 26)
    assert piece.chunk == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert piece.chunk is piece.chunk


def test_one_that_lags_catches_up_in_order_while_others_stay_live() -> None:
    async def main() -> None:
        bench = Bench()
        clients = [Client(bench) for _ in range(300)]
        slow = Client(bench)
        await bench.settle()
        slow.has_room = False
        bench.say(text="x" * 1_000)
        await bench.settle()
        assert slow.subscription.is_held
        for _ in range(100):
            bench.say(text="x" * 1_000)
            await bench.settle()
        assert slow.numbers == [1]
        slow.has_room = True
        slow.subscription.resume()
        await bench.settle()
        assert slow.numbers == list(range(1, 102))  # it needs no news for that
        slow.subscription.is_held = True
        bench.say(50, text="x" * 1_000)
        await bench.settle()
        slow.subscription.resume()
        while len(slow.numbers) < 200:
            if bench.channel.history.last < 200:
                bench.say(text="x" * 1_000)
            await asyncio.sleep(0)
        await bench.settle()
        assert slow.numbers == list(range(1, 201)) == slow.offsets
        assert len(slow.pieces) > 10  # it has not got all of it in one piece
        assert all(client.numbers == list(range(1, 201)) for client in clients)

    virtual_time.run(main())


def test_one_that_takes_each_piece_by_piece_gets_all_in_order_beside_one_that_takes_nothing() -> None:
    async def main() -> None:
        bench = Bench(events=10_000)
        clients = [Client(bench) for _ in range(5)]
        await bench.settle()
        clients[0].has_room = clients[1].has_room = False
        for _ in range(500):
            bench.say(3)
            await asyncio.sleep(0)
            if clients[0].subscription.is_held:
                clients[0].subscription.resume()
        while clients[0].offsets[-1] < 1_500 or bench.is_under_way:
            clients[0].subscription.resume()
            await asyncio.sleep(0)
        everything = list(range(1, 1_501))
        assert clients[1].numbers == everything[: len(clients[1].numbers)]
        assert len(clients[1].pieces) == 1
        for client in (clients[0], *clients[2:]):
            assert client.numbers == everything

    virtual_time.run(main())


@pytest.mark.parametrize("is_at_once", [False, True])
def test_members_with_a_limit_and_without_stand_side_by_side(*, is_at_once: bool) -> None:
    async def main() -> None:
        bench = Bench()
        limits = [None, 1, 2, 3, None, 7, 50]
        clients = [Client(bench, limit=limit) for limit in limits * 30]
        await bench.settle()
        for _ in range(1 if is_at_once else 20):
            bench.say(20 if is_at_once else 1)
            await bench.settle()
        for client, limit in zip(clients, limits * 30, strict=True):
            assert client.numbers == list(range(1, 21))[:limit]
            assert client.is_ended == (limit in {1, 2, 3, 7})
            assert (b'"reason":"limit"' in b"".join(client.pieces)) == client.is_ended
            assert client.subscription.is_over == client.is_ended

    virtual_time.run(main())


def test_a_limit_counts_only_the_events_that_are_asked_for() -> None:
    async def main() -> None:
        bench = Bench(Selection(FORM, events=frozenset({"other"})))
        clients = [Client(bench, limit=2) for _ in range(3)]
        await bench.settle()
        for n in range(5):
            bench.say(3)
            bench.channel.append(encode(notes, Other(n=n)))
            await bench.settle()
        for client in clients:
            assert client.numbers == [0, 1]
            assert client.is_ended

    virtual_time.run(main())


def test_the_steps_that_are_kept_are_bounded_and_let_go_with_their_members() -> None:
    async def main() -> None:
        bench = Bench()
        bench.say(500, text="x" * 10_000)
        clients = []
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for offset in range(400):
                clients.append(Client(bench, at=offset))
                clients[-1].has_room = False
                await bench.settle()
                clients[-1].pieces.clear()
                assert len(bench.stream._steps) <= KEPT_STEPS
            gc.collect()
            kept = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert kept < 400 * 1_500 + KEPT_STEPS * 2 * 12_000  # members and a few steps, and not 400 times 10 kB
        for client in clients[1:]:
            client.subscription.close()
        assert bench.stream._steps == {}
        assert not bench.is_empty
        clients[0].subscription.close()
        assert bench.is_empty
        assert bench.channel.streams == {}

    virtual_time.run(main())


def test_members_that_leave_while_many_are_served_get_nothing_more_and_cost_the_others_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        clients = [Client(bench) for _ in range(2_000)]
        await bench.settle()
        bench.say()
        while not any(client.pieces for client in clients):
            await asyncio.sleep(0)
        gone = [client for client in clients if not client.pieces][::3]
        assert gone
        for client in gone:
            client.subscription.close()
        newcomer = Client(bench)
        bench.say()
        await bench.settle()
        assert all(client.pieces == [] for client in gone)
        assert all(client.numbers == [1, 2] for client in clients if client not in gone)
        assert newcomer.numbers == [2]

    virtual_time.run(main())


def test_a_member_may_leave_or_end_in_the_midst_of_being_served() -> None:
    async def main() -> None:
        bench = Bench()
        clients = [Client(bench) for _ in range(100)]
        await bench.settle()

        def leaving(client: Client, write: Callable[[Piece, float], bool]) -> Callable[[Piece, float], bool]:
            def leaves(piece: Piece, now: float) -> bool:
                write(piece, now)
                client.subscription.close()
                return False

            return leaves

        for client in clients[::2]:
            client.write = leaving(client, client.write)  # type: ignore[method-assign]
        for _ in range(2):
            bench.say()
            await bench.settle()
        assert all(client.numbers == [1] for client in clients[::2])
        assert all(client.numbers == [1, 2] for client in clients[1::2])
        assert len(bench.stream) == 50

    virtual_time.run(main())


def test_the_end_of_a_log_comes_to_all_after_its_last_event() -> None:
    async def main() -> None:
        bench = Bench()
        clients = [Client(bench) for _ in range(200)]
        await bench.settle()
        bench.say(2)
        bench.channel.end("completed")
        await bench.settle()
        for client in clients:
            assert client.numbers == [1, 2]
            assert client.is_ended
            assert b"".join(client.pieces).endswith(b'data: {"source":"notes","reason":"completed"}\n\n')

    virtual_time.run(main())
