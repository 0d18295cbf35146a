"""What is done in a while, once for all that have come until then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Delay(Generic[T]):
    """Gives each of its items to `then`, at most so many seconds after it was added."""

    def __init__(self, seconds: float, then: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._then = then
        self._items: dict[T, None] = {}

    def __contains__(self, item: T) -> bool:
        return item in self._items

    def add(self, item: T) -> None:
        """Does nothing for one that waits already."""
        if not self._items:
            asyncio.get_running_loop().call_later(self._seconds, self._over)
        self._items[item] = None

    def discard(self, item: T) -> None:
        self._items.pop(item, None)

    def _over(self) -> None:
        items, self._items = self._items, {}
        for item in items:
            self._then(item)
