"""A shared run's log in a store: read here whoever writes it, and written here while this replica has the lease."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from .channel import WINDOW_BYTES, WINDOW_EVENTS
from .cursor import shared_epoch
from .errors import StoreAwayError
from .mirror import Mirror
from .part import SENT_BYTES, SENT_EVENTS, Tenant, aliases_of
from .replica import REST_SECONDS
from .store.contract import Append, Appended, Claim, Record, Standing

if TYPE_CHECKING:
    from .channel import Channel, Clock
    from .replica import Replica
    from .sse import Frame
    from .store.contract import Address

log = logging.getLogger("eventmux.store")


class SharedLog:
    """What is appended waits here until the store has it, and only then is seen by readers: by all replicas in one
    order, and by nobody if the lease was lost meanwhile. The writer waits when a window of it waits.

    While it is written here, it is not read: a replica that is told by the store what it has just said spends half as
    much again on it. Whatever ends that, it is read again from where the channel ends.
    """

    def __init__(self, replica: Replica, address: Address, channel: Channel, tenant: Tenant, clock: Clock) -> None:
        self.address = address
        self._replica = replica
        self._channel = channel
        self._tenant = tenant
        self._clock = clock
        self.mirror = Mirror(
            address, channel, replica.store, on_stranger=lambda: replica.hurry(self), on_end=self._finish
        )
        self._is_wanted = self._is_unsure = self.is_resting = False
        self._term: int | None = None
        self._sent_term: int | None = None  # of the append that is on its way
        self._after = 0  # the last offset in the store
        self._pending: deque[Frame] = deque()
        self._size = self._sent = self._at = 0
        self._ended: str | None = None
        self._readers: tuple[str, ...] = ()
        self._moved: asyncio.Future[None] | None = None
        self._rested = asyncio.Event()

    @property
    def last(self) -> int:
        return self._channel.history.last

    @property
    def is_needed(self) -> bool:
        return self._term is not None and bool(self._readers)

    # what the run asks

    def seek(self) -> bool:
        self._is_wanted = True
        self._replica.hurry(self)
        return False

    def rest(self, closing: asyncio.Task[bool] | None, *, is_leaving: bool) -> None:  # noqa: ARG002 - for all parts
        if self.is_resting:
            return
        self._is_wanted, self.is_resting = False, True
        self.mirror.close()
        self._tenant.rest()
        self._replica.spawn(self._leave(closing), f"rest {self.address.source}")

    async def _leave(self, closing: asyncio.Task[bool] | None) -> None:
        """The lease is let go when the generator is closed: two generators of one log do not overlap."""
        try:
            if closing:
                await asyncio.wait({closing})
            async with asyncio.timeout(REST_SECONDS):
                while self._term is not None and (self._pending or self._ended):
                    await self._move()
                if self._replica.at(self.address) is self:
                    others = await self._replica.store.release(self.address, self._replica.id)
                    await asyncio.gather(*(self._replica.say(other, "free", self.address) for other in others))
        except (StoreAwayError, TimeoutError):
            log.warning("source %s: its lease is left to its time: the store is away", self.address.source)
        finally:
            self._discard_pending()
            self._replica.discard(self)
            self._rested.set()

    async def rested(self) -> None:
        """Return when a part that rests has let go its lease; at once for one that does not rest."""
        if self.is_resting:
            await self._rested.wait()

    # where the run's events go

    def append(self, frame: Frame) -> None:
        # Rising within the log, also where the clock of the replica before was ahead.
        newest = self._channel.history.newest.at if self._channel.history.first <= self._channel.history.last else 0
        frame.at = self._at = max(self._clock.now(), self._at + 1, newest + 1)
        if self._term is not None:
            self._pending.append(frame)
            self._size += len(frame.body)
            self._replica.mark(self)

    def end(self, reason: str) -> None:
        self._ended = reason
        self._replica.mark(self)

    @property
    def is_full(self) -> bool:
        return len(self._pending) >= WINDOW_EVENTS or self._size >= WINDOW_BYTES

    async def room(self) -> None:
        while self.is_full:
            await self._move()

    async def _move(self) -> None:
        self._moved = self._moved or asyncio.get_running_loop().create_future()
        await asyncio.shield(self._moved)

    def _has_moved(self) -> None:
        moved, self._moved = self._moved, None
        if moved and not moved.done():
            moved.set_result(None)

    # what the replica asks and tells

    def claim(self) -> Claim | None:
        if (not self._is_wanted and self._term is None) or self._channel.ended is not None:
            return None
        replica = self._replica
        return Claim(
            self.address,
            replica.id,
            replica.lease,
            replica.keep,
            epoch=shared_epoch(),
            writes=True,
            reads=self._is_wanted,
            opens="none",
        )

    def stand(self, standing: Standing | None, last: int) -> None:
        if standing is None or self.is_resting or not self._is_same(standing, last):
            return
        self._readers = standing.readers
        if standing.term is None or standing.ended is not None:
            if self._term is not None:
                self._lose()
        elif not self._is_wanted:
            pass
        elif standing.term != self._term:
            if self._term is not None:  # another may have written meanwhile: what waits here does not follow that
                self._lose()
            self._term, self._after, self._is_unsure = standing.term, standing.last, False
            self._replica.spawn(self._rise(standing.term), f"rise {self.address.source}")
        elif self._is_unsure:
            self._is_unsure = False
            self._settle(standing.last)
            self._replica.mark(self)

    def _is_same(self, standing: Standing, last: int) -> bool:
        """Whether the store has the log that the channel has. It may have another epoch, from where they are equal."""
        channel, aliases = self._channel, aliases_of(standing.lineage)
        if standing.epoch == channel.epoch:
            is_same = standing.last >= last
        else:
            is_same = self.last <= aliases.get(channel.epoch, -1)
            if is_same:
                self._tenant.rename(standing.epoch, aliases)
        if is_same:
            self.mirror.resume()
        else:
            self._forget_term()
            self._tenant.fork()
        return is_same

    async def _rise(self, term: int) -> None:
        """Begin when the channel has all that others have written."""
        await self._replica.retry(self.mirror.catch_up, self._after)
        await self._replica.retry(self.mirror.fill, self.last - SENT_EVENTS)
        if self._term == term and self._is_wanted:
            self.mirror.lead()
            self._tenant.gain()

    def returned(self) -> None:
        pass  # what has become of it is what it is told next

    def hear(self, reached: int) -> None:
        pass

    def batch(self) -> Append | None:
        if self._term is None or self._is_unsure or not (self._pending or self._ended):
            return None
        records, size = [], 0
        for frame in self._pending:
            records.append(Record(0, "", frame.at, frame.event, frame.is_json, frame.body))
            size += len(frame.body)
            if len(records) == SENT_EVENTS or size >= SENT_BYTES:
                break
        self._sent, self._sent_term = len(records), self._term
        return Append(
            self.address,
            self._term,
            self._after,
            records,
            self._channel.history.bounds,
            self._replica.keep,
            ended=self._ended if self._sent == len(self._pending) else None,
            epoch=self._channel.epoch,
        )

    def appended(self, outcome: Appended) -> None:
        if self._term is None or self._term != self._sent_term:
            return
        if outcome.refused == "fenced":
            self._lose()
        elif outcome.refused == "epoch" or (
            outcome.refused == "offset" and not self._after < outcome.last <= self._after + self._sent
        ):
            self._is_unsure = True
            self._replica.hurry(self)
        elif outcome.refused is None or outcome.refused == "offset":  # an earlier attempt had been heard, then
            is_all = outcome.refused is None and self._sent == len(self._pending)
            self._settle(outcome.last)
            if is_all and self._ended:
                self._forget_term()
                self.mirror.follow()  # to its end
        if self._pending or self._ended:
            self._replica.mark(self)

    def _settle(self, last: int) -> None:
        """The store has what is up to `last`."""
        count = min(max(0, last - self._after), len(self._pending))
        written = [self._pending.popleft() for _ in range(count)]
        self._size -= sum(len(frame.body) for frame in written)
        self.mirror.give(self._after, written)
        self._after = last
        if self.last < last:  # something is in the store that was not written by this run
            self.mirror.follow()
        self._has_moved()

    def _lose(self) -> None:
        self._forget_term()
        self.mirror.follow()
        self._tenant.lose()

    def _forget_term(self) -> None:
        self._term, self._ended = None, None
        self._discard_pending()
        self._has_moved()

    def _discard_pending(self) -> None:
        if self._pending:
            name, count = self.address.source, len(self._pending)
            log.warning("source %s: %d events were never appended: another replica has the lease", name, count)
            self._pending.clear()
            self._size = 0

    def _finish(self) -> None:
        self._forget_term()
        self._tenant.finish()
