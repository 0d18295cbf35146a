"""Whatever happens to replicas and their store: what a client has received of a source is what was appended, in order
and once, or a `stream.gap` names the hole, or a `stream.end` says that the run is lost.

The replicas are in one loop, in virtual time, over a store in memory that can lose its last records as a Redis does
that is followed by a replica of it. `EVENTMUX_EXAMPLES=2000 pytest tests/test_replicas_histories.py` draws so many.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from eventmux import Event, source
from eventmux.catalog import EnabledSource
from eventmux.errors import FullError, StoreAwayError
from eventmux.store.memory import Shelf
from replicas import LEASE, Site
from service import enable
from taking import Taking
from virtual_time import VirtualLoop

EXAMPLES = int(os.environ.get("EVENTMUX_EXAMPLES", "300" if os.environ.get("CI") else "100"))

SITES = 3
SELECTIONS = st.lists(st.sampled_from(("feed", "mine")), min_size=1, max_size=2, unique=True)


class Item(Event):
    source: str
    run: int
    n: int


class World:
    """The sources: a run yields when a rule lets it. An item is one of a kind by its run and number."""

    def __init__(self) -> None:
        self.runs = 0
        self.feeds: dict[str, dict[int, asyncio.Queue[None]]] = {"feed": {}, "mine": {}}
        self.faults = 0  # that may end a private run, or lose some of its copy
        self.losses = 0  # of the store

    def enabled(self, name: str, *, shared: bool) -> EnabledSource:
        @source(name=name, shared=shared)
        async def scripted() -> AsyncIterator[Item]:
            self.runs += 1
            run, n, feed = self.runs, 0, asyncio.Queue[None]()
            self.feeds[name][run] = feed
            try:
                while True:
                    await feed.get()
                    n += 1
                    yield Item(source=name, run=run, n=n)
            finally:
                del self.feeds[name][run]

        return enable(scripted, linger=3600 if not shared else 5)

    def put(self, name: str, count: int) -> None:
        for feed in self.feeds[name].values():
            for _ in range(count):
                feed.put_nowait(None)


Told = tuple[int, int] | str  # an item, or the event and reason of what the service says


@dataclass
class Client:
    """An EventSource with one selection: all that it was told of each source, and the ends of its connections."""

    names: list[str]
    told: dict[str, list[Told]] = field(default_factory=lambda: {"feed": [], "mine": []})
    taking: Taking | None = None
    cursor: str | None = None
    site: Site | None = None

    def look(self) -> None:
        if self.taking is None:
            return
        for message in self.taking.messages():
            data = json.loads(message.data)
            is_item = message.event == "item"
            what = (data["run"], data["n"]) if is_item else f"{message.event} {data['reason']}"
            self.told[data["source"]].append(what)
        self.cursor = self.taking.cursor
        if self.taking.is_ended:
            self.leave()

    def leave(self) -> None:
        if self.taking:
            self.taking.close()
        self.taking = self.site = None

    @property
    def is_over(self) -> bool:
        return all(self.told[name] and str(self.told[name][-1]).startswith("stream.end") for name in self.names)

    def items(self, name: str) -> list[tuple[int, int]]:
        return [one for one in self.told[name] if isinstance(one, tuple)]


class Replicas(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.world = World()
        self.enabled = {
            "feed": self.world.enabled("feed", shared=True),
            "mine": self.world.enabled("mine", shared=False),
        }
        self.follows: set[tuple[tuple[int, int], tuple[int, int]]] = set()  # in the log of the feed, at some time
        self.clients: list[Client] = []
        self.gone: list[Site] = []
        self.shelf = Shelf(clock=self.loop.time)
        self.sites = [Site(self.shelf) for _ in range(SITES)]
        self._run(self._open())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    def _do(self, what: Callable[..., None], *given: Any) -> None:
        async def work() -> None:
            what(*given)

        self._run(work())

    async def _open(self) -> None:
        for site in self.sites:
            await site.hub.open()

    def note(self) -> None:
        """Keep what the log of the feed is now; it may be lost."""
        for address, log in self.shelf.logs.items():
            if address.source == "feed":
                bodies = [one.body.partition(b"data: ")[2] for one in log.records if one.event == "item"]
                items = [(data["run"], data["n"]) for data in map(json.loads, bodies)]
                self.follows |= set(itertools.pairwise(items))

    # what happens

    @rule(names=SELECTIONS, at=st.integers(0, SITES - 1))
    def a_client_comes(self, names: list[str], at: int) -> None:
        if len(self.clients) < 4:
            self.clients.append(Client(names))
            self._run(self._connect(self.clients[-1], self.sites[at]))

    @rule(who=st.integers(0, 3), at=st.integers(0, SITES - 1))
    def a_client_goes_to_a_replica(self, who: int, at: int) -> None:
        if who < len(self.clients):
            self._run(self._connect(self.clients[who], self.sites[at]))

    @rule(who=st.integers(0, 3))
    def a_client_reads(self, who: int) -> None:
        if who < len(self.clients):
            self._do(self.clients[who].look)

    @rule(who=st.integers(0, 3))
    def a_connection_is_lost(self, who: int) -> None:
        if who < len(self.clients):
            self._do(self.clients[who].leave)

    @rule(name=st.sampled_from(("feed", "mine")), count=st.sampled_from((1, 2, 30)))
    def events_are_made(self, name: str, count: int) -> None:
        self._do(self.world.put, name, count)

    @rule(seconds=st.sampled_from((0.0, 0.05, 1.0, LEASE / 2, LEASE, 3 * LEASE)))
    def time_passes(self, seconds: float) -> None:
        self._run(asyncio.sleep(seconds))
        self.note()

    @rule(at=st.integers(0, SITES - 1))
    def a_replica_is_cut_off(self, at: int) -> None:
        self.world.faults += 1
        self._do(self.sites[at].store.cut)

    @rule(at=st.integers(0, SITES - 1))
    def a_replica_is_back(self, at: int) -> None:
        self._do(self.sites[at].store.mend)

    @rule(at=st.integers(0, SITES - 1))
    def a_replica_hears_nothing(self, at: int) -> None:
        self.world.faults += 1
        if not self.sites[at].store.is_cut:
            self._do(self.sites[at].store.deafen)

    @rule(at=st.integers(0, SITES - 1))
    def a_replica_hears_again(self, at: int) -> None:
        if not self.sites[at].store.is_cut:
            self._do(self.sites[at].store.hear)

    @rule(at=st.integers(0, SITES - 1))
    def a_replica_is_killed(self, at: int) -> None:
        self.world.faults += 1
        self._do(self.sites[at].store.cut)
        for client in self.clients:
            if client.site is self.sites[at]:
                self._do(client.leave)
        self.gone.append(self.sites[at])
        self._run(self._replace(at))

    @rule(at=st.integers(0, SITES - 1))
    def a_replica_ends_in_order(self, at: int) -> None:
        self.world.faults += 1
        self._run(self.sites[at].hub.close())
        for client in self.clients:
            if client.site is self.sites[at]:
                self._do(client.look)
                self._do(client.leave)
        self._run(self._replace(at))

    @rule(count=st.sampled_from((1, 3, 1000)))
    def the_store_loses_its_last_records(self, count: int) -> None:
        self.note()
        self.world.faults += 1
        self.world.losses += 1
        connected = [site.store for site in self.sites if not site.store.is_cut]
        for store in connected:
            self._do(store.cut)
        self.shelf.lose(count)
        for store in connected:
            self._do(store.mend)

    async def _replace(self, at: int) -> None:
        self.sites[at] = Site(self.shelf)
        await self.sites[at].hub.open()

    async def _connect(self, client: Client, site: Site) -> None:
        client.look()
        if client.is_over:
            return
        client.leave()
        try:
            client.taking = await site.take(*(self.enabled[name] for name in client.names), cursor=client.cursor)
        except (StoreAwayError, FullError):
            return  # it is sent away, and comes again
        client.site = site
        if client.cursor is None:
            client.cursor = client.taking.cursor

    # what must be

    def teardown(self) -> None:
        try:
            self._run(self._settle())
        finally:
            self._run(self._end())
            self.loop.close()
        assert self.world.feeds == {"feed": {}, "mine": {}}

    async def _settle(self) -> None:
        """All is mended: everybody gets what comes."""
        for site in self.sites:
            site.store.mend()
            site.store.hear()
        await asyncio.sleep(5 * LEASE)
        self.note()
        open_clients = [client for client in self.clients if not client.is_over]
        for number, client in enumerate(open_clients):
            client.look()
            if client.taking is None:
                await self._connect(client, self.sites[number % SITES])
        await asyncio.sleep(3 * LEASE)
        for name in ("feed", "mine"):
            readers = [client for client in open_clients if name in client.names]
            before = [len(client.items(name)) for client in readers]
            await self._until_more(name, readers, before)
        await asyncio.sleep(1)
        self.note()
        for client in self.clients:
            client.look()
            self.check(client)

    async def _until_more(self, name: str, readers: list[Client], before: list[int]) -> None:
        def have_more() -> bool:
            for client in readers:
                client.look()
            return all(
                len(client.items(name)) > count or str(client.told[name][-1:]).startswith("['stream.end")
                for client, count in zip(readers, before, strict=True)
            )

        for _ in range(20):
            for number, client in enumerate(readers):
                if client.taking is None and not client.is_over:
                    await self._connect(client, self.sites[number % SITES])
            self.world.put(name, 1)
            await asyncio.sleep(0.2)
            if have_more():
                return
            await asyncio.sleep(LEASE)
        raise AssertionError(
            f"{name}: clients are told nothing any more: {[client.told[name][-3:] for client in readers]}"
        )

    async def _end(self) -> None:
        for client in self.clients:
            client.leave()
        for site in [*self.sites, *self.gone]:
            await site.hub.close()

    def check(self, client: Client) -> None:
        for name in client.names:
            told, items = client.told[name], client.items(name)
            assert len(set(items)) == len(items), f"{name}: told twice: {told}"
            if not (self.world.losses if name == "feed" else self.world.faults):
                assert told == items, f"{name}: nothing was lost: {told}"
            for before, after in itertools.pairwise(told):
                if isinstance(before, tuple) and isinstance(after, tuple):
                    self._check_step(name, before, after, told)

    def _check_step(self, name: str, before: tuple[int, int], after: tuple[int, int], told: list[Told]) -> None:
        if name == "mine":
            assert after == (before[0], before[1] + 1), f"mine: {after} after {before}: {told}"
        else:
            assert (before, after) in self.follows, f"feed: {after} after {before}: {told}"


Replicas.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestReplicas = Replicas.TestCase
