"""What is published to a run and not taken yet. Who publishes, and what becomes of it, is not said here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from .errors import FullError

T = TypeVar("T")

ROOM = 1_000  # messages that may wait
ROOM_BYTES = 4 * 1024 * 1024  # of these together, but for one that is larger by itself


class Inbox(Generic[T]):
    """A source with a parameter `inbox: Inbox[Message]` takes events from outside: `async for message in inbox`.

    It never ends, has one reader, and outlives the generator: one that is started again goes on with what waits.
    `taken` counts what was taken so far.
    """

    def __init__(self, on_taken: Callable[[], None] = lambda: None) -> None:
        self.taken = 0
        self._on_taken = on_taken
        self._bytes = 0
        self._waiting: deque[tuple[T, int]] = deque()
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: T, size: int = 0) -> None:
        """`size`: bytes that it came as. Raises FullError if the source takes less than it is given."""
        if len(self._waiting) >= ROOM:
            raise FullError(f"{ROOM} published events wait already: the source does not keep up")
        if self._waiting and self._bytes + size > ROOM_BYTES:
            raise FullError(f"{self._bytes} bytes of published events wait already: the source does not keep up")
        self.add(message, size)

    def add(self, message: T, size: int) -> None:
        """The same for what has been let in already."""
        self._waiting.append((message, size))
        self._bytes += size
        self._news.set()

    def __aiter__(self) -> Inbox[T]:
        return self

    async def __anext__(self) -> T:
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        self.taken += 1
        message, size = self._waiting.popleft()
        self._bytes -= size
        self._on_taken()
        return message
