"""Reads the channels of one stream from any place: frames in the order of arrival, gaps, ends, each with its cursor.

Who stands where, and how frames become bytes, is not said here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from . import sse
from .cursor import CursorWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .channel import Channel
    from .cursor import Position
    from .sse import Frame

READ_EVENTS = 256  # frames read at a time; more wait for the next read
READ_BYTES = 8 * 1024  # of them, about: what a client that stalls then keeps from all others, and enough for one write


class Gap(NamedTuple):
    """Why a client's position cannot be kept, to be said before all else; `offset` is where it goes on.

    `is_own`: whether that is the client's own position, from which what it has missed can be counted.
    Until it is said, `told`, that position, stands in the cursor, so that a client that is cut off before it hears of
    the gap is told again.
    """

    reason: str
    told: Position | None
    offset: int
    is_own: bool = False


class Removed(NamedTuple):
    """The end, once told, of a source that the service no longer has. Its position stays in the cursor: where the
    source is added again, the client gets its events again.
    """

    offset: int


REMOVED = "removed"  # the reason of such an end

# Where a client stands in each channel of its stream: the last offset taken, a gap to be told, None after the end.
Place: TypeAlias = "tuple[int | Gap | Removed | None, ...]"


def is_over(place: Place) -> bool:
    """Whether the end has been seen in every channel, and none of them may come back."""
    return all(at is None for at in place)


def is_read(place: Place) -> bool:
    """Whether nothing more will come from any channel on this connection."""
    return all(at is None or type(at) is Removed for at in place)


class Entry(NamedTuple):
    """A frame on its way to clients."""

    source: str
    frame: Frame
    cursor: bytes


@dataclass(slots=True)
class View:
    """One channel as its stream sees it, and the place in it that is being read. Without a channel the run is lost, or
    its end has been seen. `hangs_up`: whether a client that lags is disconnected instead of moved on. `is_removed`:
    whether the end that has been seen is of a source that may come back.
    """

    channel: Channel | None
    source: str
    hangs_up: bool = False
    offset: int = 0
    gap: Gap | None = None
    is_over: bool = False
    is_removed: bool = False

    def seat(self, at: int | Gap | Removed | None) -> None:
        self.is_removed = isinstance(at, Removed)
        self.is_over = at is None or self.is_removed
        self.gap = at if isinstance(at, Gap) else None
        self.offset = at.offset if isinstance(at, Gap | Removed) else at or 0

    @property
    def at(self) -> int | Gap | Removed | None:
        if self.is_over:
            return Removed(self.offset) if self.is_removed else None
        return self.gap or self.offset

    @property
    def position(self) -> tuple[str, str, int | None]:
        if self.is_over and not self.is_removed:
            return self.source, "", None
        if self.gap and self.gap.told:
            return self.source, self.gap.told.epoch, self.gap.told.offset
        return self.source, self.channel.epoch if self.channel else "", self.offset


class Reader:
    """Sits at one place at a time. After `read`, `place` is where it has come to.

    `is_cut`: the client lags too far, and is to come back. `has_more`: there is more to read at once. `gaps`: source
    and reason of those that it has told.
    """

    def __init__(self, views: Sequence[View], events: frozenset[str] | None, mark: bytes = b"") -> None:
        """`events`: only these, by their name or as source/name. `mark`: what stands before each cursor."""
        self._views = views
        self._mark = mark
        self._events = events
        self.place: Place = ()
        self.is_cut = False
        self.has_more = False
        self.left: int | None = None
        self.gaps: list[tuple[str, str]] = []
        self._cursor = CursorWriter([], mark)

    def seat(self, place: Place) -> None:
        if place is self.place and not self.is_cut:
            return
        self.is_cut = False
        for view, at in zip(self._views, place, strict=True):
            view.seat(at)
        if all(type(at) is int for at in place) and all(type(at) is int for at in self.place) and self.place:
            for index, view in enumerate(self._views):
                self._cursor.move(index, view.offset)
        else:
            self._cursor = CursorWriter([view.position for view in self._views], self._mark)
        self.place = place

    def unseat(self) -> None:
        """What stands in cursors is not what it was."""
        self.place = ()

    @property
    def cursor(self) -> bytes:
        return self._cursor.text()

    def read(self, left: int | None) -> list[Entry]:
        """What follows, up to about READ_BYTES, at most `left` events; [] if there is nothing."""
        self.left, self.has_more = left, False
        self.gaps = []
        self.place = ()  # until all of it is read: what raises in between must not pass for the place before
        entries = self._gaps()
        size = 0
        for _, index, frame in self._pending():
            entry = self._take(index, frame)
            if entry:
                entries.append(entry)
                size += len(frame.body)
            if size >= READ_BYTES or self.left == 0:
                self.has_more = True
                break
        for view in self._views:
            if view.channel:
                view.channel.reached(view.offset)
        for index, view in enumerate(self._views):
            if not view.is_over and not self.is_cut and (reason := self._end_of(view)):
                entries.append(self._end(index, view, reason))
        self.place = tuple([view.at for view in self._views])
        return entries

    def _gaps(self) -> list[Entry]:
        entries: list[Entry] = []
        for index, view in enumerate(self._views):
            channel = view.channel
            if channel and (view.gap is not None or view.offset < channel.history.first - 1) and not view.is_over:
                if view.gap is None and view.hangs_up:
                    self.is_cut = True  # it comes back with its cursor, and is told of the gap then
                    break
                entries.append(self._gap(index, view, channel))
        return entries

    def _gap(self, index: int, view: View, channel: Channel) -> Entry:
        """Move a view over what its history no longer has, and say so."""
        missed = channel.history.first - 1 - view.offset
        reason, is_own = (view.gap.reason, view.gap.is_own) if view.gap else ("lagged", True)
        view.gap = None
        self.gaps.append((view.source, reason))
        view.offset += max(missed, 0)
        self._cursor.place(index, channel.epoch, view.offset)
        gap = sse.control(
            "stream.gap", source=view.source, reason=reason, missed=missed if missed > 0 and is_own else None
        )
        return Entry(view.source, gap, self.cursor)

    def _pending(self) -> Iterable[tuple[int, int, Frame]]:
        """What there is, as (time, index of the view, frame), in the order of arrival."""
        pending: list[tuple[int, int, Frame]] = []
        cut = None
        for index, view in enumerate(self._views):
            if view.channel and not view.is_over and view.offset < view.channel.history.last and not self.is_cut:
                frames = view.channel.history.after(view.offset, READ_EVENTS)
                pending += [(frame.at, index, frame) for frame in frames]
                if len(frames) == READ_EVENTS:
                    cut = min(cut or frames[-1].at, frames[-1].at)
        self.has_more = cut is not None
        pending.sort()  # no two have one time
        # Where a channel has more than was looked at, nothing younger of the others may overtake the rest of it.
        return pending if cut is None else itertools.takewhile(lambda found: found[0] <= cut, pending)

    def _take(self, index: int, frame: Frame) -> Entry | None:
        """Move past `frame`; None if the client did not ask for such events."""
        view = self._views[index]
        view.offset = offset = view.offset + 1
        self._cursor.move(index, offset)
        wanted = self._events
        if (wanted is not None or self.left is not None) and not frame.is_control:
            if wanted is not None and frame.event not in wanted and f"{view.source}/{frame.event}" not in wanted:
                return None
            if self.left is not None:
                self.left -= 1
        return Entry(view.source, frame, self._cursor.text())

    def _end_of(self, view: View) -> str | None:
        """Why there is no more to come from it, or None."""
        channel = view.channel
        if channel is None:
            return "lost"
        if channel.ended is not None and view.offset >= channel.history.last:
            return channel.ended
        return "limit" if self.left == 0 else None

    def _end(self, index: int, view: View, reason: str) -> Entry:
        view.is_over = True
        view.is_removed = reason == REMOVED
        if not view.is_removed:
            self._cursor.end(index)
        return Entry(view.source, sse.control("stream.end", source=view.source, reason=reason), self.cursor)
