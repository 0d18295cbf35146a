"""What all clients with one selection get, and who they are: bytes made once for those that stand at one place.

Which bytes follow is the reader's to say; where they go, the subscriptions'.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from . import sse
from .meter import Meter
from .reader import READ_BYTES, READ_EVENTS, Entry, Reader, is_read
from .step import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .channel import Channel
    from .fanout import Fanout
    from .reader import Place, View
    from .selection import Selection
    from .subscription import Subscription

KEPT_STEPS = 8  # places for which the bytes are kept until the next event; most subscriptions stand at one
MEMBERS = 64  # that are served before others may be


class Stream:
    """A selection of channels. It is a job while its members lack something: each gets a step, in slices.

    `on_empty` is called when the last member has left.
    """

    def __init__(
        self, views: Sequence[View], selection: Selection, on_empty: Callable[[], None], meter: Meter | None = None
    ) -> None:
        self.name = selection.name
        self._views = views
        self._meter = meter or Meter()
        self._tallies = [self._meter.of(view.source) for view in views]
        self._form = selection.form
        self._reconnects = selection.reconnects
        self._reader = Reader(views, selection.events, selection.mark)
        self._on_empty = on_empty
        self._members: dict[Subscription, None] = {}
        self._steps: dict[Place, Step] = {}
        self._waiting: list[Subscription] = []  # members that this pass has still to serve
        self._is_under_way = self._has_news = False
        self._channel = views[0].channel if len(views) == 1 else None
        self._is_common = self._form.is_plain and selection.events is None
        self._mark = selection.mark
        self._prefix = self._common_prefix()
        for view in views:
            if view.channel:
                view.channel.join(self)

    def _common_prefix(self) -> bytes:
        if self._channel and self._is_common:
            return b"id: %b%b." % (self._mark, self._channel.epoch.encode())
        return b""

    def rename(self) -> None:
        """A channel has another epoch than before."""
        self._prefix = self._common_prefix()
        self._steps.clear()
        self._reader.unseat()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members(self) -> list[Subscription]:
        return list(self._members)

    def hang_up(self, channel: Channel, *, on_lag: bool) -> None:
        """Whether clients that lag behind this channel are disconnected, from now on."""
        for view in self._views:
            if view.channel is channel:
                view.hangs_up = on_lag and self._reconnects

    def join(self, subscription: Subscription) -> None:
        self._members[subscription] = None
        self._meter.open += 1
        self._meter.opened += 1
        for tally in self._tallies:
            tally.open += 1
            tally.opened += 1

    def leave(self, subscription: Subscription) -> None:
        if subscription not in self._members:
            return
        del self._members[subscription]
        self._meter.open -= 1
        for tally in self._tallies:
            tally.open -= 1
        if len(self._members) <= 1:
            self._steps.clear()
        if not self._members:
            for view in self._views:
                if view.channel:
                    view.channel.leave(self)
            self._on_empty()

    def cursor(self, place: Place) -> bytes:
        if self._prefix and type(place[0]) is int:
            return b"%b%d" % (self._prefix[len(b"id: ") :], place[0])
        self._reader.seat(place)
        return self._reader.cursor

    def lag(self, place: Place) -> int:
        """Frames that there are after `place`."""
        self._reader.seat(place)
        return sum(view.channel.history.last - view.offset for view in self._views if view.channel and not view.is_over)

    def last_words(self, place: Place, reason: str, *, is_first: bool) -> bytes:
        """`stream.end` for every source that has not ended. The cursor stays: whoever comes back goes on there."""
        cursor = self.cursor(place)
        names = [view.source for view, at in zip(self._views, place, strict=True) if at is not None]
        ends = [Entry(name, sse.control("stream.end", source=name, reason=reason), cursor) for name in names]
        return self._form.body(ends, is_first=is_first) if ends else b""

    def has_news(self, fanout: Fanout) -> None:
        self._has_news = True
        if self._steps:
            self._steps.clear()
        if not self._is_under_way:
            self._is_under_way = True
            fanout.add(self)

    def advance(self, now: float) -> bool:
        """Give some members what they lack. What comes meanwhile is given in a pass of its own, after this one."""
        if not self._waiting:
            self._is_under_way = False
            if not self._has_news:
                return False
            self._has_news = False
            self._waiting = self.members[::-1]  # taken from its end: who came first is served first
        members = self._waiting[-MEMBERS:]
        del self._waiting[-MEMBERS:]
        if len(members) == 1:
            members[0].advance(now)
        else:
            self._serve(members, now)
        self._is_under_way = bool(self._waiting) or self._has_news
        return self._is_under_way

    def _serve(self, members: Sequence[Subscription], now: float) -> None:
        step = place = first = None
        taken = 0
        for member in members:
            if member.is_held:
                continue
            if member.left is not None:
                member.advance(now)
                continue
            try:
                if member.place is not place or step is None:
                    if step and first:
                        self.count(step, first, taken)
                    place, step, first, taken = member.place, None, member, 0
                    step = self.step(place)
                member.take(step, now)
                taken += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, the others have done nothing
                member.fail(error)
        if step and first:
            self.count(step, first, taken)

    def count(self, step: Step, first: Subscription, members: int = 1) -> None:
        """So many members have taken the step, `first` and those that have come to its place together with it.

        Each event counts with the lag of the oldest one of its step, and not at all for a client that was not there yet
        when that was appended.
        """
        meter = self._meter
        if step.body:
            meter.bytes += len(step.body) * members
        if step.events:
            weight = step.events * members
            if step.shares:
                for tally, events in step.shares:
                    tally.delivered += events * members
            else:
                self._tallies[0].delivered += weight
            if step.at > first.joined:
                lag = time.time_ns() - step.at
                meter.lag.add(max(0, lag), weight)  # wall time may have been set back
        if step.is_cut:
            meter.slow["overflow"] += members
        for source, reason in step.gaps:
            meter.of(source).gaps[reason] += members

    def step(self, place: Place) -> Step:
        """What follows `place`, made once for all that stand there, until the next event."""
        if len(self._members) <= 1:
            return self._common(place) or self._step(place)
        step = self._steps.get(place)
        if step is None:
            if len(self._steps) >= KEPT_STEPS:
                self._steps.clear()
            step = self._steps[place] = self._common(place) or self._step(place)
        return step

    def limited(self, place: Place, left: int, *, is_first: bool) -> Step:
        """The same for one that may get `left` events more. `is_first`: whether it has had none."""
        return self._step(place, left, is_first=is_first)

    def _common(self, place: Place) -> Step | None:
        """The common case without what only others need: one channel, as SSE, nothing left out, and nothing to tell."""
        channel, offset = self._channel, place[0]
        if not self._prefix or channel is None or type(offset) is not int or channel.ended is not None:
            return None
        history = channel.history
        if offset < history.first - 1:
            return None
        if offset == history.last - 1:  # a private stream's every event: half the time of the loop below
            offset += 1
            channel.reached(offset)
            frame = history.newest
            step = Step(b"%b%d\n%b" % (self._prefix, offset, frame.body), (offset,))
            step.events = 0 if frame.is_control else 1
            step.at = frame.at
            return step
        size = events = 0
        blocks: list[bytes] = []
        frames = history.after(offset, READ_EVENTS)
        for frame in frames:
            offset += 1
            events += not frame.is_control
            blocks.append(b"%b%d\n%b" % (self._prefix, offset, frame.body))
            size += len(frame.body)
            if size >= READ_BYTES:
                break
        channel.reached(offset)
        step = Step(b"".join(blocks), (offset,))
        step.events, step.has_more = events, offset < history.last
        step.at = frames[0].at if frames else 0
        return step

    def _step(self, place: Place, left: int | None = None, *, is_first: bool = False) -> Step:
        reader = self._reader
        reader.seat(place)
        entries = reader.read(left)
        step = Step(self._form.body(entries, is_first=is_first) if entries else b"", reader.place)
        self._weigh(step, entries)
        step.gaps = reader.gaps
        step.has_more = reader.has_more
        step.has_moved = reader.place != place and (not entries or entries[-1].cursor != reader.cursor)
        step.is_cut = reader.is_cut
        step.is_last = reader.is_cut or is_read(reader.place)
        return step

    def _weigh(self, step: Step, entries: Sequence[Entry]) -> None:
        """How many events there are, of which sources, and since when."""
        events = [entry for entry in entries if not entry.frame.is_control]
        if not events:
            return
        step.events, step.at = len(events), events[0].frame.at  # in the order of arrival
        if len(self._tallies) > 1:
            shares = dict.fromkeys([entry.source for entry in events], 0)
            for entry in events:
                shares[entry.source] += 1
            step.shares = [(self._meter.of(source), count) for source, count in shares.items()]
