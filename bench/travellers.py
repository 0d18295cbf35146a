"""Clients that read, stall, leave, and come back with their cursor to any replica, each by its own seeded chance."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time

from .check import Violation
from .clients import SMALL_BUFFER
from .pact import Pact
from .scene import Scene
from .trip import BOUNDED, FINITE, LINGER, SHARED, Trip, choose, plan
from .wire import Reader, connect, receive, reset

PATIENCE = 4.0  # seconds that a client waits for an answer before it tries another replica


class Traveller:
    """`served`: when it had an event at last; `is_away`: it does not want any now."""

    def __init__(self, name: str, scene: Scene) -> None:
        self.name = name
        self.served = 0.0
        self.is_away = False
        self.doing = "begins"
        self._scene = scene
        self._chance = random.Random(name)
        self._heard = 0.0  # when a stream has said anything at last: private runs expire `linger` later
        self._pact = self._begin()

    def __str__(self) -> str:
        pact = self._pact
        makers = ", ".join(pact.maker(source) for source in pact.selection)
        return f"client {self.name} ({makers}; cursor {pact.cursor}; it {self.doing})"

    async def live(self) -> None:
        await self._sleep(self._chance.uniform(0, 1))
        while not self._scene.over.is_set():
            await self._chain()

    def _begin(self) -> Pact:
        scene, chance = self._scene, self._chance
        return Pact(
            thirds=chance.random() < 0.1,
            lengths={name: chance.choice((1, 60, 400, 2_500)) for name in FINITE},
            shared=frozenset(SHARED),
            journal=scene.journal,
            witness=scene.witness,
            bounded=BOUNDED,
        )

    async def _chain(self) -> None:
        """Connections that continue each other, until all has ended, or the client begins anew without a cursor."""
        chance, totals = self._chance, self._scene.totals
        self._pact = pact = self._begin()
        self._heard = time.monotonic()
        selection = choose(chance)
        for _ in range(chance.choice((3, 10, 30, 100))):
            try:
                has_ended = await self._trip(selection)
            except Violation as error:
                told = "; ".join(self._scene.journal.told())
                kept = self._scene.look(pact.cursor)
                totals.violations.append(f"{self}: {error}\n    faults: {told or 'none'}\n    in Redis: {kept}")
                break
            finally:
                totals.events += pact.delivered
                pact.delivered = 0
            if has_ended or self._scene.over.is_set():
                break
            if chance.random() < 0.1:
                selection = choose(chance, selection)
            await self._pause()
        totals.counts.update(pact.counts)

    async def _pause(self) -> None:
        chance = self._chance.random()
        if chance < 0.03:
            self.is_away = True
            await self._sleep(self._chance.uniform(LINGER, 1.5 * LINGER))
            self.is_away = False
        else:
            await self._sleep(self._chance.uniform(1, 3) if chance < 0.15 else self._chance.expovariate(3))

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._scene.over.wait()

    async def _trip(self, selection: tuple[str, ...]) -> bool:
        """Returns whether all has ended."""
        scene, pact = self._scene, self._pact
        pact.begin(selection, can_lose=time.monotonic() - self._heard > LINGER - 1)
        trip = plan(self._chance, scene.replicas, pact)
        self.doing = f"asks replica {trip.replica.name}"
        try:
            async with asyncio.timeout(PATIENCE):
                small = SMALL_BUFFER * trip.small
                connection = await connect(trip.replica.port, trip.text, receive_buffer=small)
        except (OSError, TimeoutError):
            scene.totals.counts["not connected"] += 1
            self.doing = "was not let in"
            return False
        scene.totals.connections += 1
        scene.totals.connected += 1
        scene.sockets.add(connection)
        try:
            return await self._read(connection, trip)
        finally:
            scene.sockets.discard(connection)
            scene.totals.connected -= 1
            if trip.resets:
                reset(connection)
            else:
                connection.close()

    async def _read(self, connection: socket.socket, trip: Trip) -> bool:
        """Returns whether all has ended."""
        scene, pact = self._scene, self._pact
        cuts, begin = scene.cuts, time.monotonic()
        expected = 204 if pact.has_all_ended else 200
        stall_at = begin + trip.stall[0] if trip.stall else None
        stalled = 0.0
        reader = Reader(lines=trip.is_lines)
        leave_at = begin + trip.seconds
        while (now := time.monotonic()) < leave_at and not scene.over.is_set():
            if trip.stall and stall_at and now >= stall_at:
                stall_at, stalled = None, trip.stall[1]
                self.doing = f"stalls at replica {trip.replica.name}"
                await self._sleep(stalled)
                leave_at = max(leave_at, time.monotonic() + 1)
                continue
            if not reader.status and now > begin + PATIENCE:
                scene.totals.counts["no answer"] += 1
                self.doing = f"had no answer of replica {trip.replica.name}"
                return False
            data = await receive(connection, min(leave_at - now, (stall_at or leave_at) - now, 0.5))
            if data is None:
                continue
            if not data:
                self._closed(trip, begin, is_ours=cuts != scene.cuts)
                return False
            scene.totals.bytes += len(data)
            for block in reader.feed(data):
                pact.told(block)
                self.served = time.monotonic() if block.event else self.served
            self._heard = time.monotonic() if reader.is_stream else self._heard
            if reader.status:
                self.doing = f"reads from replica {trip.replica.name}"
            if reader.status not in {0, expected} and (reader.status != 503 or not trip.is_lines):
                raise Violation(f"status {reader.status} of replica {trip.replica.name}, expected {expected}")
            if reader.is_complete:
                return self._completed(reader, trip, begin)
        self.doing = f"has left replica {trip.replica.name}"
        return False

    def _completed(self, reader: Reader, trip: Trip, begin: float) -> bool:
        counts, journal = self._scene.totals.counts, self._scene.journal
        if reader.status == 204:
            counts["204"] += 1
            return True
        if not reader.is_stream:
            counts["turned away"] += 1
            self.doing = f"was turned away by replica {trip.replica.name}: {reader.body[:100]!r}"
            if journal.is_calm(begin):
                raise Violation(f"it was turned away, and nothing was wrong: {reader.body[:200]!r}")
        elif not self._pact.has_all_ended:
            counts["sent away"] += 1
            self.doing = f"was sent away by replica {trip.replica.name}"
            if not journal.can_have_severed(trip.replica.name, begin):
                raise Violation(f"replica {trip.replica.name} has ended a stream, and its sources have not")
        return False

    def _closed(self, trip: Trip, begin: float, *, is_ours: bool) -> None:
        self.doing = f"was cut off from replica {trip.replica.name}"
        self._scene.totals.counts["cut" if is_ours else "broken"] += 1
        if not is_ours and not self._scene.journal.can_have_severed(trip.replica.name, begin):
            raise Violation(f"replica {trip.replica.name} has cut the connection")
