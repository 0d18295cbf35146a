"""An `asyncio.Queue` per client: how a broadcast is written where nothing else is at hand, and what tutorials show.

An event is made and turned to JSON once for all clients, which is kind: many write `json.dumps` for each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from .mark import make_mark
from .shape import Shape

FULL = 64  # events; a queue without a bound would grow for ever where events are made as fast as possible


class Broadcast:
    """Everybody who listens to a channel gets every event of it. `last`: the latest of each channel."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._queues: list[set[asyncio.Queue[str]]] = [set() for _ in range(shape.channels)]
        self._number = 0

    async def listen(self, *channels: int) -> AsyncIterator[str]:
        """The events of the channels as JSON; of all if none is named."""
        queue: asyncio.Queue[str] = asyncio.Queue(FULL if self._shape.rate == 0 else 0)
        wanted = [self._queues[channel] for channel in channels] or self._queues
        for queues in wanted:
            queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            for queues in wanted:
                queues.discard(queue)

    async def run(self) -> None:
        """Make events for ever."""
        if self._shape.kind != "shared":
            return
        if self._shape.rate == 0:
            await self._run_fast()
        await asyncio.gather(*(self._run_paced(channel) for channel in range(self._shape.channels)))

    async def _run_paced(self, channel: int) -> None:
        """Channels have their events in turn, and not all at once."""
        pause = 1 / self._shape.rate
        due = time.monotonic() + pause * channel / self._shape.channels
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            event = self._make(channel)
            for queue in self._queues[channel]:
                queue.put_nowait(event)
            due += pause

    async def _run_fast(self) -> None:
        while True:
            for _ in range(self._shape.burst):
                event = self._make(0)
                for queue in list(self._queues[0]):
                    await queue.put(event)  # does not wait unless the queue is full
            await asyncio.sleep(0)

    def _make(self, channel: int) -> str:
        self._number += 1
        return make_mark(self._number, channel).model_dump_json()

    @contextlib.asynccontextmanager
    async def running(self, _: object) -> AsyncIterator[None]:
        """The lifespan of an application."""
        task = asyncio.create_task(self.run())
        yield
        task.cancel()
        await asyncio.wait({task})
