"""A run as the part of its log in a store sees it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import sse

if TYPE_CHECKING:
    from .run import Run
    from .runs import Runs


log = logging.getLogger("eventmux.run")


class Tenancy:
    def __init__(self, runs: Runs, run: Run) -> None:
        self._runs = runs
        self._run = run

    def gain(self) -> None:
        if self._run.channel.last is None:
            self._run.channel.last = self._last_event()
        if self._run.box:
            self._run.box.open()
        self._run.begin()

    def _last_event(self) -> Any:
        """The last event of the log, which another replica may have written, for the run that continues it."""
        history = self._run.channel.history
        frames = history.after(history.first - 1, history.last + 1 - history.first)
        frame = next((frame for frame in reversed(frames) if not frame.is_control), None)
        if frame is None:
            return None
        try:
            return sse.decode(self._run.enabled.source, frame)
        except Exception:  # what a plugin's validator raises
            log.exception("source %s begins without its last event, which it cannot read", self._run.enabled.name)
            return None

    def lose(self) -> None:
        self._run.channel.last = None
        self._runs.closing.add(self._run.yield_up())
        self.rest()

    def rest(self) -> None:
        if self._run.box:
            self._run.box.close()

    def finish(self) -> None:
        self.rest()
        self._run.finish()

    def fork(self) -> None:
        self._runs.fork(self._run)

    def rename(self, epoch: str, aliases: Mapping[str, int]) -> None:
        self._runs.rename(self._run, epoch, aliases)
