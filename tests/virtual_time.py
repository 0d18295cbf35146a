"""An event loop whose time passes only where it waits, or where a test says so: what is due when is exact."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Leaping(selectors.DefaultSelector):
    """Waits for nothing: the time is put forward instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        assert found or timeout is not None, "all wait, and nothing will come"
        if not found and timeout:
            self.loop.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        selector = _Leaping()
        selector.loop = self
        self.now = 1_000.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, None]) -> None:
    """As asyncio.run does, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)


def loop() -> VirtualLoop:
    found = asyncio.get_running_loop()
    assert isinstance(found, VirtualLoop)
    return found


class Turns:
    """Counts the turns of the loop, as somebody else on it who wants one each time."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._before = loop().time()
        self._handle = loop().call_soon(self._turn)

    def _turn(self) -> None:
        now = loop().time()
        self.longest = max(self.longest, now - self._before)
        self._before = now
        self.count += 1
        self._handle = loop().call_soon(self._turn)

    def stop(self) -> None:
        self._handle.cancel()
