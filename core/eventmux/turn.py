"""A turn of the event loop, and when somebody has had it for long enough. Knows no source."""

from __future__ import annotations

import asyncio

EVENTS = 32  # one that never awaits gives way to the others after so many events,
SECONDS = 0.005  # or after this time, whichever comes first


class Turn:
    """What a generator may use up before it gives way. Whoever has waited for something else has a new turn by that."""

    __slots__ = ("_ends", "_left", "_time")

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self.begin()

    def begin(self) -> None:
        self._left = EVENTS
        self._ends = self._time() + SECONDS

    def is_over(self) -> bool:
        """Call once per event."""
        self._left -= 1
        return self._left <= 0 or self._time() >= self._ends

    async def give_way(self) -> None:
        await asyncio.sleep(0)
        self.begin()
