"""The generators that are being closed, and who waits for that."""

from __future__ import annotations

import asyncio
import logging

log = logging.getLogger("eventmux.run")


class Closing:
    """`abandoned`: how many have not closed in time, or have not closed when nobody waited any longer."""

    def __init__(self) -> None:
        self.abandoned = 0
        self._tasks: set[asyncio.Task[bool]] = set()
        self._late = asyncio.Event()
        self._hurry: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: asyncio.Task[bool] | None) -> None:
        """`task` ends when its generator is closed, and says whether that was given up."""
        if task:
            self._tasks.add(task)
            task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        self.abandoned += not task.cancelled() and task.result()

    async def wait(self) -> None:
        """Return when all are closed or given up, or when `hurry` says so."""
        late = asyncio.create_task(self._late.wait(), name="eventmux late")
        try:
            while self._tasks and not late.done():
                closed = asyncio.ensure_future(asyncio.wait(self._tasks))
                await asyncio.wait({closed, late}, return_when=asyncio.FIRST_COMPLETED)
                closed.cancel()
        finally:
            late.cancel()
            await asyncio.wait({late})
            if self._hurry:
                self._hurry.cancel()
        if self._tasks:
            names = sorted({task.get_name().rpartition(" ")[2] for task in self._tasks})
            log.warning("generators that did not close in time: abandoned, of %s", ", ".join(names))
            self.abandoned += len(self._tasks)

    def hurry(self, seconds: float) -> None:
        """`wait` lasts no longer than that, from now on."""
        if self._hurry:
            self._hurry.cancel()
        self._hurry = asyncio.get_running_loop().call_later(seconds, self._late.set)
