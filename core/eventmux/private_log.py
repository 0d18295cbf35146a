"""A private run's log, which is here, and its copy in a store, which is a little behind: for a client that comes back
to another replica.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from .channel import LOST
from .part import SENT_BYTES, SENT_EVENTS
from .replica import REST_SECONDS
from .store.contract import Append, Appended, Claim, Record, Standing

if TYPE_CHECKING:
    from .channel import Channel
    from .replica import Replica
    from .sse import Frame
    from .store.contract import Address

log = logging.getLogger("eventmux.store")

REFRESHED = 3  # times in its keep that the copy of a silent log is claimed again


class PrivateLog:
    """Nobody waits for the store: what falls out of the history before it was copied is missing in the copy, and who
    reads it there is told so. `label`: whom the log is for; `keep`: seconds that its copy outlives the last word.
    """

    def __init__(self, replica: Replica, address: Address, channel: Channel, label: str, keep: float) -> None:
        self.address = address
        self._replica = replica
        self._channel = channel
        self._label = label
        self._keep = keep
        self._term: int | None = None
        self._copied = 0
        self._ended: str | None = None
        self._is_last = False
        self._told = asyncio.Event()  # that it is over
        self._followed_until = self._claimed_at = 0.0

    @property
    def last(self) -> int:
        return self._copied

    @property
    def is_needed(self) -> bool:
        return self._followed_until > asyncio.get_running_loop().time()

    def seek(self) -> bool:
        self._replica.hurry(self)
        return True

    def rest(self, closing: asyncio.Task[bool] | None, *, is_leaving: bool) -> None:  # noqa: ARG002 - for all parts
        if not is_leaving:
            self._replica.discard(self)
            if self._term is not None:
                self._replica.drop(self.address)
        elif self._term is not None and not self._told.is_set():
            if self._ended is None:
                self._ended = LOST
            self._replica.spawn(self._finish(), f"rest {self.address.source}")

    async def _finish(self) -> None:
        self._replica.mark(self)
        try:
            async with asyncio.timeout(REST_SECONDS):
                await self._told.wait()
        except TimeoutError:
            log.warning("source %s: what a run said last is not in the store", self.address.source)

    def append(self, frame: Frame) -> None:
        self._channel.append(frame)
        if self._term is None or self.is_needed:
            self._replica.mark(self)
        else:
            self._replica.mark_later(self)

    def end(self, reason: str) -> None:
        self._channel.end(reason)
        self._ended = reason
        self._replica.mark(self)

    @property
    def is_full(self) -> bool:
        return self._channel.is_full

    async def room(self) -> None:
        await self._channel.room()

    def claim(self) -> Claim | None:
        now = asyncio.get_running_loop().time()
        is_new = self._term is None  # also without an event: a client may be on its way to another replica already
        is_old = self._term is not None and not self._told.is_set() and now - self._claimed_at > self._keep / REFRESHED
        if not (is_new or is_old):
            return None
        self._claimed_at = now
        return Claim(
            self.address,
            self._replica.id,
            lease=0,
            keep=self._keep,
            epoch=self._channel.epoch,
            label=self._label,
            writes=True,
            opens="none",
        )

    def stand(self, standing: Standing | None, last: int) -> None:  # noqa: ARG002 - as the replica calls it
        if standing is None:
            return
        if standing.ended is not None:  # the last append had been heard, and its answer was lost
            self._copied = standing.last
            self._told.set()
        elif standing.term is not None:
            self._term, self._copied = standing.term, standing.last
            self._replica.mark(self)
        else:  # a store that has lost everything has not been told yet that this replica lives
            self._claimed_at = -math.inf

    def returned(self) -> None:
        self._claimed_at = -math.inf
        self._told.clear()

    def hear(self, reached: int) -> None:
        # As long as after a reader here: also where the store is away, and no word comes.
        self._followed_until = asyncio.get_running_loop().time() + self._keep
        self._channel.reached(min(reached, self._channel.history.last))

    def batch(self) -> Append | None:
        history = self._channel.history
        if self._term is None:
            self._replica.hurry(self)
            return None
        if self._told.is_set() or (self._copied >= history.last and self._ended is None):
            return None
        after = max(self._copied, history.first - 1)
        records, size = [], 0
        for frame in history.after(after, SENT_EVENTS):
            records.append(Record(0, "", frame.at, frame.event, frame.is_json, frame.body))
            size += len(frame.body)
            if size >= SENT_BYTES:
                break
        is_all = after + len(records) == history.last
        self._is_last = is_all and self._ended is not None
        return Append(
            self.address,
            self._term,
            after,
            records,
            history.bounds,
            self._keep,
            skips=True,
            ended=self._ended if is_all else None,
        )

    def appended(self, outcome: Appended) -> None:
        if outcome.refused in {None, "offset"}:
            self._copied = max(self._copied, outcome.last)
            if outcome.refused is None and self._is_last:
                self._told.set()
        else:
            self._term = None  # the store has lost what it knew of the log
        if not self._told.is_set() and (self._copied < self._channel.history.last or self._ended):
            self._replica.mark(self)
