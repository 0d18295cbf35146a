"""Histories are bounded by events, bytes and age, one by one and all together, and accounted exactly."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmux import Event, source
from eventmux.catalog import EnabledSource
from eventmux.channel import Channel, Clock
from eventmux.history import FRAME_OVERHEAD, History, Ledger
from eventmux.hub import Hub, Wanted
from eventmux.policy import Bounds, Limits, Policy
from eventmux.sse import Frame
from taking import Taking

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000


def frame(size: int = 100, at: int = 0) -> Frame:
    made = Frame("note", b"x" * size, is_json=True)
    made.at = at
    return made


def counted(history: History) -> int:
    return sum(len(found.body) + FRAME_OVERHEAD for found in history.after(0, history.last))


@given(
    st.integers(1, 20),
    st.integers(500, 5_000),
    st.none() | st.floats(0.5, 20),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 3)), max_size=120),
)
def test_what_is_kept_is_within_the_bounds_and_counted_to_the_byte(
    events: int, size: int, age: float | None, appended: list[tuple[int, int]]
) -> None:
    ledger = Ledger()
    history = History(Bounds(events, size, age), ledger)
    now, all_frames = 0, []
    for body, pause in appended:
        now += pause * SECOND + 1
        all_frames.append(frame(body, at=now))
        assert history.append(all_frames[-1]) == len(all_frames)
        kept = history.after(0, len(all_frames))
        assert kept == all_frames[len(all_frames) - len(kept) :]  # the newest, without a hole
        assert history.first == len(all_frames) - len(kept) + 1
        assert 1 <= len(kept) <= events
        assert history.bytes == ledger.bytes == counted(history)
        assert history.bytes <= size or len(kept) == 1
        if age is not None:
            assert all(found.at >= now - age * SECOND for found in kept)
        for offset in (0, history.first - 1, history.first, history.last - 1, history.last):
            assert history.after(offset, 3) == all_frames[max(offset, history.first - 1) :][:3]
            assert history.total - history.total_at(offset) == sum(
                len(found.body) + FRAME_OVERHEAD for found in all_frames[max(offset, history.first - 1) :]
            )
    history.clear()
    assert (history.bytes, ledger.bytes) == (0, 0)
    assert history.first == history.last + 1


def test_a_frame_costs_what_it_is_counted_with() -> None:
    history = History(Bounds(100_000, 1 << 30))
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    clock = Clock()
    for number in range(20_000):
        history.append(frame(80 + number % 40, at=clock.now()))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.85 <= used / history.bytes <= 1.15


def test_a_time_is_found_in_the_log() -> None:
    history = History(Bounds(events=5))
    for at in range(10, 100, 10):
        history.append(frame(at=at))
    assert [history.offset_before(at) for at in (0, 50, 51, 60, 61, 90, 91)] == [4, 4, 5, 5, 6, 8, 9]
    assert history.evicted_at == 40


def test_arrival_is_strictly_ordered_even_if_the_wall_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100, 90, 90, 200])
    monkeypatch.setattr("eventmux.channel.time.time_ns", lambda: next(times))
    clock = Clock()
    assert [clock.now() for _ in range(4)] == [100, 101, 102, 200]


class Note(Event):
    text: str


class Bench:
    """A hub with sources that append what they are told to."""

    def __init__(self, limits: Limits, policy: Policy) -> None:
        self.hub = Hub(limits)
        self.queues: dict[str, asyncio.Queue[str]] = {}
        self.policy = policy

    def want(self, name: str) -> Wanted:
        queue = self.queues.setdefault(name, asyncio.Queue())

        @source(name=name)
        async def told() -> AsyncIterator[Note]:
            while True:
                yield Note(text=await queue.get())

        enabled = EnabledSource(name, told, "test", policy=self.policy)
        return Wanted(enabled, enabled.validate({}))

    async def append(self, name: str, *texts: str) -> None:
        for text in texts:
            self.queues[name].put_nowait(text)
        for _ in range(len(texts) + 5):
            await asyncio.sleep(0)

    def open(self, want: Wanted, cursor: str | None = None, principal: str | None = None) -> Taking:
        return Taking(self.hub, [want], cursor, principal)


@pytest.fixture
async def shared(anyio_backend: str) -> AsyncIterator[Bench]:
    bench = Bench(Limits(history=12_000), Policy(shared=True, linger=0))
    yield bench
    await bench.hub.close()


async def test_all_logs_together_are_bounded_and_the_idlest_goes_first(shared: Bench) -> None:
    cursors = {}
    wants = {name: shared.want(name) for name in ("old", "middle", "live")}
    for name in ("old", "middle"):
        subscription = shared.open(wants[name])
        await shared.append(name, "x" * 3_000)
        assert subscription.events() == ["note"]
        cursors[name] = subscription.cursor
        subscription.close()
    live = shared.open(wants["live"])
    await shared.append("live", "x" * 3_000)
    assert shared.hub.history_bytes <= 12_000
    await shared.append("live", "x" * 3_000)  # now one must go
    assert shared.hub.history_bytes <= 12_000
    assert live.events() == ["note", "note"]
    middle = shared.open(wants["middle"], cursors["middle"])
    assert middle.events() == []  # its log is still there
    old = shared.open(wants["old"], cursors["old"])
    assert old.events() == ["stream.gap"]


async def test_one_log_alone_cannot_outgrow_the_bound_of_all(shared: Bench) -> None:
    want = shared.want("big")
    subscription = shared.open(want)
    for _ in range(20):
        await shared.append("big", "x" * 4_000)
        assert shared.hub.history_bytes <= 12_000
    assert "stream.gap" in subscription.events()


async def test_old_events_are_let_go_even_if_nothing_new_comes(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventmux.runs.SWEEP_SECONDS", 0.01)
    bench = Bench(Limits(), Policy(shared=True, linger=0, history=Bounds(age=0.03)))
    subscription = bench.open(bench.want("aging"))
    await bench.append("aging", "x")
    assert bench.hub.history_bytes > 0
    async with asyncio.timeout(5):
        while bench.hub.history_bytes:
            await asyncio.sleep(0.005)
    assert subscription.events() == ["stream.gap"]
    await bench.hub.close()


@pytest.fixture
async def private(anyio_backend: str) -> AsyncIterator[Bench]:
    bench = Bench(Limits(), Policy(linger=60))
    yield bench
    await bench.hub.close()


@pytest.mark.parametrize(("whose", "found"), [("alice", ["note"]), ("bob", ["stream.gap"]), (None, ["stream.gap"])])
async def test_a_private_run_is_its_principals_alone(private: Bench, whose: str | None, found: list[str]) -> None:
    want = private.want("mine")
    subscription = private.open(want, principal="alice")
    await private.append("mine", "one", "two")
    cursor = subscription.messages()[0].id
    subscription.close()
    assert private.open(want, cursor, principal=whose).events() == found


async def test_a_position_that_was_never_reached_is_a_gap(private: Bench) -> None:
    want = private.want("mine")
    subscription = private.open(want)
    await private.append("mine", "one")
    cursor = subscription.cursor.replace(".0", ".99")
    assert private.open(want, cursor).events() == ["stream.gap"]


async def test_after_closing_nothing_is_left(private: Bench) -> None:
    for _ in range(5):
        subscription = private.open(private.want("mine"))
        await private.append("mine", "one")
        subscription.close()
    assert private.hub.runs == 5
    await private.hub.close()
    assert (private.hub.runs, private.hub.subscriptions, private.hub.history_bytes) == (0, 0, 0)


def test_a_channel_by_itself_needs_no_hub() -> None:
    channel = Channel("alone", "AAAA", bounds=Bounds(), clock=Clock())
    assert (channel.history.first, channel.history.last, channel.ended) == (1, 0, None)
