"""A process among those that share a store: claims what its parts want, appends what they have, hears what others
say. What a part is, and who reads it, is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .delay import Delay
from .errors import StoreAwayError
from .store.contract import Address

if TYPE_CHECKING:
    from .part import Part
    from .store.contract import Append, Record, Store

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("eventmux.store")

BATCH = 128  # claims or appends that are sent together
RENEWALS = 3  # in the time of a lease
LATE = 0.6  # of a lease: who has not renewed it for so long has not been heard, nor have others, perhaps
BOX_ROOM = 10_000  # messages of other replicas that may wait
PATIENCE = 0.1  # seconds between tries of a store that is away
# Seconds that a copy may be behind. Of 200 answers of 40 tokens a second each a tenth of a second makes four events of
# one append, which is a third of what they cost Redis otherwise (docs/measurements.md).
BEHIND = 0.1
RETURN_SECONDS = 3.0  # in which who lives says so to a store that is back: he tries every 2 seconds at least
REST_SECONDS = 2.0  # for what a run has left to append when it rests


class Replica:
    """`lease` and `keep` in seconds: how long a right to write holds, and how long a log stays that nobody reads."""

    def __init__(self, store: Store, *, lease: float = 10.0, keep: float = 3_600.0) -> None:
        self.store = store
        self.id = secrets.token_hex(8)
        self.lease = lease
        self.keep = keep
        self._parts: dict[Address, Part] = {}
        self._due: dict[Part, None] = {}
        self._dirty: dict[Part, None] = {}
        self._behind: Delay[Part] = Delay(BEHIND, self.mark)
        self._held: Delay[Part] = Delay(PATIENCE, self.mark)  # what they have to append is not taken now
        self._is_due, self._is_dirty = asyncio.Event(), asyncio.Event()
        self._posts: dict[tuple[str, str, Address], int] = {}  # the newest value of each word counts
        self._drops: list[Address] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._is_open = False
        self._lived = 0.0  # when the store was told last that this replica lives
        self._steady_since = -math.inf

    async def open(self) -> None:
        """Raises ConfigError for a store that cannot be used."""
        if self._is_open:
            return
        self._is_due, self._is_dirty = asyncio.Event(), asyncio.Event()  # of this loop
        self._steady_since = asyncio.get_running_loop().time()  # the store may have come back just now, too
        await self.store.open(self._returned)
        self.store.follow(_box(self.id), 0, self._hear)
        loops = (self._claiming, self._appending, self._living)
        self._loops = [asyncio.create_task(loop(), name=f"eventmux replica {loop.__name__}") for loop in loops]
        self._is_open = True

    async def close(self) -> None:
        """Wait for what rests, and be gone."""
        if not self._is_open:
            return
        self._is_open = False
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * REST_SECONDS)
        for task in [*self._tasks, *self._loops]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._loops, return_exceptions=True)
        self.store.unfollow(_box(self.id))
        try:
            async with asyncio.timeout(REST_SECONDS):
                await self.store.drop([_box(self.id)])
        except (StoreAwayError, TimeoutError):
            log.debug("the box of this replica is left to its time")
        await self.store.close()

    def add(self, part: Part) -> None:
        """From now on the part is claimed for, again and again."""
        self._parts[part.address] = part

    def discard(self, part: Part) -> None:
        if self._parts.get(part.address) is part:
            del self._parts[part.address]
        self._due.pop(part, None)
        self._dirty.pop(part, None)
        self._behind.discard(part)
        self._held.discard(part)

    def drop(self, address: Address) -> None:
        """Let go a log as a whole; soon, or when its time is over if the store is away."""
        self._drops.append(address)
        self._is_dirty.set()

    def at(self, address: Address) -> Part | None:
        return self._parts.get(address)

    def hurry(self, part: Part) -> None:
        """Claim for it now, and not when it is time."""
        self._due[part] = None
        self._is_due.set()

    def mark(self, part: Part) -> None:
        """It has something to append."""
        if part not in self._held:
            self._dirty[part] = None
            self._is_dirty.set()

    def mark_later(self, part: Part) -> None:
        """It has something to append that nobody waits for."""
        self._behind.add(part)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Do something that the replica waits for when it closes."""
        task = asyncio.create_task(work, name=f"eventmux {name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("%s has failed", task.get_name(), exc_info=error)

    async def retry(self, work: Callable[..., Coroutine[Any, Any, None]], *what: Any) -> None:
        """Do it again until the store is there for it."""
        while True:
            try:
                await work(*what)
            except StoreAwayError:
                await asyncio.sleep(PATIENCE)
            else:
                return

    def tell(self, replica: str, word: str, address: Address, value: int = 0) -> None:
        """Say something about a log to another replica; soon, or never if the store is away."""
        self._posts[replica, word, address] = value
        self._is_dirty.set()

    def _returned(self) -> None:
        self._steady_since = asyncio.get_running_loop().time()
        for part in self._parts.values():
            part.returned()
        self._due = dict.fromkeys(self._parts.values())
        self._is_due.set()

    async def _claiming(self) -> None:
        loop = asyncio.get_running_loop()
        next_round = loop.time()
        while True:
            if loop.time() >= next_round:
                next_round = loop.time() + self.lease / RENEWALS
                self._due = dict.fromkeys(self._parts.values())
            due, self._due = list(self._due), {}
            self._is_due.clear()
            for start in range(0, len(due), BATCH):
                await self._claim(due[start : start + BATCH])
            try:
                async with asyncio.timeout_at(next_round):
                    await self._is_due.wait()
            except TimeoutError:
                next_round = 0.0  # a timer may be early by what the clock cannot tell

    async def _claim(self, parts: Sequence[Part]) -> None:
        asked = [(part, claim, part.last) for part in parts if (claim := part.claim())]
        if not asked:
            return
        standings = await _each(self.store.claim, [claim for _, claim, _ in asked])
        for (part, _, last), standing in zip(asked, standings, strict=True):
            if self._parts.get(part.address) is not part:
                continue
            if isinstance(standing, StoreAwayError):
                self.hurry(part)
            else:
                self._safely(part.stand, standing, last)
        if any(isinstance(standing, StoreAwayError) for standing in standings):
            await asyncio.sleep(PATIENCE)

    async def _appending(self) -> None:
        while True:
            await self._is_dirty.wait()
            self._is_dirty.clear()
            if self._posts:
                await self._post()
            if self._drops:
                await self._drop()
            dirty, self._dirty = list(self._dirty), {}
            batches = [(part, batch) for part in dirty if (batch := part.batch())]
            for start in range(0, len(batches), BATCH):
                await self._append(batches[start : start + BATCH])

    async def _append(self, batches: Sequence[tuple[Part, Append]]) -> None:
        outcomes = await _each(self.store.append, [batch for _, batch in batches])
        for (part, _), outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, StoreAwayError):
                self.mark(part)
            elif outcome.refused in {"full", "unable"}:
                self._hold(part)
            else:
                self._safely(part.appended, outcome)
        if any(isinstance(outcome, StoreAwayError) for outcome in outcomes):
            await asyncio.sleep(PATIENCE)

    def _hold(self, part: Part) -> None:
        """Try again in a while: what others have to append does not wait for that."""
        if self._parts.get(part.address) is part:
            self._held.add(part)

    async def _post(self) -> None:
        posts, self._posts = list(self._posts.items()), {}
        for start in range(0, len(posts), BATCH):
            await asyncio.gather(*(self.say(*what, value) for what, value in posts[start : start + BATCH]))

    async def say(self, replica: str, word: str, address: Address, value: int = 0) -> None:
        """As `tell`, and return when it is said, or cannot be."""
        text = f"{word} {value} {address.source} {address.name}"
        with contextlib.suppress(StoreAwayError):  # it is said again, or found out by the next claim
            await self.store.post(_box(replica), text.encode(), BOX_ROOM, 2 * self.lease)

    async def _drop(self) -> None:
        drops, self._drops = self._drops, []
        try:
            for start in range(0, len(drops), BATCH):
                await self.store.drop(drops[start : start + BATCH])
        except StoreAwayError:
            log.debug("%d logs are left to their time", len(drops))

    @property
    def is_steady(self) -> bool:
        """Whether the store has been there for long enough to know who lives."""
        now = asyncio.get_running_loop().time()
        is_there = now - self._lived <= LATE * self.lease
        return is_there and now - self._steady_since >= max(self.lease, RETURN_SECONDS)

    async def _living(self) -> None:
        loop = asyncio.get_running_loop()
        self._lived = loop.time()
        while True:
            try:
                await self.store.live(self.id, self.lease)
                if loop.time() - self._lived > LATE * self.lease:
                    self._steady_since = loop.time()
                self._lived = loop.time()
                await asyncio.sleep(self.lease / RENEWALS)
            except StoreAwayError:
                await asyncio.sleep(PATIENCE)

    def _hear(self, records: Sequence[Record]) -> None:
        for record in records:
            word, value, source, name = record.body.decode().split(" ")
            address = Address(source, name)
            part = self._parts.get(address)
            if part and word == "free":
                self.hurry(part)
            elif part and word == "reached":
                part.hear(int(value))
            elif word == "reached":
                self.drop(address)  # its run is gone, and the store was away when that was to be said
        self.spawn(self._trim(records[-1].offset), "replica trims its box")

    async def _trim(self, offset: int) -> None:
        try:
            await self.store.trim(_box(self.id), offset)
        except StoreAwayError:
            log.debug("the box of this replica is trimmed the next time")

    @staticmethod
    def _safely(tell: Callable[..., None], *what: Any) -> None:
        try:
            tell(*what)
        except Exception:  # of one log; the others are told all the same
            log.exception("a part of a log has failed")


async def _each(ask: Callable[[Sequence[T]], Awaitable[Sequence[R]]], wanted: Sequence[T]) -> list[R | StoreAwayError]:
    """What is answered to each. A store may be on several servers: one that is away is no reason to hold up what is on
    the others.
    """
    try:
        return list(await ask(wanted))
    except StoreAwayError as error:
        if len(wanted) == 1:
            return [error]
    answers = await asyncio.gather(*(_each(ask, [one]) for one in wanted))
    return [answer for (answer,) in answers]


def _box(replica: str) -> Address:
    return Address("", replica)
