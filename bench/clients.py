"""Clients that come, read, stall, go and return with their last cursor, each by its own seeded chance."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlencode

from .check import Promise, Violation
from .wire import NDJSON, Reader, connect, receive, request, reset

SHARED = ("steady", "bursty", "wide", "strict", "failing")
FINITE = ("answer", "paid", "flood")
SOURCES = (*SHARED, *FINITE, "endless")
WEIGHTS = (4, 4, 1, 1, 3, 4, 2, 2, 3)  # the wide ones are 1.6 MB a second for each client
LINGER = 3.0  # seconds, as in soak.yaml
SEND_TIMEOUT = 4.0
ANSWER_TIME = 10.0  # seconds in which a response must begin
SMALL_BUFFER = 4_096  # bytes; the kernel's usual one hides megabytes of a client that does not read


@dataclass
class Totals:
    """What all clients together have seen."""

    connected: int = 0
    connections: int = 0
    events: int = 0
    bytes: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Visit:
    """One connection as it is meant. `stalls`: (after so many seconds, for so many seconds), or None."""

    selection: tuple[str, ...]
    path: str
    headers: dict[str, str]
    seconds: float
    stalls: tuple[float, float] | None
    limit: int | None
    resets: bool
    small: bool


class Client:
    """Lives until `deadline` (time.monotonic), one chain of connections after the other."""

    def __init__(self, name: str, port: int, totals: Totals, deadline: float) -> None:
        self._name = name
        self._port = port
        self._totals = totals
        self._deadline = deadline
        self._chance = random.Random(name)
        self._left = 0.0  # when the service may have seen this client go: its private runs expire `linger` later

    async def live(self) -> None:
        await asyncio.sleep(self._chance.uniform(0, 2))
        while time.monotonic() < self._deadline:
            await self._chain()

    async def _chain(self) -> None:
        chance = self._chance
        lengths = {name: chance.choice((1, 30, 200, 2_000)) for name in FINITE}
        promise = Promise(thirds=chance.random() < 0.2, lengths=lengths, shared=frozenset(SHARED))
        selection = self._selection()
        visit = None
        try:
            for _ in range(chance.randint(1, 8)):
                if time.monotonic() >= self._deadline:
                    break
                visit = self._visit(selection, promise)
                can_lose = time.monotonic() - self._left > LINGER - 1
                promise.opened(visit.selection, can_lose=can_lose, limit=visit.limit)
                await self._connection(visit, promise)
                self._totals.events += promise.delivered
                if chance.random() < 0.3:
                    selection = self._selection(selection)
                long = chance.random() < 0.2
                await self._sleep(chance.uniform(LINGER, 3 * LINGER) if long else chance.expovariate(2))
        except (Violation, OSError, TimeoutError, ValueError) as error:
            self._totals.violations.append(
                f"client {self._name}: {type(error).__name__}: {error}\n    in {visit}\n    cursor {promise.cursor}"
            )
        self._totals.counts.update(promise.counts)

    def _selection(self, before: tuple[str, ...] = ()) -> tuple[str, ...]:
        chosen = {name for name in before if self._chance.random() < 0.6}
        chosen |= set(self._chance.choices(SOURCES, WEIGHTS, k=self._chance.choice((1, 1, 2, 3))))
        return tuple(self._chance.sample(sorted(chosen), len(chosen)))

    def _visit(self, selection: tuple[str, ...], promise: Promise) -> Visit:
        chance = self._chance
        query = {f"{name}.count": str(promise.lengths[name]) for name in FINITE if name in selection}
        headers: dict[str, str] = {}
        if promise.cursor is None and chance.random() < 0.2:
            query["since"] = chance.choice(("earliest", "2s"))
        elif promise.cursor is not None and chance.random() < 0.2:
            query["last_event_id"] = promise.cursor
        elif promise.cursor is not None:
            headers["Last-Event-ID"] = promise.cursor
        limit = chance.randint(1, 200) if chance.random() < 0.1 else None
        if limit:
            query["limit"] = str(limit)
        if promise.thirds:
            query["events"] = "third"
        if chance.random() < 0.1:
            query["qualify"] = "true"
        if chance.random() < 0.15:
            headers["Accept"] = NDJSON
        path = f"/sse/{selection[0]}"
        if len(selection) > 1 or chance.random() < 0.2:
            path, query["sources"] = "/sse", ",".join(selection)
        return Visit(
            selection,
            path + "?" * bool(query) + urlencode(query),
            headers,
            seconds=chance.choice((0.0, chance.expovariate(0.5), chance.uniform(1, 20))),
            stalls=self._stall(),
            limit=limit,
            resets=chance.random() < 0.3,
            small=chance.random() < 0.3,
        )

    def _stall(self) -> tuple[float, float] | None:
        if self._chance.random() > 0.3:
            return None
        seconds = self._chance.uniform(1, 3) if self._chance.random() < 0.7 else self._chance.uniform(6, 12)
        return self._chance.expovariate(1), seconds

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, min(seconds, self._deadline - time.monotonic())))

    async def _connection(self, visit: Visit, promise: Promise) -> None:
        totals = self._totals
        expected = 204 if promise.has_all_ended else 200
        text = request(visit.path, **visit.headers)
        async with asyncio.timeout(ANSWER_TIME):
            connection = await connect(self._port, text, receive_buffer=SMALL_BUFFER * visit.small)
        totals.connections += 1
        totals.connected += 1
        stalled = 0.0
        reader = Reader(lines=visit.headers.get("Accept") == NDJSON)
        try:
            begin = time.monotonic()
            stall_at = begin + visit.stalls[0] if visit.stalls else None
            leave_at = min(begin + visit.seconds, self._deadline)
            while (now := time.monotonic()) < leave_at:
                if visit.stalls and stall_at and now >= stall_at:
                    stall_at, stalled = None, visit.stalls[1]
                    await self._sleep(stalled)
                    leave_at = max(leave_at, min(time.monotonic() + 1, self._deadline))
                    continue
                data = await receive(connection, min(leave_at, stall_at or leave_at) - now)
                if data is None:
                    continue
                if not data:
                    self._closed(reader, promise, stalled)
                    return
                # What comes after a long stall may have waited in the kernel, and the service be gone long since.
                self._left = time.monotonic() if stalled < SEND_TIMEOUT else self._left
                totals.bytes += len(data)
                for block in reader.feed(data):
                    promise.told(block)
                if reader.status not in {0, expected}:
                    raise Violation(f"status {reader.status}, expected {expected}")
                if reader.is_complete:
                    self._ended(reader, promise)
                    return
            if not reader.status and time.monotonic() - begin > ANSWER_TIME:
                raise Violation("no response")
        finally:
            totals.connected -= 1
            if visit.resets:
                reset(connection)
            else:
                connection.close()

    def _ended(self, reader: Reader, promise: Promise) -> None:
        """The response is complete: all has ended, or a client of `strict` has lagged and is to come back."""
        if reader.status == 204:
            self._totals.counts["204"] += 1
        elif not promise.has_all_ended:
            if "strict" not in promise.selection:
                raise Violation("the stream has ended, and its sources have not")
            self._totals.counts["hung up"] += 1

    def _closed(self, reader: Reader, promise: Promise, stalled: float) -> None:
        """The connection is gone in the middle of a response: only who takes nothing for so long is cut off."""
        if stalled < SEND_TIMEOUT:
            raise Violation("the connection was cut")
        self._totals.counts["cut off"] += 1


async def crowd(count: int, seed: str, port: int, totals: Totals, seconds: float) -> None:
    """So many clients, for so many seconds."""
    deadline = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(Client(f"{seed}/{number}", port, totals, deadline).live())
