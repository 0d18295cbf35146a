"""Things that may happen thousands of times a second, said in the log once a second with how often. None is lost."""

from __future__ import annotations

import asyncio
import logging

SECONDS = 1.0


class Notices:
    """Warns at once, and then at most once per second for what has come meanwhile; `close` tells the rest."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._held: dict[str, tuple[int, str, tuple[object, ...]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def warning(self, kind: str, message: str, *args: object) -> None:
        """`kind`, of which there are few: what counts as the same. Of what is held back, the last one is shown."""
        if kind in self._timers:
            count, *_ = self._held.get(kind, (0,))
            self._held[kind] = (count + 1, message, args)
        else:
            self._log.warning(message, *args)
            self._wait(kind)

    def close(self) -> None:
        """Tell what was held back."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for kind in list(self._held):
            self._tell(kind)

    def _wait(self, kind: str) -> None:
        self._timers[kind] = asyncio.get_running_loop().call_later(SECONDS, self._turn, kind)

    def _turn(self, kind: str) -> None:
        del self._timers[kind]
        if kind in self._held:
            self._tell(kind)
            self._wait(kind)

    def _tell(self, kind: str) -> None:
        count, message, args = self._held.pop(kind)
        self._log.warning(f"{message} (x %d)", *args, count)
