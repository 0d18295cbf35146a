"""One log, one writer, many streams that read it. What writes, and how a stream reads, is not said here."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from .history import History, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .cursor import Position
    from .fanout import Fanout
    from .policy import Bounds
    from .sse import Frame
    from .stream import Stream

WINDOW_EVENTS = 256
WINDOW_BYTES = 256 * 1024
LOST = "lost"  # the reason of an end that nobody has written, and nobody will


class Clock:
    """Wall time in nanoseconds that never stands still or goes back, so that it also orders what arrives."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def now(self) -> int:
        now = time.time_ns()
        self._last = now = now if now > self._last else self._last + 1
        return now


class Channel:
    """The log of a run, and of the runs that continue it. `ended` is the reason once it is over; it stays readable.

    `last` is the last event appended, for the run that continues. `on_news` is called when there is more, and then not
    before the streams have been told of it; `on_idle` when the last stream has left; `on_reached` when a reader is
    further than all have been. `aliases`: epochs that the log had before, each with its last offset.
    """

    def __init__(
        self,
        source: str,
        epoch: str,
        *,
        bounds: Bounds,
        clock: Clock,
        ledger: Ledger | None = None,
        on_news: Callable[[Channel], None] = lambda _: None,
        on_idle: Callable[[Channel], None] = lambda _: None,
    ) -> None:
        self.source = source
        self.epoch = epoch
        self.history = History(bounds, ledger or Ledger())
        self.ended: str | None = None
        self.last: Any = None
        self.aliases: dict[str, int] = {}
        self.on_reached: Callable[[], None] = _nothing
        self.streams: dict[Stream, None] = {}
        self.touched = clock.now()
        self._clock = clock
        self._on_news = on_news
        self._on_idle = on_idle
        self._is_marked = False
        self._reached = 0
        self._reached_total = 0  # bytes of the history up to there
        self._reader_moved: asyncio.Future[None] | None = None
        self.bound(bounds)

    def bound(self, bounds: Bounds) -> None:
        """Keep so much from now on."""
        self.history.bound(bounds, self._clock.now())
        self._window_events = min(WINDOW_EVENTS, bounds.events)
        self._window_bytes = min(WINDOW_BYTES, bounds.bytes)
        self._wake_writer()

    def holds(self, position: Position) -> bool:
        """Whether one with an epoch of this log has a place in it; in one that is lost, so has whoever has seen more of
        it than was saved.
        """
        last = self.history.last
        return position.offset <= min(last, self.aliases.get(position.epoch, last)) or self.ended == LOST

    def rename(self, epoch: str, aliases: Mapping[str, int]) -> None:
        """The same log under another epoch, which all cursors have from now on."""
        self.epoch, self.aliases = epoch, dict(aliases)
        for stream in self.streams:
            stream.rename()

    def append(self, frame: Frame) -> None:
        """The event has happened now."""
        frame.at = self._clock.now()
        self.receive(frame)

    def receive(self, frame: Frame) -> None:
        """The event has happened at its time, on whatever replica, after all that the log has."""
        self.touched = frame.at
        self.history.append(frame)
        ledger = self.history.ledger
        if ledger.bytes > ledger.limit:
            ledger.on_over()
        if not self._is_marked:
            self._mark()

    def end(self, reason: str) -> None:
        """The run is over: `completed`, `failed`. Streams say so when they have given all."""
        if self.ended is None:
            self.ended = reason
            self._mark()

    def _mark(self) -> None:
        # Once per turn of the loop, however many events a turn brings.
        if not self._is_marked:
            self._is_marked = True
            self._on_news(self)

    def tell(self, fanout: Fanout) -> None:
        """Let every stream give what has come."""
        self._is_marked = False
        for stream in self.streams:
            stream.has_news(fanout)

    def join(self, stream: Stream) -> None:
        self.touched = self._clock.now()
        self.streams[stream] = None

    def leave(self, stream: Stream) -> None:
        self.touched = self._clock.now()
        self.streams.pop(stream, None)
        if not self.streams:
            self._on_idle(self)

    def reached(self, offset: int) -> None:
        """A reader has taken what is up to `offset`: a writer that waits for it may go on."""
        if offset > self._reached:
            self._reached = offset
            history = self.history
            self._reached_total = history.total if offset == history.last else history.total_at(offset)
            self._wake_writer()
            self.on_reached()

    def _wake_writer(self) -> None:
        if self._reader_moved and not self._reader_moved.done():
            self._reader_moved.set_result(None)

    @property
    def reached_offset(self) -> int:
        """Where the foremost reader is."""
        return self._reached

    @property
    def is_full(self) -> bool:
        """Whether the foremost reader is a window behind the writer."""
        history = self.history
        return (
            history.last - self._reached >= self._window_events
            or history.total - self._reached_total >= self._window_bytes
        )

    async def room(self) -> None:
        """Return when the foremost reader is within the window."""
        while self.is_full:
            self._reader_moved = asyncio.get_running_loop().create_future()
            await self._reader_moved


def _nothing() -> None:
    pass
