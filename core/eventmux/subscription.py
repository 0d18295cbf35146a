"""One client's view of its channels: which frames it needs next, in order, with its cursor.

It holds a position per channel and no events. How frames become a response is not said here.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from . import sse
from .cursor import CursorWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .channel import Channel
    from .cursor import Position
    from .sse import Frame

READ_EVENTS = 256  # frames read at a time; more wait for the next read
READ_BYTES = 8 * 1024  # of them, about: what a client that stalls then keeps from all others, and enough for one write


class Entry(NamedTuple):
    """A frame on its way to one client."""

    source: str
    frame: Frame
    cursor: bytes


@dataclass(frozen=True, slots=True)
class Selection:
    """What a client wants of its channels: only `events`, at most `limit` of them. `reconnects`: whether it comes back
    by itself when it is sent away.
    """

    events: frozenset[str] | None = None
    limit: int | None = None
    reconnects: bool = True


@dataclass(slots=True)
class View:
    """One channel as a subscription sees it: `offset` is the last one taken.

    `gap`: why the client's position cannot be kept, to be said first; until then `told`, that position, stands in the
    cursor, so that a client that is cut off before it hears of the gap is told again. Without a channel the source is
    over for this client: it has seen the end, or its run is `lost`. `hangs_up`: whether a reader that lags is
    disconnected instead of moved on.
    """

    channel: Channel | None
    source: str
    offset: int = 0
    gap: str | None = None
    told: Position | None = None
    hangs_up: bool = False
    is_over: bool = False

    @property
    def position(self) -> tuple[str, str, int | None]:
        if self.is_over:
            return self.source, "", None
        if self.told:
            return self.source, self.told.epoch, self.told.offset
        return self.source, self.channel.epoch if self.channel else "", self.offset


class Subscription:
    """`read` gives what is there; `wait` waits for more. `is_over` when nothing will come any more.

    `is_drained` when the client is to go, and may come back: the service goes down, or the client lags too far.
    """

    def __init__(self, views: Sequence[View], selection: Selection) -> None:
        self._views = list(views)
        self._selection = selection
        self._left = selection.limit
        self._waiter: asyncio.Future[None] | None = None
        self._woken = True
        self._cursor = CursorWriter([view.position for view in self._views])
        self._is_draining = False
        self._is_cut = False
        for view in self._views:
            if view.channel:
                view.channel.join(self)

    @property
    def is_over(self) -> bool:
        return all(view.is_over for view in self._views)

    @property
    def is_drained(self) -> bool:
        return self._is_draining or self._is_cut

    @property
    def cursor(self) -> bytes:
        return self._cursor.text()

    def wake(self) -> None:
        self._woken = True
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Return when `wake` is called, by a channel that has more or by a timer; and not in this turn of the loop: a
        client that reads all the time, or leaves everything out, must not keep the loop from the others.
        """
        if self._woken:
            await asyncio.sleep(0)
            return
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def drain(self) -> None:
        self._is_draining = True
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
        entries += self._ends()
        return entries

    def read_joined(self) -> bytes:
        """The same as blocks of SSE, where all subscribers at this place share them: one channel, and nothing left out.

        Nothing where that is not so, or where there is more to say than events: `read` has it then.
        """
        view = self._views[0]
        channel = view.channel
        if len(self._views) > 1 or self._left is not None or self._selection.events is not None or channel is None:
            return b""
        if view.gap is not None or view.offset < channel.history.first - 1 or channel.ended is not None:
            return b""
        text, offset = channel.joined(view.offset)
        if text:
            view.offset = offset
            self._cursor.move(0, offset)
            channel.reached(offset)
            self._woken = offset < channel.history.last
        return text

    def _gaps(self, index: int, view: View) -> Iterator[Entry]:
        """Move a view over what its history no longer has, and say so."""
        channel = view.channel
        if view.is_over or channel is None or self._is_cut:
            return
        missed = channel.history.first - 1 - view.offset
        if view.gap is None and missed <= 0:
            return
        if view.gap is None and view.hangs_up and self._selection.reconnects:
            self._is_cut = True  # it comes back with its cursor, and is told of the gap then
            return
        reason, view.gap, view.told = view.gap or "lagged", None, None
        view.offset += max(missed, 0)
        self._cursor.place(index, channel.epoch, view.offset)
        gap = sse.control("stream.gap", source=view.source, reason=reason, missed=missed if missed > 0 else None)
        yield Entry(view.source, gap, self.cursor)

    def _pending(self) -> Iterator[tuple[int, Frame]]:
        batches = [
            [(index, frame) for frame in view.channel.history.after(view.offset, READ_EVENTS)]
            for index, view in enumerate(self._views)
            if view.channel and not view.is_over and view.offset < view.channel.history.last and not self._is_cut
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

    def _ends(self) -> Iterator[Entry]:
        for index, view in enumerate(self._views):
            if view.is_over or self._is_cut:
                continue
            reason = "lost"
            if channel := view.channel:
                ended = channel.ended if view.offset == channel.history.last else None
                reason = ended or ("limit" if self._left == 0 else "")
            if reason:
                view.is_over = True
                self._cursor.end(index)
                end = sse.control("stream.end", source=view.source, reason=reason)
                yield Entry(view.source, end, self.cursor)
