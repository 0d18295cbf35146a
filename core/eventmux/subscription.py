"""One client's part in a stream: where it stands, and where its bytes go. It holds a position and no events."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

from .reader import is_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fanout import Fanout
    from .reader import Place
    from .step import Piece, Step
    from .stream import Stream

log = logging.getLogger("eventmux.stream")


class Outlet(Protocol):
    """Where the bytes of a subscription go. It calls `resume` when it has taken what it was given."""

    def write(self, piece: Piece, now: float) -> bool:
        """Take it, whether it can be sent now or not; return whether there may come more. `now`: the loop's clock."""
        ...

    def end(self) -> None:
        """Nothing more will come: the stream `is_over`, or the client is to go, and may come back."""
        ...

    def fail(self) -> None:
        """Nothing more can come, by a fault of ours."""
        ...


class Subscription:
    """A member of a stream from its creation until `close`. It is a job while it has to catch up by itself.

    `left`: events that the client may still get, None for any number. `is_held`: nothing can be given to it now.
    `has_moved`: its cursor is another than the client knows, by events that were left out. `joined`: when it came,
    in nanoseconds since 1970: what is older it replays. `events` and `bytes` are what it was given so far. `reason`:
    why it ended, by our doing; None while it has not, or where its client left. `on_close` is called once, when it is
    over.
    """

    __slots__ = (
        "__weakref__",
        "_fanout",
        "_is_closed",
        "_is_ended",
        "_is_queued",
        "_outlet",
        "_stream",
        "bytes",
        "events",
        "has_moved",
        "is_held",
        "joined",
        "left",
        "on_close",
        "place",
        "reason",
    )

    def __init__(self, stream: Stream, place: Place, limit: int | None, fanout: Fanout) -> None:
        self.place = place
        self.left = limit
        self.is_held = True  # until there is an outlet
        self.has_moved = False
        self.joined = time.time_ns()
        self.events = self.bytes = 0
        self.reason: str | None = None
        self.on_close: Callable[[Subscription], None] = _nothing
        self._stream = stream
        self._fanout = fanout
        self._outlet: Outlet | None = None
        self._is_queued = False
        self._is_ended = self._is_closed = False
        stream.join(self)

    @property
    def cursor(self) -> bytes:
        return self._stream.cursor(self.place)

    @property
    def is_over(self) -> bool:
        """Whether nothing will come any more, now or after a reconnect."""
        return is_over(self.place)

    @property
    def lag(self) -> int:
        """Events that there are and that it was not given."""
        return self._stream.lag(self.place)

    def begin(self) -> bytes:
        """What there is at once, to go out with the beginning of the response; before `start`."""
        step = self.next()
        self._move(step)
        self._stream.count(step, self)
        if step.is_last:
            self.end("lagged" if step.is_cut else "over")
        return step.body

    def start(self, outlet: Outlet) -> None:
        """From now on what follows goes there."""
        self._outlet = outlet
        if self._is_ended:
            outlet.end()
        else:
            self.resume()

    def resume(self) -> None:
        """There is room again for what it lacks."""
        self.is_held = self._is_ended
        if not self._is_queued and not self.is_held:
            self._is_queued = True
            self._fanout.add(self)

    def advance(self, now: float) -> bool:
        """Take one step by itself."""
        self._is_queued = False
        if not self.is_held:
            try:
                step = self.next()
                self.take(step, now)
                self._stream.count(step, self)
            except Exception as error:  # noqa: BLE001 - whatever it is, others have done nothing
                self.fail(error)
        return False

    def next(self) -> Step:
        """The step that it takes next: that of all at its place, but for the first and the last of one with a limit."""
        if self.left is None:
            return self._stream.step(self.place)
        if self.bytes and (step := self._stream.step(self.place)).events < self.left:
            return step
        return self._stream.limited(self.place, self.left, is_first=not self.bytes)

    def take(self, step: Step, now: float) -> None:
        """Move on, and give its bytes to the outlet. Only while it is not held."""
        self._move(step)
        if step.body:
            self.is_held = not self._outlet.write(step, now)  # type: ignore[union-attr] # held while there is none
        if step.is_last:
            self.end("lagged" if step.is_cut else "over")
        elif step.has_more and not self.is_held:
            self.resume()

    def _move(self, step: Step) -> None:
        self.place = step.after
        if step.body:
            self.events += step.events
            self.bytes += len(step.body)
            if self.left is not None:
                self.left -= step.events
            self.has_moved = step.has_moved
        elif step.has_moved:
            self.has_moved = True

    def drain(self, reason: str = "drained") -> None:
        """Send the client away: give what there is to say, and end."""
        self.advance(asyncio.get_running_loop().time())
        self.end(reason)

    def end(self, reason: str) -> None:
        """Nothing more is given, and the client is told so. A second call does nothing."""
        is_first, self._is_ended, self.is_held = not self._is_ended, True, True
        if is_first:
            self.reason = reason
            if self._outlet:
                self._outlet.end()

    def last_words(self) -> bytes:
        """What is said at an end for this reason, beside what the log says: that the token has expired."""
        if self.reason != "expired":
            return b""
        return self._stream.last_words(self.place, self.reason, is_first=not self.bytes)

    def fail(self, error: Exception) -> None:
        """Nothing more can be given, by a fault of ours: the client comes back with its cursor."""
        log.error("a stream was cut off by a failure", exc_info=error)
        self._is_ended = self.is_held = True
        self.reason = "failed"
        if self._outlet:
            self._outlet.fail()

    def close(self) -> None:
        """Leave the stream. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = self._is_ended = self.is_held = True
        self._outlet = None
        try:
            self.on_close(self)  # first, for it asks how far the stream is
        except Exception:  # whatever it is, the connection has still to be ended
            log.exception("what follows the end of a stream has failed")
        finally:
            self._stream.leave(self)


def _nothing(_: Subscription) -> None:
    pass
