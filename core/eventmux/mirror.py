"""A channel that is what a store has of a log: it grows at its end as records come, and at its beginning when somebody
asks for what is older. Who writes the log is not known here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from .sse import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .channel import Channel
    from .store.contract import Address, Record, Store

PAGE = 256  # records that are read at a time

log = logging.getLogger("eventmux.store")


class Mirror:
    """`on_stranger`: a record of an epoch that is not known has come, and nothing is taken before `follow` is called.
    `on_end`: the log is over, and the channel knows it.
    """

    def __init__(
        self,
        address: Address,
        channel: Channel,
        store: Store,
        *,
        on_stranger: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.address = address
        self.channel = channel
        self._store = store
        self._on_stranger = on_stranger
        self._on_end = on_end
        self._floor = 0  # what is up to here the store does not have
        self._filling = asyncio.Lock()
        self._grown: asyncio.Future[None] | None = None
        self._is_following = self._is_leading = self._is_over = False

    def follow(self) -> None:
        """Take what anybody writes, from where the channel ends. Does nothing where that is so, or the log is over."""
        self._is_leading = False
        if not (self._is_following or self._is_over):
            self._is_following = True
            self._store.follow(self.address, self.channel.history.last, self._take)

    def resume(self) -> None:
        """Follow where a stranger had stopped that."""
        if not self._is_leading:
            self.follow()

    def lead(self) -> None:
        """Only `give` says from now on what is written: nobody else may."""
        self._is_following, self._is_leading = False, True
        self._store.unfollow(self.address)

    def give(self, offset: int, frames: Sequence[Frame]) -> None:
        """These were written here, and are in the store after `offset`."""
        history = self.channel.history
        for at, frame in enumerate(frames, offset + 1):
            if at == history.last + 1 and not self._is_over:
                self.channel.receive(frame)
        self._wake()

    def close(self) -> None:
        """What comes is not taken any more, and nobody waits for it. A second call does nothing: another may follow the
        log by now.
        """
        if not self._is_over:
            self._is_over = True
            self._store.unfollow(self.address)
            self._wake()

    def _take(self, records: Sequence[Record]) -> None:
        channel = self.channel
        history = channel.history
        for record in records:
            if record.epoch != channel.epoch and record.offset > channel.aliases.get(record.epoch, -1):
                self._is_following = False
                self._store.unfollow(self.address)
                self._on_stranger()
                break
            if record.ended is not None:
                self.close()
                channel.end(record.ended)
                self._on_end()
                break
            if record.offset > history.last + 1:
                self._skip_to(record.offset - 1)
            if record.offset > history.last:
                channel.receive(_frame(record))
        self._wake()

    def _wake(self) -> None:
        grown, self._grown = self._grown, None
        if grown and not grown.done():
            grown.set_result(None)

    async def reach(self, offset: int) -> None:
        """Return when the channel has what is up to `offset`, or gets no more."""
        while self.channel.history.last < offset and not self._is_over:
            self._grown = self._grown or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._grown)

    async def catch_up(self, offset: int) -> None:
        """Return when the channel has what is up to `offset`, which the store says that it has, and has let go what the
        store has no more: its readers are told of the gap. Raises StoreAwayError.
        """
        history = self.channel.history
        while history.last < offset and not self._is_over:
            found = await self._store.read(self.address, history.last, 1)
            if found and found[0].offset <= offset:
                await self.reach(found[0].offset)
            elif history.last < offset:
                self._skip_to(offset)

    def _skip_to(self, offset: int) -> None:
        """The store has let go what was between: readers are told of the gap."""
        last = self.channel.history.last
        log.warning("source %s: events %d to %d are not in the store any more", self.address.source, last + 1, offset)
        self.channel.history.begin_after(offset)

    async def fill(self, offset: int) -> None:
        """Have what follows `offset`, as far as the store has it and the bounds leave room. Raises StoreAwayError."""
        async with self._filling:
            history = self.channel.history
            missing = history.first - 1 - max(offset, self._floor)
            room = history.bounds.events - (history.last + 1 - history.first)
            if min(missing, room) <= 0:
                return
            after = history.first - 1 - min(missing, room)
            read = await self._read(after)
            wanted = history.first - 1
            found = [(at, frame) for at, frame in read if at <= wanted]
            if found and found[-1][0] < wanted:  # a copy may have a hole right before what is here
                found = []
            history.prepend([frame for _, frame in found])
            if len(found) < wanted - after:  # the store has no more
                self._floor = history.first - 1
                if history.first <= history.last and self._floor:
                    history.evicted_at = history.after(self._floor, 1)[0].at - 1

    async def _read(self, after: int) -> list[tuple[int, Frame]]:
        """What follows, up to what the channel has, without a hole."""
        channel = self.channel
        history = channel.history
        frames: list[tuple[int, Frame]] = []
        while True:
            page = await self._store.read(self.address, after, PAGE)
            for record in page:
                if record.ended is not None or record.offset >= history.first:
                    return frames
                if record.epoch != channel.epoch and record.epoch not in channel.aliases:
                    frames.clear()  # the log has begun anew; or this is older than the epochs that are remembered
                    continue
                if frames and record.offset != frames[-1][0] + 1:
                    frames.clear()
                frames.append((record.offset, _frame(record)))
            if len(page) < PAGE:
                return frames if frames and frames[-1][0] >= history.first - 1 else []
            after = page[-1].offset
            if len(frames) > history.bounds.events + PAGE:
                del frames[: -history.bounds.events]


def _frame(record: Record) -> Frame:
    frame = Frame(record.event, record.body, is_json=record.is_json)
    frame.at = record.at
    return frame
