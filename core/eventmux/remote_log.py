"""The log of a private run on another replica, read here from its copy in a store."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from .channel import LOST, WINDOW_EVENTS
from .mirror import Mirror
from .part import Tenant, aliases_of
from .store.contract import Append, Appended, Claim, Standing

if TYPE_CHECKING:
    from .channel import Channel
    from .replica import Replica
    from .store.contract import Address

TOLD_EVENTS = WINDOW_EVENTS // 4  # that a reader takes before the writer, who waits for it, is told


class RemoteLog:
    """It is over when the copy is, or when the replica that runs it is gone. `owner`: that replica.
    While the store was away nobody could say that he lives: so nobody is taken for gone soon after.
    """

    def __init__(
        self, replica: Replica, address: Address, channel: Channel, tenant: Tenant, *, owner: str, keep: float
    ) -> None:
        self.address = address
        self._replica = replica
        self._channel = channel
        self._tenant = tenant
        self._owner = owner
        self._keep = keep
        self._told = 0
        self._is_losing = False
        self.mirror = Mirror(
            address, channel, replica.store, on_stranger=lambda: replica.hurry(self), on_end=tenant.finish
        )
        channel.on_reached = self._reached

    is_needed = False

    @property
    def last(self) -> int:
        return self._channel.history.last

    def seek(self) -> bool:
        return False

    def rest(self, closing: asyncio.Task[bool] | None, *, is_leaving: bool) -> None:  # noqa: ARG002 - for all parts
        self.mirror.close()
        self._replica.discard(self)

    def claim(self) -> Claim | None:
        if self._channel.ended is not None:
            return None
        self._tell()
        return Claim(self.address, self._replica.id, self._replica.lease, self._keep)

    def _reached(self) -> None:
        if self._channel.reached_offset >= self._told + TOLD_EVENTS:
            self._tell()

    def _tell(self) -> None:
        self._told = self._channel.reached_offset
        self._replica.tell(self._owner, "reached", self.address, self._told)

    def stand(self, standing: Standing | None, last: int) -> None:
        if self._channel.ended is not None:
            return
        if standing is None or standing.last < last:
            if self._replica.is_steady:  # else who runs it may still be about to copy again what the store has lost
                self._lose()
            return
        if standing.epoch != self._channel.epoch:
            self._tenant.rename(standing.epoch, aliases_of(standing.lineage))
        self.mirror.follow()
        if not standing.is_owned and standing.ended is None and self._replica.is_steady and not self._is_losing:
            self._is_losing = True
            self._replica.spawn(self._lose_after(standing.last), f"lose {self.address.source}")

    async def _lose_after(self, last: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._replica.lease):
                await self.mirror.reach(last)
        self._lose()

    def _lose(self) -> None:
        if self._channel.ended is None and self._replica.at(self.address) is self:  # else it has been let go meanwhile
            self.mirror.close()
            self._channel.end(LOST)
            self._tenant.finish()

    def returned(self) -> None:
        pass  # what has become of it is what it is told next

    def hear(self, reached: int) -> None:
        pass

    def batch(self) -> Append | None:
        return None

    def appended(self, outcome: Appended) -> None:
        pass
