"""What is published to a shared run, wherever that runs: it waits in the store until the source has taken it."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import FullError, StoreAwayError
from .inbox import ROOM, ROOM_BYTES, Inbox
from .store.contract import Address

if TYPE_CHECKING:
    from .replica import Replica
    from .run import Run
    from .store.contract import Record

log = logging.getLogger("eventmux.run")


async def post(replica: Replica, address: Address, body: bytes) -> None:
    """Put the JSON of a message in the box of the log at `address`. Raises FullError if there is no room.

    A box of large messages takes fewer of them, so that all together have not much more than ROOM_BYTES.
    """
    room = max(1, min(ROOM, ROOM_BYTES // max(1, len(body))))
    if not await replica.store.post(_box_of(address), body, room, replica.keep):
        if fault := replica.store.fault:
            raise StoreAwayError(fault)
        raise FullError(f"{room} published events wait already: the source does not keep up")


class Box:
    """Fills the inbox of a run while that is here. A message that was taken when its replica died may come again."""

    def __init__(self, replica: Replica, address: Address, run: Run) -> None:
        self._replica = replica
        self._address = _box_of(address)
        self._run = run
        self._put: deque[int] = deque()  # offsets of what is in the inbox
        self._taken = 0  # the last offset that was taken
        self._is_trimming = False

    def open(self) -> None:
        self._run.inbox = Inbox(self._take)
        self._put.clear()
        self._replica.store.follow(self._address, self._taken, self._fill)

    def close(self) -> None:
        """What was not taken waits for the next run."""
        self._replica.store.unfollow(self._address)

    def _fill(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                message = self._run.enabled.message(json.loads(record.body))
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


def _box_of(address: Address) -> Address:
    return Address(address.source, f"{address.name}.box")
