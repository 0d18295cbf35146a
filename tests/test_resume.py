"""For any series of disconnects and reconnects: what a client has received of a source is what was appended, in order
and once, or a `stream.gap` names the hole.

The model drives a hub of its own, byte by byte and without a network, so that thousands of histories fit in a minute:
`EVENTMUX_EXAMPLES=2000 pytest tests/test_resume.py` draws so many.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from eventmux import Event, source
from eventmux.catalog import EnabledSource
from eventmux.cursor import Cursor, parse_cursor
from eventmux.hub import Hub, Wanted
from eventmux.policy import Bounds, Limits, Policy
from taking import FORM, Taking
from whatwg import Message, Parser

EXAMPLES = int(os.environ.get("EVENTMUX_EXAMPLES", "2000" if os.environ.get("CI") else "300"))

SHARED = ("news", "ticks", "brief")
PRIVATE = ("mine", "yours")
SELECTIONS = st.lists(st.sampled_from(SHARED + PRIVATE), min_size=1, max_size=4, unique=True)


class Item(Event):
    source: str
    run: int
    n: int


class World:
    """The sources, as a script: what is put into a feed is appended by the run that reads from it."""

    def __init__(self) -> None:
        self.runs = 0
        self.feeds: dict[str, dict[int, asyncio.Queue[None]]] = {name: {} for name in SHARED + PRIVATE}
        self.appended: dict[str, list[tuple[int, int]]] = {name: [] for name in SHARED + PRIVATE}

    def enabled(self, name: str, policy: Policy) -> EnabledSource:
        @source(name=name)
        async def scripted() -> AsyncIterator[Item]:
            self.runs += 1
            run, n, feed = self.runs, 0, asyncio.Queue[None]()
            self.feeds[name][run] = feed
            try:
                while True:
                    await feed.get()
                    self.appended[name].append((run, n))
                    yield Item(source=name, run=run, n=n)
                    n += 1
            finally:
                del self.feeds[name][run]

        return EnabledSource(name, scripted, "test", policy=policy)


@dataclass
class Client:
    """What an EventSource knows, and the checks of what it is told."""

    parser: Parser = field(default_factory=Parser)
    chosen: list[str] = field(default_factory=list)
    covered: list[str] = field(default_factory=list)  # the sources that its cursor speaks of
    taking: Taking | None = None
    unread: bytes = b""
    next_shared: dict[str, int] = field(default_factory=dict)  # source -> index of the next event expected
    next_private: dict[str, tuple[int, int] | None] = field(default_factory=dict)  # source -> run and number expected
    loose: set[str] = field(default_factory=set)  # sources that may begin anywhere after what was received
    gaps: dict[str, Any] = field(default_factory=dict)  # source -> what the last gap said, until the next event

    def told(self, message: Message, world: World) -> None:
        data = json.loads(message.data)
        name = data["source"]
        if message.event == "stream.gap":
            before = self.gaps.get(name, data | {"missed": 0})["missed"]  # one gap may follow another
            missed = None if before is None or data["missed"] is None else before + data["missed"]
            self.gaps[name] = data | {"missed": missed}
            return
        assert message.event == "item"
        gap = self.gaps.pop(name, None)
        if name in SHARED:
            self._told_shared(name, (data["run"], data["n"]), gap, world)
        else:
            self._told_private(name, (data["run"], data["n"]), gap)

    def _told_shared(self, name: str, event: tuple[int, int], gap: Any, world: World) -> None:
        log = world.appended[name]
        expected = self.next_shared[name]
        if name in self.loose:
            # Where the log that it means is gone, its position may be one in an older log of this source.
            found = log.index(event, 0 if gap and gap["reason"] == "restarted" else expected)
        elif gap is None:
            assert log[expected] == event, f"{name}: expected {log[expected]} without a gap, got {event}"
            found = expected
        else:
            found = log.index(event, expected)  # never again what it has had
            if gap["missed"] is not None:
                assert found - expected == gap["missed"], f"{name}: {gap} and {found - expected} are missing"
        self.next_shared[name] = found + 1
        self.loose.discard(name)

    def _told_private(self, name: str, event: tuple[int, int], gap: Any) -> None:
        expected = self.next_private.get(name)
        if expected is None or name in self.loose:
            assert event[1] == 0 or gap, f"{name}: a new run begins with {event}"
            self.loose.discard(name)
        elif gap is None:
            assert event == expected, f"{name}: expected {expected} without a gap, got {event}"
        elif gap["missed"] is not None:
            assert event == (expected[0], expected[1] + gap["missed"])
        else:
            assert event[1] == 0 or event[0] == expected[0]
            assert event[0] > expected[0], f"{name}: {gap}, and then {event} again"
        self.next_private[name] = (event[0], event[1] + 1)


class Streams(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.clients = [Client() for _ in range(2)]
        small = Bounds(events=6, bytes=100_000)
        self.enabled = {
            "news": self.world.enabled("news", Policy(shared=True, linger=3600)),
            "ticks": self.world.enabled(
                "ticks", Policy(shared=True, linger=3600, history=small, overflow="disconnect")
            ),
            "brief": self.world.enabled("brief", Policy(shared=True, linger=0, history=small)),
            "mine": self.world.enabled("mine", Policy(linger=3600)),
            "yours": self.world.enabled("yours", Policy(linger=3600, history=small)),
        }
        self.hub = self.new_hub()

    def new_hub(self) -> Hub:
        return Hub(Limits(history=20_000, detached=2))

    def run(self, steps: int = 6) -> None:
        async def turns() -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def teardown(self) -> None:
        self.loop.run_until_complete(self.hub.close())
        self.loop.close()

    @rule(name=st.sampled_from(SHARED + PRIVATE), count=st.integers(1, 9))
    def append(self, name: str, count: int) -> None:
        for feed in self.world.feeds[name].values():
            for _ in range(count):
                feed.put_nowait(None)
        self.run(3 + 2 * count)

    @rule(index=st.integers(0, 1), chosen=SELECTIONS)
    def open(self, index: int, chosen: list[str]) -> None:
        """Open, or come back, with the same selection or another."""
        client = self.clients[index]
        self.hang_up(client)
        client.chosen = chosen
        self.connect(client)

    @rule(index=st.integers(0, 1))
    def come_back(self, index: int) -> None:
        client = self.clients[index]
        if client.chosen:
            self.hang_up(client)
            self.connect(client)

    @rule(index=st.integers(0, 1), share=st.floats(0, 1))
    def read(self, index: int, share: float) -> None:
        client = self.clients[index]
        if client.taking:
            self.fetch(client)
            self.receive(client, int(len(client.unread) * share))

    @rule(index=st.integers(0, 1), share=st.floats(0, 1), back=st.booleans())
    def cut(self, index: int, share: float, back: bool) -> None:
        """The connection breaks after any byte: what was on its way is gone."""
        client = self.clients[index]
        if client.taking:
            self.fetch(client)
            self.receive(client, int(len(client.unread) * share))
            self.hang_up(client)
            if back:
                self.connect(client)

    @rule(index=st.integers(0, 1), blocks=st.integers(0, 3), back=st.booleans())
    def cut_between_blocks(self, index: int, blocks: int, back: bool) -> None:
        """The same where it hurts: after the first cursor and before the gap, between two gaps, before the end."""
        client = self.clients[index]
        if client.taking:
            self.fetch(client)
            parts = client.unread.split(b"\n\n")[:blocks]
            self.receive(client, len(b"\n\n".join(parts)) + 2 if parts else 0)
            self.hang_up(client)
            if back:
                self.connect(client)

    @precondition(lambda self: self.world.runs)
    @rule()
    def restart_the_process(self) -> None:
        for client in self.clients:
            self.hang_up(client)
        self.loop.run_until_complete(self.hub.close())
        self.hub = self.new_hub()

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.hub.history_bytes <= 20_000

    def connect(self, client: Client) -> None:
        last = client.parser.last_event_id
        cursor = parse_cursor(last) if last else None
        wanted = [Wanted(self.enabled[name], self.enabled[name].validate({})) for name in client.chosen]

        async def subscribe() -> Taking:
            return Taking(self.hub, wanted, last or None)

        client.taking = self.loop.run_until_complete(subscribe())
        client.parser = Parser(last_event_id=last)
        client.unread = client.taking.opening
        self.expect_what_is_new(client, cursor)
        self.run(3)

    def expect_what_is_new(self, client: Client, cursor: Cursor | None) -> None:
        """A source that the cursor does not know begins with what comes next. A cursor without a name may be taken for
        a gap in any source, if the log that it means is gone.
        """
        known = [] if cursor is None else client.covered if "" in cursor.positions else list(cursor.positions)
        for name in set(client.chosen) - set(known):
            client.gaps.pop(name, None)
            if cursor and "" in cursor.positions:
                client.loose.add(name)
                client.next_shared.setdefault(name, 0)
            else:
                client.loose.discard(name)
                client.next_shared[name] = len(self.world.appended[name])
                client.next_private[name] = None
        client.covered = client.chosen if client.parser.last_event_id == "" else client.covered

    def fetch(self, client: Client) -> None:
        async def take(taking: Taking) -> bytes:
            subscription = taking.subscription
            text = taking.take() + FORM.heartbeat(subscription.cursor if subscription.has_moved else b"")
            subscription.has_moved = False
            return text

        assert client.taking
        client.unread += self.loop.run_until_complete(take(client.taking))

    def receive(self, client: Client, count: int) -> None:
        chunk, client.unread = client.unread[:count], client.unread[count:]
        before = client.parser.last_event_id
        for message in client.parser.feed(chunk):
            client.told(message, self.world)
        if client.parser.last_event_id != before:
            client.covered = client.chosen

    def hang_up(self, client: Client) -> None:
        async def close(taking: Taking) -> None:
            taking.close()

        if client.taking:
            self.loop.run_until_complete(close(client.taking))
            client.taking, client.unread = None, b""
            self.run(3)

    @rule()
    def all_catch_up(self) -> None:
        """Whoever stays connected ends with everything."""
        for client in self.clients:
            if client.taking:
                for _ in range(3):
                    self.fetch(client)
                    self.receive(client, len(client.unread))
                    if client.taking.is_sent_away:  # it lagged, and was sent away: it comes back
                        self.hang_up(client)
                        self.connect(client)
                for name in client.chosen:
                    if name in SHARED and name not in client.loose:
                        assert client.next_shared[name] == len(self.world.appended[name]) or name in client.gaps


Streams.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
# Ten seconds where nothing else runs; a busy machine may take its time.
TestResumeIsExact = pytest.mark.timeout(900)(Streams.TestCase)
