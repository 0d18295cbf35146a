"""A store in the memory of one process: for the replicas of a test, and to see by what a store is to do.

A service with `store: memory` needs none: nobody else reads its histories.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..policy import Bounds
from .contract import EMPTY_KEEP, Address, Append, Appended, Claim, Record, Sink, Standing, common

SECOND = 1_000_000_000


@dataclass
class _Log:
    epoch: str
    label: str
    lineage: list[tuple[str, int]]
    life: int  # in which it was written
    records: list[Record] = field(default_factory=list)
    last: int = 0
    ended: str | None = None
    term: int = 0
    owner: str = ""
    owned_until: float | None = 0.0  # None: for as long as the owner lives
    readers: dict[str, float] = field(default_factory=dict)
    gone_at: float = 0.0


@dataclass
class Shelf:
    """What all stores of a test have together. `clock`: seconds. `life`: changes when something may have been lost."""

    clock: Callable[[], float] = time.monotonic
    lock: threading.RLock = field(default_factory=threading.RLock)
    logs: dict[Address, _Log] = field(default_factory=dict)
    values: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    living: dict[str, float] = field(default_factory=dict)
    life: int = 0
    followers: dict[Address, list[_Follower]] = field(default_factory=dict)
    posts: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # over all boxes, also those that are gone

    def log(self, address: Address) -> _Log | None:
        found = self.logs.get(address)
        if found and found.gone_at <= self.clock():
            del self.logs[address]
            return None
        return found

    def tell(self, address: Address) -> None:
        for follower in self.followers.get(address, ()):
            follower.wake()

    def lose(self, count: int) -> None:
        """Forget the last records of each log, as a server does that is followed by one with older data."""
        with self.lock:
            self.life += 1
            for address, log in list(self.logs.items()):
                log.records = log.records[: max(0, len(log.records) - count)]
                log.last = log.records[-1].offset if log.records else 0
                log.ended = log.records[-1].ended if log.records else None
                log.lineage = [(epoch, begin) for epoch, begin in log.lineage if begin <= log.last]
                log.epoch = log.lineage[-1][0]
                if not log.records:
                    del self.logs[address]

    def lives(self, replica: str) -> bool:
        return self.living.get(replica, 0.0) > self.clock()


@dataclass
class _Follower:
    shelf: Shelf
    address: Address
    after: int
    sink: Sink
    loop: asyncio.AbstractEventLoop
    is_gone: bool = False
    has_seen_end: bool = False
    epoch: str = ""  # of the last record given

    def wake(self) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._give)

    def _give(self) -> None:
        with self.shelf.lock:
            log = self.shelf.log(self.address)
            if log and self.epoch:
                self.after = min(common(log.lineage, self.epoch, self.after), log.last)
            found = [] if log is None else [one for one in log.records if self._is_new(one)]
        if self.is_gone or not found:
            return
        self.after, self.has_seen_end = found[-1].offset, found[-1].ended is not None
        self.epoch = found[-1].epoch
        self.sink(found)

    def _is_new(self, record: Record) -> bool:
        return record.offset > self.after or (
            record.ended is not None and record.offset == self.after and not self.has_seen_end
        )


class MemoryStore:
    """One replica's view of a shelf."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.shelf = shelf or Shelf()
        self._followed: dict[Address, _Follower] = {}

    @property
    def fault(self) -> str | None:
        return None

    async def open(self, on_return: Callable[[], None]) -> None:
        pass

    async def close(self) -> None:
        for address in list(self._followed):
            self.unfollow(address)

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Standing | None]:
        with self.shelf.lock:
            return [self._claim(claim) for claim in claims]

    def _claim(self, claim: Claim) -> Standing | None:
        shelf, now = self.shelf, self.shelf.clock()
        log = shelf.log(claim.address)
        if log is None or (log.ended is not None and claim.opens == "over"):
            if claim.opens == "never":
                return None
            log = shelf.logs[claim.address] = _Log(claim.epoch, claim.label, [(claim.epoch, 0)], shelf.life)
        log.gone_at = max(log.gone_at, now + max(claim.keep, 2 * claim.lease))
        if log.life != shelf.life and log.ended is None and claim.epoch:
            log.life = shelf.life
            if claim.epoch not in dict(log.lineage):
                log.epoch = claim.epoch
                log.lineage.append((claim.epoch, log.last))
        if claim.writes and log.ended is None:
            if log.owner != claim.replica and not self._is_owned(log):
                log.owner, log.term = claim.replica, log.term + 1
            if log.owner == claim.replica:
                log.owned_until = now + claim.lease if claim.lease else None
        if claim.reads:
            log.readers[claim.replica] = now + 2 * claim.lease
        return self._standing(log, claim.replica)

    def _standing(self, log: _Log, replica: str) -> Standing:
        now, is_owned = self.shelf.clock(), self._is_owned(log)
        return Standing(
            epoch=log.epoch,
            lineage=tuple(log.lineage),
            last=log.last,
            ended=log.ended,
            label=log.label,
            term=log.term if is_owned and log.owner == replica else None,
            owner=log.owner,
            is_owned=is_owned,
            readers=tuple(reader for reader, until in log.readers.items() if reader != replica and until > now),
        )

    def _is_owned(self, log: _Log) -> bool:
        if log.owned_until is None:
            return self.shelf.lives(log.owner)
        return log.owned_until > self.shelf.clock()

    async def append(self, appends: Sequence[Append]) -> Sequence[Appended]:
        with self.shelf.lock:
            return [self._append(one) for one in appends]

    def _append(self, append: Append) -> Appended:
        log = self.shelf.log(append.address)
        if log is None:
            return Appended(0, "epoch")
        if log.term != append.term or log.ended is not None or not log.owner:
            return Appended(log.last, "fenced")
        if log.life != self.shelf.life or append.epoch not in {"", log.epoch}:
            return Appended(log.last, "epoch")
        if append.after != log.last and not (append.skips and append.after > log.last):
            return Appended(log.last, "offset")
        log.last = append.after
        for record in append.records:
            log.last += 1
            log.records.append(record._replace(offset=log.last, epoch=log.epoch))
        if append.ended is not None:
            log.ended = append.ended
            log.records.append(Record(log.last, log.epoch, 0, "", is_json=True, body=b"", ended=append.ended))
        log.gone_at = max(log.gone_at, self.shelf.clock() + append.keep)
        _trim(log, append.bounds)
        self.shelf.tell(append.address)
        return Appended(log.last)

    async def read(self, address: Address, after: int, limit: int) -> Sequence[Record]:
        with self.shelf.lock:
            log = self.shelf.log(address)
            return [one for one in log.records if one.offset > after or one.ended][:limit] if log else []

    def follow(self, address: Address, after: int, sink: Sink) -> None:
        follower = _Follower(self.shelf, address, after, sink, asyncio.get_running_loop())
        with self.shelf.lock:
            self.unfollow(address)
            self._followed[address] = follower
            self.shelf.followers.setdefault(address, []).append(follower)
        follower.wake()

    def unfollow(self, address: Address) -> None:
        with self.shelf.lock:
            if follower := self._followed.pop(address, None):
                follower.is_gone = True
                self.shelf.followers[address].remove(follower)
                if not self.shelf.followers[address]:
                    del self.shelf.followers[address]

    async def release(self, address: Address, replica: str) -> Sequence[str]:
        with self.shelf.lock:
            log = self.shelf.log(address)
            if log is None:
                return ()
            log.readers.pop(replica, None)
            if log.owner == replica:
                log.owner, log.owned_until = "", 0.0
            readers = self._standing(log, replica).readers
            if not log.last and not readers:
                log.gone_at = min(log.gone_at, self.shelf.clock() + EMPTY_KEEP)
            return readers

    async def drop(self, addresses: Sequence[Address]) -> None:
        with self.shelf.lock:
            for address in addresses:
                self.shelf.logs.pop(address, None)

    async def live(self, replica: str, seconds: float) -> None:
        with self.shelf.lock:
            self.shelf.living[replica] = self.shelf.clock() + seconds

    async def post(self, address: Address, body: bytes, room: int, keep: float) -> bool:
        with self.shelf.lock:
            log = self.shelf.log(address)
            if log is None:
                log = self.shelf.logs[address] = _Log("", "", [("", 0)], self.shelf.life)
            if len(log.records) >= room:
                return False
            log.last = next(self.shelf.posts)
            log.records.append(Record(log.last, "", 0, "", is_json=True, body=body))
            log.gone_at = max(log.gone_at, self.shelf.clock() + keep)
            self.shelf.tell(address)
            return True

    async def trim(self, address: Address, offset: int) -> None:
        with self.shelf.lock:
            if log := self.shelf.log(address):
                log.records = [record for record in log.records if record.offset > offset]

    async def get(self, key: str) -> bytes | None:
        with self.shelf.lock:
            value, until = self.shelf.values.get(key, (b"", 0.0))
            return value if until > self.shelf.clock() else None

    async def swap(self, key: str, before: bytes | None, after: bytes | None, seconds: float) -> bool:
        with self.shelf.lock:
            value, until = self.shelf.values.get(key, (None, 0.0))
            if (value if until > self.shelf.clock() else None) != before:
                return False
            if after is None:
                self.shelf.values.pop(key, None)
            else:
                self.shelf.values[key] = after, self.shelf.clock() + seconds
            return True


def _trim(log: _Log, bounds: Bounds) -> None:
    oldest = time.time_ns() - int(bounds.age * SECOND) if bounds.age is not None else 0
    events = [record for record in log.records if record.ended is None]
    size = sum(len(record.body) for record in events)
    while len(events) > 1 and (len(events) > bounds.events or size > bounds.bytes or events[0].at < oldest):
        size -= len(events.pop(0).body)
    log.records = [*events, *(record for record in log.records if record.ended is not None)]
