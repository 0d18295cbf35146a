"""The bounded log: append, read after a position. Who reads it, and when, is not known here."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .policy import Bounds
    from .sse import Frame

FRAME_OVERHEAD = 192  # bytes that a frame costs beside its body, measured by tracemalloc in tests/test_history.py
SECOND = 1_000_000_000
FEW = 64  # empty places that are not worth a move of the others


@dataclass(slots=True)
class Ledger:
    """What all histories of a process hold together, in bytes; `on_over` is called when that is over `limit`."""

    limit: int = 256 * 1024 * 1024
    on_over: Callable[[], None] = lambda: None
    bytes: int = 0


@dataclass(slots=True)
class History:
    """Frames `first` to `last`; the first one ever appended has offset 1. `first` is `last + 1` where none is kept.

    `evicted_at`: the time of the youngest frame that is no longer kept, 0 while all are.
    """

    bounds: Bounds
    ledger: Ledger = field(default_factory=Ledger)
    bytes: int = 0
    total: int = 0
    first: int = 1
    last: int = 0
    evicted_at: int = 0
    _frames: list[Frame] = field(default_factory=list)
    _head: int = 0

    def append(self, frame: Frame) -> int:
        """Keep `frame`, let go what is over the bounds, and return its offset. The newest one always stays."""
        size = len(frame.body) + FRAME_OVERHEAD
        self.total = frame.total = self.total + size
        self.bytes += size
        self.ledger.bytes += size
        self.last += 1
        self._frames.append(frame)
        bounds = self.bounds
        over = self.last + 1 - self.first - bounds.events
        if over > 0:
            self.evict(over)
        while self.bytes > bounds.bytes and self.first < self.last:
            self.evict(1)
        if bounds.age is not None:
            self.trim(frame.at)
        return self.last

    def begin_after(self, offset: int) -> None:
        """Keep nothing; what comes next follows `offset`."""
        self.clear()
        self.first, self.last = offset + 1, offset

    def prepend(self, frames: Sequence[Frame]) -> None:
        """Keep these, which come right before `first`, too: as many of the newest as the bounds leave room for."""
        events = self.bounds.events - (self.last + 1 - self.first)
        size, total, kept = 0, self.total_at(self.first - 1), []
        for frame in frames[: -events - 1 : -1]:
            own = len(frame.body) + FRAME_OVERHEAD
            if self.bytes + size + own > self.bounds.bytes:
                break
            frame.total = total - size
            size += own
            kept.append(frame)
        self._frames[: self._head] = kept[::-1]
        self._head = 0
        self.first -= len(kept)
        self.bytes += size
        self.ledger.bytes += size

    def bound(self, bounds: Bounds, now: int) -> None:
        """Keep so much from now on. The newest frame always stays, as at an append."""
        self.bounds = bounds
        self.evict(self.last + 1 - self.first - bounds.events)
        while self.bytes > bounds.bytes and self.first < self.last:
            self.evict(1)
        self.trim(now)

    @property
    def newest(self) -> Frame:
        """The last frame, where there is one."""
        return self._frames[-1]

    def after(self, offset: int, limit: int) -> list[Frame]:
        """At most `limit` frames that follow `offset`; the caller sees by `first` what is no longer there."""
        start = len(self._frames) - (self.last - offset)
        start = max(start, self._head)
        return self._frames[start : start + limit]

    def total_at(self, offset: int) -> int:
        """The bytes of all that was ever appended up to `offset`; what is gone counts as far as it is gone."""
        frames = self.after(offset, 1)
        return frames[0].total - len(frames[0].body) - FRAME_OVERHEAD if frames else self.total

    def offset_before(self, at: int) -> int:
        """The offset after which everything has come at or after the time `at`."""
        return self.first - 1 + bisect_left(self._frames, at, lo=self._head, key=lambda frame: frame.at) - self._head

    def trim(self, now: int) -> None:
        """Let go what is older than the bounds say."""
        if self.bounds.age is not None:
            oldest = now - int(self.bounds.age * SECOND)
            over = self.offset_before(oldest) - self.first + 1
            if over > 0:
                self.evict(over)

    def evict_bytes(self, size: int) -> None:
        """Let go the oldest frames until `size` bytes are free, or all are gone."""
        aim = self.bytes - size
        while self.bytes > aim and self.first <= self.last:
            self.evict(1)

    def clear(self) -> None:
        self.evict(self.last + 1 - self.first)

    def evict(self, count: int) -> None:
        """Let go the `count` oldest frames."""
        frames, head, size = self._frames, self._head, 0
        for index in range(head, min(head + count, len(frames))):
            frame, frames[index] = frames[index], _GONE
            size += len(frame.body) + FRAME_OVERHEAD
            self.evicted_at = frame.at
            self.first += 1
            self._head = head = index + 1
        self.bytes -= size
        self.ledger.bytes -= size
        # One deletion for many evictions keeps append at constant cost; the places left behind are 8 bytes each.
        if head > FEW and head * 2 > len(frames):
            del frames[:head]
            self._head = 0


_GONE: Frame = None  # type: ignore[assignment] # what stands in an evicted place, so that the frame itself is freed
