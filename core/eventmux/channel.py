"""One log, one writer, many subscriptions. What writes, and how a subscription reads, is not said here."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from . import sse
from .cursor import position_text
from .history import History, Ledger
from .subscription import READ_BYTES, READ_EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from .policy import Bounds
    from .sse import Frame
    from .subscription import Subscription

WINDOW_EVENTS = 256
WINDOW_BYTES = 256 * 1024
JOINED_PLACES = 4  # where subscriptions stand in a log, for which the joined bytes are kept; most stand at one


class Clock:
    """Wall time in nanoseconds that never stands still or goes back, so that it also orders what arrives."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def now(self) -> int:
        self._last = max(time.time_ns(), self._last + 1)
        return self._last


class Channel:
    """The log of a run, and of the runs that continue it. `ended` is the reason once it is over; it stays readable.

    `last` is the last event appended, for the run that continues. `on_idle` is called when the last subscription has
    left, `on_busy` when a first one has come.
    """

    def __init__(
        self,
        source: str,
        epoch: str,
        *,
        bounds: Bounds,
        clock: Clock,
        ledger: Ledger | None = None,
        on_idle: Callable[[Channel], None] = lambda _: None,
    ) -> None:
        self.source = source
        self.epoch = epoch
        self.history = History(bounds, ledger or Ledger())
        self.ended: str | None = None
        self.last: Any = None
        self.subscriptions: set[Subscription] = set()
        self.touched = clock.now()
        self._clock = clock
        self._on_idle = on_idle
        self._reached = 0
        self._reader_moved: asyncio.Future[None] | None = None
        self._marked = False
        self._joined: dict[int, tuple[bytes, int]] = {}
        self._joined_last = 0

    def append(self, frame: Frame) -> None:
        frame.at = self.touched = self._clock.now()
        self.history.append(frame)
        ledger = self.history.ledger
        if ledger.bytes > ledger.limit:
            ledger.on_over()
        self._mark()

    def end(self, reason: str) -> None:
        """The run is over: `completed`, `failed`. Subscriptions say so when they have read all."""
        if self.ended is None:
            self.ended = reason
            self._mark()

    def joined(self, offset: int) -> tuple[bytes, int]:
        """What follows `offset` as blocks with this channel's cursor, up to about READ_BYTES, and the offset reached.

        It is made once for all subscriptions at one place.
        """
        if len(self.subscriptions) == 1:
            return self._join_after(offset)  # nobody to share it with, and no memory for keeping it
        if self._joined_last != self.history.last:
            self._joined.clear()
            self._joined_last = self.history.last
        found = self._joined.get(offset)
        if found is None:
            if len(self._joined) >= JOINED_PLACES:
                self._joined.clear()
            found = self._joined[offset] = self._join_after(offset)
        return found

    def _join_after(self, offset: int) -> tuple[bytes, int]:
        blocks: list[bytes] = []
        size = 0
        for frame in self.history.after(offset, READ_EVENTS):
            offset += 1
            blocks.append(sse.block(frame, position_text(self.epoch, offset)))
            size += len(frame.body)
            if size >= READ_BYTES:
                break
        return b"".join(blocks), offset

    def clear(self) -> None:
        """Let go everything."""
        self._joined.clear()
        self.history.clear()

    def join(self, subscription: Subscription) -> None:
        self.touched = self._clock.now()
        self.subscriptions.add(subscription)

    def leave(self, subscription: Subscription) -> None:
        self.touched = self._clock.now()
        self.subscriptions.discard(subscription)
        if len(self.subscriptions) <= 1:
            self._joined.clear()
        if not self.subscriptions:
            self._on_idle(self)

    def reached(self, offset: int) -> None:
        """A reader has taken what is up to `offset`: a writer that waits for it may go on."""
        if offset > self._reached:
            self._reached = offset
            if self._reader_moved and not self._reader_moved.done():
                self._reader_moved.set_result(None)

    @property
    def is_full(self) -> bool:
        """Whether the foremost reader is a window behind the writer."""
        history = self.history
        behind = history.last - self._reached
        return behind >= min(WINDOW_EVENTS, history.bounds.events) or (
            behind > 0 and history.bytes_after(self._reached) >= min(WINDOW_BYTES, history.bounds.bytes)
        )

    async def room(self) -> None:
        """Return when the foremost reader is within the window."""
        while self.is_full:
            self._reader_moved = asyncio.get_running_loop().create_future()
            await self._reader_moved

    def _mark(self) -> None:
        # Once per turn of the loop, however many events a turn brings.
        if not self._marked:
            self._marked = True
            asyncio.get_running_loop().call_soon(self._wake_subscriptions)

    def _wake_subscriptions(self) -> None:
        self._marked = False
        for subscription in self.subscriptions:
            subscription.wake()
