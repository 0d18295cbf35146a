"""A turn of the event loop, and when somebody has had it for long enough. Knows no source."""

from __future__ import annotations

import asyncio

EVENTS = 32  # one that never awaits gives way to the others after so many events,
SECONDS = 0.005  # or after this time, whichever comes first


class Pulse:
    """Counts turns of the loop, or at least tells one from the next where somebody watches."""

    __slots__ = ("_is_watched", "count")

    def __init__(self) -> None:
        self.count = 0
        self._is_watched = False

    def watch(self) -> int:
        """The count now; it will be another when the loop has come around."""
        if not self._is_watched:
            self._is_watched = True
            asyncio.get_running_loop().call_soon(self._beat)
        return self.count

    def _beat(self) -> None:
        self._is_watched = False
        self.count += 1


class Turn:
    """What a generator may use up before it gives way. Whoever has waited for something has a new turn by that."""

    __slots__ = ("_ends", "_left", "_pulse", "_seen", "_time")

    def __init__(self, pulse: Pulse | None = None) -> None:
        """`pulse`: one for many, where there are many."""
        self._pulse = pulse or Pulse()
        self._time = asyncio.get_running_loop().time
        self._begin()

    def _begin(self) -> None:
        self._seen = self._pulse.watch()
        self._left = EVENTS
        self._ends = self._time() + SECONDS

    def is_over(self) -> bool:
        """Call once per event."""
        self._left -= 1
        if self._left > 0 and self._time() < self._ends:
            return False
        if self._pulse.count == self._seen:
            return True
        self._begin()
        return False

    async def give_way(self) -> None:
        await asyncio.sleep(0)
        self._begin()
