"""What comes to the logs of a shard: one blocking XREAD over all that are followed, on a connection of its own."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import MovedError, ResponseError

from ...errors import ConfigError
from ..contract import Address, Sink, common
from .asker import Asker
from .commands import MILLISECONDS, Names, Word, lineage_of, milliseconds, records
from .greeting import LostError, words_of
from .link import PAUSE, SOON, Backoff, Link

MAX_BLOCK = 2.0  # seconds that one XREAD waits
WAKE_KEEP = 60.0
ENTRIES = 2048  # that one XREAD may bring, about
MIN_COUNT, MAX_COUNT = 8, 256  # entries of one stream in one XREAD
# An XREAD names all logs that are followed: 1 µs for each here, and half of one in Redis. Who follows many of them lets
# events gather meanwhile, so that this is a tenth of its time at most.
FEW = 100
GATHERING = 10e-6  # seconds for each

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Followed:
    address: Address
    position: bytes
    sink: Sink
    epoch: str = ""  # of the last record given

    @property
    def offset(self) -> int:
        return int(self.position.partition(b"-")[0])


class Reader:
    """`fault`: why nothing comes now; `on_fault` is called when that changes. `on_return` is called when something can
    come again.
    """

    def __init__(
        self,
        link: Link,
        asker: Asker,
        names: Names,
        timeout: float,
        max_block: float,
        *,
        on_return: Callable[[], None],
        on_fault: Callable[[], None],
    ) -> None:
        self.fault: str | None = None
        self.is_up = False
        self._link = link
        self._asker = asker
        self._names = names
        self._timeout = timeout
        self._max_block = max_block
        self._on_return = on_return
        self._on_fault = on_fault
        self._followed: dict[bytes, _Followed] = {}
        self._wake = names.wake(secrets.token_hex(8)).encode()
        self._woken = b"0-0"
        self._waking: asyncio.Future[list[Any]] | None = None
        self._is_reading = False
        self._is_behind = False  # something is followed that the XREAD under way does not know
        self._server = ""

    def follow(self, address: Address, after: int, sink: Sink) -> None:
        self._followed[self._names.stream(address).encode()] = _Followed(address, b"%d-0" % after, sink)
        self._is_behind = True
        if self._is_reading and self._waking is None:
            self._wake_up()

    def _wake_up(self) -> None:
        self._waking = self._asker.put(
            [
                ("XADD", self._wake, "MAXLEN", 1, "*", "", ""),
                ("PEXPIRE", self._wake, milliseconds(WAKE_KEEP)),
            ]
        )
        self._waking.add_done_callback(self._is_woken)

    def _is_woken(self, asked: asyncio.Future[list[Any]]) -> None:
        self._waking = None
        if asked.cancelled():
            return
        if error := asked.exception():  # what is new is followed when this XREAD ends, by itself
            _log.debug("the reader was not woken: %s", error)
        elif self._is_reading and self._is_behind and asked.result()[0] == self._woken:
            self._wake_up()  # the XREAD that was woken is over, and the next one had begun when more was followed

    def unfollow(self, address: Address) -> None:
        self._followed.pop(self._names.stream(address).encode(), None)

    async def run(self) -> None:
        """For ever."""
        backoff, was_away = Backoff(), self._asker.fault is not None
        while True:
            try:
                await self._begin()
                if was_away:
                    self._on_return()
                while True:
                    await self._round()
                    backoff.reset()
            except (LostError, ConfigError) as error:
                if not self.is_up:  # it was not lost, but could not be had
                    self._set_fault(str(error))
            except Exception as error:  # noqa: BLE001 - nobody waits for this task: it is said, and tried again
                _log.exception("the reader of the store has failed")
                self._set_fault(f"{type(error).__name__}, see the log")
                await self._link.drop()
            finally:
                self.is_up = False
            was_away = True
            await asyncio.sleep(backoff.next())

    async def _begin(self) -> None:
        """Be connected, and go on from where the server has what was read."""
        await self._link.connect()
        await self._asker.up()
        self.is_up = True
        if self._link.run_id != self._server:
            await self._look_back(list(self._followed.values()))
            self._server = self._link.run_id
        self._set_fault(None)

    def _set_fault(self, fault: str | None) -> None:
        self.fault = fault
        self._on_fault()

    async def _round(self) -> None:
        """One XREAD, and its records to their sinks."""
        followed, self._is_behind = dict(self._followed), False
        count = min(MAX_COUNT, max(MIN_COUNT, ENTRIES // (len(followed) + 1)))
        block = int(self._max_block * MILLISECONDS)
        words: list[Word] = ["XREAD", "COUNT", count, "BLOCK", block, "STREAMS", self._wake, *followed, self._woken]
        words += [one.position for one in followed.values()]
        self._is_reading = True
        try:
            (answer,) = await self._link.exchange([tuple(words)], self._max_block + self._timeout)
        finally:
            self._is_reading = False
        if isinstance(answer, SOON) and not isinstance(
            answer, MovedError
        ):  # it is the right server, which has it in hand
            self._set_fault(self._told(answer))
            await asyncio.sleep(PAUSE)
            return
        if isinstance(answer, ResponseError):
            await self._refused(answer)
        if self.fault is not None:
            self._set_fault(None)
            self._on_return()
        for key, entries in answer or ():
            if key == self._wake:
                self._woken = entries[-1][0]
            elif (one := followed[key]) is self._followed.get(key):
                await self._give(key, one, entries)
                await asyncio.sleep(0)  # others of the loop have their turn
        if len(followed) > FEW:
            await asyncio.sleep(len(followed) * GATHERING)

    async def _give(self, key: bytes, one: _Followed, entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> None:
        found = records(entries)
        if one.epoch and found[0].epoch != one.epoch and await self._look_back([one]):
            return
        if self._followed.get(key) is one:
            one.position, one.epoch = entries[-1][0], found[-1].epoch
            one.sink(found)

    async def _look_back(self, followed: Sequence[_Followed]) -> bool:
        """The server may have lost what was read already, and have something else now in its place: where a log is
        behind its position, or an epoch began before that, go back to there. Returns whether any did.
        """
        heads = await self._link.exchange(
            [("HMGET", self._names.head(one.address), "e", "l") for one in followed], self._timeout
        )
        has_moved = False
        for one, head in zip(followed, heads, strict=True):
            if isinstance(head, ResponseError):
                await self._refused(head)
            lineage, last = head
            if lineage is not None:
                back = min(common(lineage_of(lineage), one.epoch, one.offset) if one.epoch else one.offset, int(last))
            else:
                back = 0 if one.epoch else one.offset
            if back < one.offset:
                one.position, one.epoch, has_moved = b"%d-0" % back, "", True
        return has_moved

    async def _refused(self, error: ResponseError) -> None:
        """Connect again: where it was said, else where the URL says. Always raises LostError."""
        await self._link.drop()
        if isinstance(error, MovedError):
            self._link.move((error.host, error.port))
        else:
            self.is_up = False
        raise LostError(self._told(error))

    def _told(self, error: ResponseError) -> str:
        return f"{self._link.name}: {words_of(error)}"
