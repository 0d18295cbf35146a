"""A part of the store that is in one slot of a cluster, so on one server. What is asked of it is not known here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from .asker import Asker
from .commands import Names
from .greeting import LostError
from .link import Link
from .reader import Reader
from .target import Target

FULL = "out of memory: give it more (maxmemory), or keep less"


class Shard:
    """Its logs, and the two connections to where they are: one that asks, one that waits. `on_fault` is called when
    `fault` may have changed.
    """

    def __init__(
        self, target: Target, names: Names, timeout: float, max_block: float, on_fault: Callable[[], None]
    ) -> None:
        self.names = names
        self.asker = Asker(Link(target, names, timeout), timeout, self._asker_is_up, on_fault)
        self._reading = Link(target, names, timeout)
        self.reader = Reader(
            self._reading, self.asker, names, timeout, max_block, on_return=self._returned, on_fault=on_fault
        )
        self._on_return: Callable[[], None] = lambda: None
        self._on_fault = on_fault
        self._is_full = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def fault(self) -> str | None:
        return self.asker.fault or self.reader.fault or (FULL if self._is_full else None)

    def set_full(self, is_full: bool) -> None:  # noqa: FBT001 - the one word that there is
        """Whether the server has no room for more."""
        self._is_full = is_full
        self._on_fault()

    async def open(self) -> None:
        """Raises ConfigError."""
        try:
            await self.asker.link.connect()
        except LostError as error:
            self.asker.away(str(error))

    def start(self, on_return: Callable[[], None]) -> None:
        self._on_return = on_return
        self._tasks = [asyncio.create_task(self.asker.run()), asyncio.create_task(self.reader.run())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        self.asker.away("the store is closed")
        await self.asker.link.drop()
        await self._reading.drop()

    def _asker_is_up(self) -> None:
        if self.reader.is_up:  # else it says so itself
            self._on_return()

    def _returned(self) -> None:
        self._on_return()
