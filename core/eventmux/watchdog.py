"""Watches the event loop from a thread of its own, and names the plugin that blocks it. It ends nothing."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .run import RUN_TASK

if TYPE_CHECKING:
    from types import FrameType

    from .meter import Meter
    from .service import Service

log = logging.getLogger("eventmux.watchdog")

BEATS = 4  # per stall time
LONG = 10  # stall times, after which a stall is told again


@dataclass(frozen=True, slots=True)
class Culprit:
    """Who has the loop, as far as it can be seen, and the stack."""

    plugin: str | None
    source: str | None
    stack: str

    def __str__(self) -> str:
        if self.source:
            return f"source {self.source} of plugin {self.plugin} blocks it"
        return f"plugin {self.plugin} blocks it" if self.plugin else "no plugin's code is in its stack"


class Watchdog:
    """The loop's side notes four times per `stall` that it turns; a thread sees to it that it does.

    The service's sources and plugins tell whose the code is that has the loop. Start it in the loop that it watches.
    """

    def __init__(self, stall: float, service: Service, meter: Meter) -> None:
        self.stall = stall
        self._service = service
        self._meter = meter
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._due = 0.0  # when the loop's next sign of life is due, of the monotonic clock
        self._told = 0  # how often the stall since then was told
        self._timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        meter.stalls.update(dict.fromkeys([plugin.name for plugin in service.settings.plugins.found], 0))

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._is_over.clear()
        self._due, self._told = time.monotonic(), 0
        self._beat(loop)
        self._thread = threading.Thread(
            target=self._watch, args=(loop, threading.get_ident()), name="eventmux watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """The thread is gone on return. A second call does nothing."""
        self._is_over.set()
        if self._timer:
            self._timer.cancel()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        interval = self.stall / BEATS
        with self._lock:
            late, told = now - self._due, self._told
            self._due, self._told = now + interval, 0
        self._meter.loop_lag.add(max(0, int(late * 1e9)))
        self._timer = loop.call_later(interval, self._beat, loop)
        if told:
            log.warning("the event loop turns again, after %.1f seconds", late, extra={"seconds": round(late, 3)})
        elif late >= self.stall:
            self._meter.stalled(None)
            log.error(
                "the event loop stood still for %.1f seconds, and what held it was over before it could be seen: code "
                "that does not let go of the interpreter, or a process that was stopped",
                late,
                extra={"seconds": round(late, 3)},
            )

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        while not self._is_over.wait(self.stall / BEATS):
            due, told = self._due, self._told
            late = time.monotonic() - due
            if late < (self.stall, self.stall * LONG, float("inf"))[told]:
                continue
            frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented, for debugging; there is no other way
            culprit = self._culprit(loop, frame)
            del frame  # it would keep what the code that stands there holds
            with self._lock:
                if self._due != due:
                    continue  # it has turned meanwhile: that was not its stack
                self._told += 1
            if not told:
                self._meter.stalled(culprit.plugin)
            _tell(culprit, late)

    def _culprit(self, loop: asyncio.AbstractEventLoop, frame: FrameType | None) -> Culprit:
        stack = "".join(traceback.format_stack(frame)).rstrip() if frame else ""
        task, settings = asyncio.current_task(loop), self._service.settings
        name = task.get_name() if task else ""
        if name.startswith(RUN_TASK) and (enabled := settings.catalog.sources.get(name.removeprefix(RUN_TASK))):
            return Culprit(enabled.plugin, enabled.name, stack)
        while frame:
            if plugin := settings.plugins.owner(str(frame.f_globals.get("__name__"))):
                return Culprit(plugin.name, None, stack)
            frame = frame.f_back
        return Culprit(None, None, stack)


def _tell(culprit: Culprit, late: float) -> None:
    record = log.makeRecord(
        log.name,
        logging.ERROR,
        __file__,
        0,
        "the event loop stands still for %.1f seconds: %s; what waits or computes belongs into asyncio.to_thread",
        (late, culprit),
        None,
        extra={"plugin": culprit.plugin, "source": culprit.source, "seconds": round(late, 3)},
        sinfo=culprit.stack,
    )
    if log.isEnabledFor(logging.ERROR):
        log.handle(record)
