"""The store in Redis 6.2 or newer, or Valkey: what the Protocol says, shard by shard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, TypeVar

from redis.exceptions import ResponseError

from ...errors import StoreAwayError
from ..contract import Address, Append, Appended, Claim, Record, Sink, Standing
from . import commands
from .asker import Asker
from .commands import Command, Names
from .link import Link, LostError, Target
from .reader import MAX_BLOCK, Reader

OUT_OF_MEMORY = "OOM command not allowed"

T = TypeVar("T")


class Shard:
    """The logs of one slot, and the two connections to where they are: one that asks, one that waits."""

    def __init__(self, target: Target, names: Names, timeout: float, max_block: float) -> None:
        self.names = names
        self.asker = Asker(Link(target, timeout), timeout, self._asker_is_up)
        self._reading = Link(target, timeout)
        self.reader = Reader(self._reading, self.asker, names, timeout, max_block, self._returned)
        self._on_return: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def fault(self) -> str | None:
        return self.asker.fault or self.reader.fault

    async def open(self) -> None:
        """Raises ConfigError."""
        try:
            await self.asker.link.connect()
        except LostError as error:
            self.asker.away(str(error))

    def start(self, on_return: Callable[[], None]) -> None:
        self._on_return = on_return
        self._tasks = [asyncio.create_task(self.asker.run()), asyncio.create_task(self.reader.run())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        self.asker.away("the store is closed")
        await self.asker.link.drop()
        await self._reading.drop()

    def _asker_is_up(self) -> None:
        if self.reader.is_up:  # else it says so itself
            self._on_return()

    def _returned(self) -> None:
        self._on_return()


class RedisStore:
    """`url`: redis://, rediss:// or unix://. `prefix`: of all keys; other stores of the same server have others.
    `shards`: into so many slots of a cluster the logs are spread; all replicas have the same number. `timeout`:
    seconds for an answer. `max_block`: seconds that a reader waits for in one go.
    """

    def __init__(
        self, url: str, *, prefix: str = "eventmux", shards: int = 1, timeout: float = 2.0, max_block: float = MAX_BLOCK
    ) -> None:
        target = Target(url, timeout)
        self._shards = [Shard(target, Names(prefix, number), timeout, max_block) for number in range(shards)]
        self._is_full = False

    @property
    def fault(self) -> str | None:
        faults = (shard.fault for shard in self._shards)
        return next((fault for fault in faults if fault), "out of memory" if self._is_full else None)

    async def open(self, on_return: Callable[[], None]) -> None:
        opened = await asyncio.gather(*(shard.open() for shard in self._shards), return_exceptions=True)
        for failed in opened:
            if failed is not None:
                await self.close()
                raise failed
        for shard in self._shards:
            shard.start(on_return)

    async def close(self) -> None:
        for shard in self._shards:
            await shard.close()

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Standing | None]:
        """Where a log cannot begin because the server has no room, there is None; `fault` says so."""
        answers = await self._ask_each(claims, lambda one: one.address, commands.claim)
        return [None if self._has_no_room(answer) else commands.standing(_checked(answer)) for answer in answers]

    async def append(self, appends: Sequence[Append]) -> Sequence[Appended]:
        answers = await self._ask_each(appends, lambda one: one.address, commands.append)
        done = [
            Appended(one.after, "full") if self._has_no_room(answer) else commands.appended(_checked(answer))
            for one, answer in zip(appends, answers, strict=True)
        ]
        if any(one.refused is None for one in done) and all(one.refused != "full" for one in done):
            self._is_full = False
        return done

    async def read(self, address: Address, after: int, limit: int) -> Sequence[Record]:
        shard = self._shard(address)
        entries = await self._ask(shard, ("XRANGE", shard.names.stream(address), f"({after}-0", "+", "COUNT", limit))
        return commands.records(entries)

    def follow(self, address: Address, after: int, sink: Sink) -> None:
        self._shard(address).reader.follow(address, after, sink)

    def unfollow(self, address: Address) -> None:
        self._shard(address).reader.unfollow(address)

    async def release(self, address: Address, replica: str) -> Sequence[str]:
        shard = self._shard(address)
        readers = await self._ask(shard, commands.release(shard.names, address, replica))
        return tuple(reader.decode() for reader in readers)

    async def drop(self, addresses: Sequence[Address]) -> None:
        answers = await self._ask_each(
            addresses, lambda one: one, lambda names, one: ("UNLINK", names.head(one), names.stream(one))
        )
        for answer in answers:
            _checked(answer)

    async def live(self, replica: str, seconds: float) -> None:
        await asyncio.gather(
            *(
                self._ask(shard, ("SET", shard.names.live + replica, "", "PX", commands.milliseconds(seconds)))
                for shard in self._shards
            )
        )

    async def post(self, address: Address, body: bytes, room: int, keep: float) -> bool:
        """Also False where the server has no room; then `fault` says so."""
        shard = self._shard(address)
        (answer,) = await shard.asker.ask([commands.post(shard.names, address, body, room, keep)])
        return not self._has_no_room(answer) and bool(_checked(answer))

    async def trim(self, address: Address, offset: int) -> None:
        shard = self._shard(address)
        await self._ask(shard, ("XTRIM", shard.names.stream(address), "MINID", f"{offset + 1}-0"))

    async def get(self, key: str) -> bytes | None:
        shard = self._shard_of(key)
        found: bytes | None = await self._ask(shard, ("GET", shard.names.value(key)))
        return found

    async def swap(self, key: str, before: bytes | None, after: bytes | None, seconds: float) -> bool:
        shard = self._shard_of(key)
        return bool(await self._ask(shard, commands.swap(shard.names, key, before, after, seconds)))

    def _shard(self, address: Address) -> Shard:
        return self._shard_of(f"{address.source}:{address.name}")

    def _shard_of(self, text: str) -> Shard:
        return self._shards[commands.shard_of(text, len(self._shards))]

    async def _ask(self, shard: Shard, command: Command) -> Any:
        return _checked((await shard.asker.ask([command]))[0])

    async def _ask_each(
        self, items: Sequence[T], address_of: Callable[[T], Address], command: Callable[[Names, T], Command]
    ) -> list[Any]:
        """The answers in the order of the items; each shard is asked once, and all at once."""
        if len(self._shards) == 1:
            (shard,) = self._shards
            return await shard.asker.ask([command(shard.names, item) for item in items])
        shards = [self._shard(address_of(item)) for item in items]
        order = sorted(range(len(items)), key=lambda i: self._shards.index(shards[i]))
        groups = [(shard, list(group)) for shard, group in groupby(order, key=lambda i: shards[i])]
        asked = await asyncio.gather(
            *(shard.asker.ask([command(shard.names, items[i]) for i in group]) for shard, group in groups)
        )
        answers: dict[int, Any] = {}
        for (_, group), found in zip(groups, asked, strict=True):
            answers.update(zip(group, found, strict=True))
        return [answers[i] for i in range(len(items))]

    def _has_no_room(self, answer: object) -> bool:
        if isinstance(answer, ResponseError) and OUT_OF_MEMORY in f"{answer.status_code} {answer}":
            self._is_full = True
            return True
        return False


def _checked(answer: Any) -> Any:
    if isinstance(answer, ResponseError):
        raise StoreAwayError(f"Redis refuses: {answer.status_code or ''} {answer}")
    return answer
