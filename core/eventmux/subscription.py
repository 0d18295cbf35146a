"""One client's view of its channels: which frames it needs next, in order, with its cursor.

It holds a position per channel and no events. How frames become a response is not said here.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from . import sse
from .cursor import CursorWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .channel import Channel
    from .sse import Frame

READ_EVENTS = 256  # frames looked at per channel and read; more wait for the next one
READ_BYTES = 64 * 1024  # uvicorn's high-water mark: one read fills a connection's buffer and no more


class Entry(NamedTuple):
    """A frame on its way to one client."""

    source: str
    frame: Frame
    cursor: bytes


@dataclass(frozen=True, slots=True)
class Selection:
    """What a client wants of its channels: only `events`, at most `limit` of them."""

    events: frozenset[str] | None = None
    limit: int | None = None


@dataclass(slots=True)
class View:
    """One channel as a subscription sees it: `offset` is the last one taken. `gap`: why the cursor could not be kept."""

    channel: Channel | None
    source: str
    offset: int
    gap: str | None = None
    is_over: bool = False


class Subscription:
    """`read` gives what is there; `wait` waits for more. `is_over` when nothing will come any more.

    `is_drained` is set when the service goes down or the stream must end for another reason of the service's.
    """

    def __init__(self, views: Sequence[View], selection: Selection) -> None:
        self._views = list(views)
        self._selection = selection
        self._left = selection.limit
        self._waiter: asyncio.Future[None] | None = None
        self._woken = True
        self._cursor = CursorWriter(
            [(v.source, v.channel.epoch if v.channel else "", None if v.is_over else v.offset) for v in self._views]
        )
        self.is_drained = False
        for view in self._views:
            if view.channel:
                view.channel.join(self)

    @property
    def is_over(self) -> bool:
        return all(view.is_over for view in self._views)

    @property
    def cursor(self) -> bytes:
        return self._cursor.text()

    def wake(self) -> None:
        self._woken = True
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, timeout: float) -> None:
        """Return as soon as there may be something to read, or after `timeout` seconds, and not in this loop turn:
        a client that reads all the time, or leaves everything out, must not keep the loop from the others.
        """
        if self._woken:
            await asyncio.sleep(0)
            return
        self._waiter = asyncio.get_running_loop().create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._waiter

    def drain(self) -> None:
        self.is_drained = True
        self.wake()

    def close(self) -> None:
        """Leave every channel. A second call does nothing."""
        for view in self._views:
            if view.channel:
                channel, view.channel = view.channel, None
                channel.leave(self)

    def read(self) -> list[Entry]:
        """What has come since the last call, in the order of arrival, up to about READ_BYTES; [] if nothing has."""
        self._woken = False
        entries: list[Entry] = []
        for index, view in enumerate(self._views):
            entries += self._gaps(index, view)
        size = 0
        for index, frame in self._pending():
            entry = self._take(index, frame)
            if entry:
                entries.append(entry)
                size += len(frame.body)
            if size >= READ_BYTES or self._left == 0:
                self._woken = True
                break
        for view in self._views:
            if view.channel:
                view.channel.reached(view.offset)
        return entries + self._ends()

    def _gaps(self, index: int, view: View) -> Iterator[Entry]:
        """Move a view over what its history no longer has, and say so."""
        if view.is_over or view.channel is None:
            return
        missed = view.channel.history.first - 1 - view.offset
        if view.gap is not None or missed > 0:
            reason, view.gap = view.gap or "lagged", None
            if missed > 0:
                view.offset += missed
                self._cursor.move(index, view.offset)
            gap = sse.control("stream.gap", source=view.source, reason=reason, missed=missed if missed > 0 else None)
            yield Entry(view.source, gap, self.cursor)

    def _pending(self) -> Iterator[tuple[int, Frame]]:
        batches = [
            [(index, frame) for frame in view.channel.history.after(view.offset, READ_EVENTS)]
            for index, view in enumerate(self._views)
            if view.channel and not view.is_over and view.offset < view.channel.history.last
        ]
        if len(batches) == 1:
            self._woken = len(batches[0]) == READ_EVENTS
            return iter(batches[0])
        # Where a channel has more than was looked at, nothing younger of the others may overtake the rest of it.
        cut = [batch[-1][1].at for batch in batches if len(batch) == READ_EVENTS]
        self._woken = bool(cut)
        merged = heapq.merge(*batches, key=lambda pair: pair[1].at)
        return itertools.takewhile(lambda pair: pair[1].at <= min(cut), merged) if cut else merged

    def _take(self, index: int, frame: Frame) -> Entry | None:
        """Move past `frame`; None if the client did not ask for such events."""
        view = self._views[index]
        view.offset += 1
        self._cursor.move(index, view.offset)
        if not frame.is_control:
            wanted = self._selection.events
            if wanted is not None and frame.event not in wanted and f"{view.source}/{frame.event}" not in wanted:
                return None
            if self._left is not None:
                self._left -= 1
        return Entry(view.source, frame, self.cursor)

    def _ends(self) -> list[Entry]:
        ends: list[Entry] = []
        for index, view in enumerate(self._views):
            channel = view.channel
            if view.is_over or channel is None:
                continue
            reason = channel.ended if view.offset == channel.history.last else None
            if reason is None and self._left == 0:
                reason = "limit"
            if reason is not None:
                view.is_over = True
                self._cursor.end(index)
                ends.append(Entry(view.source, channel.end_frame(reason), self.cursor))
        return ends
