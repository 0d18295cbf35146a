"""What is published to a shared run, wherever that runs: it waits in the store until the source has taken it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic_core import from_json

from .errors import FullError, StoreAwayError
from .inbox import ROOM, ROOM_BYTES, Inbox
from .store.contract import Address

if TYPE_CHECKING:
    from .replica import Replica
    from .run import Run
    from .store.contract import Record

log = logging.getLogger("eventmux.run")

LOOK_SECONDS = 1.0  # how often it is looked whether what was posted has been taken
LEASES = 3  # that it is waited for; after two, another replica may have begun to take it


class Box:
    """Fills the inbox of a run while that is here. A message that was taken when its replica died may come again."""

    def __init__(self, replica: Replica, address: Address, run: Run) -> None:
        self._replica = replica
        self._address = Address(address.source, f"{address.name}.box")
        self._run = run
        self._put: deque[int] = deque()  # offsets of what is in the inbox
        self._taken = 0  # the last offset that was taken
        self._is_trimming = False
        self._attending: asyncio.Task[None] | None = None

    @property
    def is_attended(self) -> bool:
        """Whether something was posted here, and no replica has taken it yet: the run is wanted here then, since the
        one that has it elsewhere may be about to end.
        """
        return self._attending is not None and not self._attending.done()

    async def post(self, body: bytes) -> None:
        """Put the JSON of a message in. Raises FullError if there is no room.

        A box of large messages takes fewer of them, so that all together have not much more than ROOM_BYTES.
        """
        room = max(1, min(ROOM, ROOM_BYTES // max(1, len(body))))
        if not await self._replica.store.post(self._address, body, room, self._replica.keep):
            if fault := self._replica.store.fault:
                raise StoreAwayError(fault)
            raise FullError(f"{room} published events wait already: the source does not keep up")
        if not self.is_attended:
            self._attending = self._replica.spawn(self._attend(), f"attend {self._address.source}")

    async def _attend(self) -> None:
        """Return when all is taken, or nothing was for so long that the source seems not to want it."""
        clock, first, since = asyncio.get_running_loop().time, 0, 0.0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                found = await self._replica.store.read(self._address, 0, 1)
            except StoreAwayError:
                since = clock()  # nobody can take it
                continue
            if not found or (found[0].offset == first and clock() - since > LEASES * self._replica.lease):
                return
            if found[0].offset != first:
                first, since = found[0].offset, clock()

    def open(self) -> None:
        self._run.inbox = Inbox(self._take)
        self._put.clear()
        self._replica.store.follow(self._address, self._taken, self._fill)

    def close(self) -> None:
        """What was not taken waits for the next run."""
        self._replica.store.unfollow(self._address)
        if self._attending:
            self._attending.cancel()

    def _fill(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                message = self._run.enabled.message(from_json(record.body, allow_inf_nan=False))
            except Exception:  # of a replica with another version of the plugin
                log.exception("source %s cannot take what was published to it", self._run.enabled.name)
                continue
            self._put.append(record.offset)
            assert self._run.inbox is not None  # noqa: S101 - it was made in `open`
            self._run.inbox.add(message, len(record.body))

    def _take(self) -> None:
        self._taken = self._put.popleft()
        if not self._is_trimming:
            self._is_trimming = True
            self._replica.spawn(self._trim(), f"trim {self._address.source}")

    async def _trim(self) -> None:
        try:
            trimmed = 0
            while trimmed < self._taken:
                trimmed = self._taken
                await self._replica.store.trim(self._address, trimmed)
        except StoreAwayError:
            log.debug("the box of source %s is trimmed the next time", self._address.source)
        finally:
            self._is_trimming = False
