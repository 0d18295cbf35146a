"""The bounded log: append, read after a position. Who reads it, and when, is not known here."""

from __future__ import annotations

from dataclasses import dataclass

from .sse import Frame

FRAME_OVERHEAD = 160  # bytes that a frame costs beside its body: the two objects and their place in the list, measured


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a history keeps: events, and bytes with what each event costs beside its text."""

    events: int = 1_000
    bytes: int = 4 * 1024 * 1024


class History:
    """Frames `first` to `last`; the offset of the first one ever appended is 1."""

    __slots__ = ("_frames", "_head", "bounds", "bytes", "last", "total")

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.bytes = 0
        self.total = 0
        self.last = 0
        self._frames: list[Frame] = []
        self._head = 0

    @property
    def first(self) -> int:
        """The offset of the oldest frame kept; `last + 1` while there is none."""
        return self.last + 1 - (len(self._frames) - self._head)

    def append(self, frame: Frame) -> int:
        """Keep `frame`, let go what is over the bounds, and return its offset."""
        size = len(frame.body) + FRAME_OVERHEAD
        self.total += size
        self.bytes += size
        self.last += 1
        frame.total = self.total
        self._frames.append(frame)
        while self.last - self.first >= self.bounds.events or (self.bytes > self.bounds.bytes and self.first < self.last):
            self._evict()
        return self.last

    def after(self, offset: int, limit: int) -> list[Frame]:
        """At most `limit` frames that follow `offset`; the caller sees by `first` what is no longer there."""
        start = self._head + max(0, offset + 1 - self.first)
        return self._frames[start : start + limit]

    def bytes_after(self, offset: int) -> int:
        """How far `offset` is behind the end, in bytes."""
        frames = self.after(offset, 1)
        return self.total - frames[0].total + len(frames[0].body) + FRAME_OVERHEAD if frames else 0

    def _evict(self) -> None:
        frame = self._frames[self._head]
        self.bytes -= len(frame.body) + FRAME_OVERHEAD
        self._head += 1
        # One deletion for many evictions keeps append at constant cost; the frames themselves are freed by it, so the
        # list must not wait for long: a quarter of the bound is the most that stands there unused.
        if self._head > 16 + self.bounds.events // 4:
            del self._frames[: self._head]
            self._head = 0
