"""One timer for all streams: heartbeats and time-outs. Moving one costs nothing until it is due."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Protocol, TypeVar

from ..fanout import TURN_SECONDS


class Ringing(Protocol):
    """Who is rung. `tick` is the wheel's own note, 0 at the beginning."""

    tick: int

    def ring(self, now: float) -> float | None:
        """It is time. Return when it is the next time, None for never. Must not raise."""
        ...


T = TypeVar("T", bound=Ringing)


class Wheel(Generic[T]):
    """Rings everyone once at its time or up to `resolution` seconds later. Times are seconds of the loop's clock.

    Who has less to do than it thought says a later time when it is rung: with an event every few milliseconds, a timer
    moved at each would cost more than the event (5 of 62 microseconds, measured).
    """

    def __init__(self, resolution: float) -> None:
        self._resolution = resolution
        self._ticks: dict[int, dict[T, None]] = {}  # for a dict is smaller than a set, and keeps the order
        self._due: deque[T] = deque()
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._next = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, ringing: T, when: float) -> None:
        """Ring it at `when`. It must not be in the wheel."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            self._loop, self._timer = loop, None  # a test client has one for every request
            if self._ticks:
                self._wait(min(self._ticks))
        tick = int(when / self._resolution) + 1
        ringing.tick = tick
        found = self._ticks.get(tick)
        if found is None:
            found = self._ticks[tick] = {}
            if self._timer is None or tick < self._next:
                self._wait(tick)
        found[ringing] = None

    def discard(self, ringing: T) -> None:
        """Do not ring it any more."""
        if (found := self._ticks.get(ringing.tick)) is not None:
            found.pop(ringing, None)
        ringing.tick = -1

    def stop(self) -> list[T]:
        """Ring nobody any more; return who is left."""
        left = [ringing for ringing in self._due if ringing.tick >= 0]
        left += [ringing for found in self._ticks.values() for ringing in found]
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._ticks.clear()
        self._due.clear()
        return left

    def _wait(self, tick: int) -> None:
        if self._due:
            return  # there is a turn to come, which waits for the next tick when it is done
        if self._timer:
            self._timer.cancel()
        self._next = tick
        self._timer = asyncio.get_running_loop().call_at(tick * self._resolution, self._turn)

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        for tick in sorted(tick for tick in self._ticks if tick * self._resolution <= now):
            self._due.extend(self._ticks.pop(tick))
        ends = now + TURN_SECONDS
        while self._due and now < ends:
            ringing = self._due.popleft()
            if ringing.tick >= 0:
                when = ringing.ring(now)
                if when is not None and ringing.tick >= 0:  # it may have been discarded meanwhile
                    self.add(ringing, when)
            now = loop.time()
        if self._due:
            self._timer = loop.call_soon(self._turn)
        elif self._ticks:
            self._wait(min(self._ticks))
