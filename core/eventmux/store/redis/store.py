"""The store in Redis 6.2 or newer, or Valkey: what the Protocol says, shard by shard."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from redis.exceptions import ResponseError

from ...errors import StoreAwayError
from ..contract import Address, Append, Appended, Claim, Record, Sink, Standing
from . import commands
from .commands import Command, Names
from .greeting import words_of
from .outage import Outage
from .reader import MAX_BLOCK
from .shard import Shard
from .target import Target

OUT_OF_MEMORY = "OOM command not allowed"

T = TypeVar("T")

_log = logging.getLogger("eventmux.store")


class RedisStore:
    """`url`: redis://, rediss:// or unix://. `prefix`: of all keys; other stores of the same server have others.
    `shards`: into so many slots of a cluster the logs are spread; all replicas have the same number. `timeout`:
    seconds for an answer. `max_block`: seconds that a reader waits for in one go.
    """

    def __init__(
        self, url: str, *, prefix: str = "eventmux", shards: int = 1, timeout: float = 2.0, max_block: float = MAX_BLOCK
    ) -> None:
        target, self._outage = Target(url, timeout), Outage()
        self._shards = [
            Shard(target, Names(prefix, number), timeout, max_block, self._on_fault) for number in range(shards)
        ]
        self._is_open = False
        self._refused: set[tuple[str, str]] = set()  # source and words that were logged since the last sign of life

    @property
    def fault(self) -> str | None:
        return next((fault for shard in self._shards if (fault := shard.fault)), None)

    def _on_fault(self) -> None:
        if self._is_open:
            self._outage.note(self.fault)

    async def open(self, on_return: Callable[[], None]) -> None:
        opened = await asyncio.gather(*(shard.open() for shard in self._shards), return_exceptions=True)
        for failed in opened:
            if failed is not None:
                await self.close()
                raise failed
        self._is_open = True
        self._on_fault()
        for shard in self._shards:
            shard.start(on_return)

    async def close(self) -> None:
        self._is_open = False
        for shard in self._shards:
            await shard.close()

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Standing | None]:
        """Where a log cannot begin because the server has no room, there is None; `fault` says so."""
        answers = await self._ask_each(claims, lambda one: one.address, commands.claim)
        return [
            None if self._is_refused(one.address, answer) else commands.standing(answer)
            for one, answer in zip(claims, answers, strict=True)
        ]

    async def append(self, appends: Sequence[Append]) -> Sequence[Appended]:
        answers = await self._ask_each(appends, lambda one: one.address, commands.append)
        return [
            Appended(one.after, "full" if _has_no_room(answer) else "unable")
            if self._is_refused(one.address, answer)
            else commands.appended(answer)
            for one, answer in zip(appends, answers, strict=True)
        ]

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
        """It also finds out whether there is room again: a server that is out of memory refuses a plain SET, however
        small.
        """
        self._refused.clear()
        for shard, answers in await self._ask_all(lambda names: _signs_of_life(names, replica, seconds)):
            shard.set_full(_has_no_room(answers[1]))
            _checked(answers[0])

    async def post(self, address: Address, body: bytes, room: int, keep: float) -> bool:
        """Also False where the server has no room; then `fault` says so."""
        shard = self._shard(address)
        (answer,) = await shard.asker.ask([commands.post(shard.names, address, body, room, keep)])
        return not self._is_refused(address, answer) and bool(answer)

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

    async def _ask_all(self, ask: Callable[[Names], Sequence[Command]]) -> list[tuple[Shard, list[Any]]]:
        answers = await asyncio.gather(*(shard.asker.ask(ask(shard.names)) for shard in self._shards))
        return list(zip(self._shards, answers, strict=True))

    async def _ask_each(
        self, items: Sequence[T], address_of: Callable[[T], Address], command: Callable[[Names, T], Command]
    ) -> list[Any]:
        """The answers in the order of the items; each shard is asked once, and all at once."""
        if len(self._shards) == 1:
            (shard,) = self._shards
            return await shard.asker.ask([command(shard.names, item) for item in items])
        groups: dict[Shard, list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            groups[self._shard(address_of(item))].append(i)
        asked = await asyncio.gather(
            *(shard.asker.ask([command(shard.names, items[i]) for i in group]) for shard, group in groups.items())
        )
        answers: dict[int, Any] = {}
        for group, found in zip(groups.values(), asked, strict=True):
            answers.update(zip(group, found, strict=True))
        return [answers[i] for i in range(len(items))]

    def _is_refused(self, address: Address, answer: object) -> bool:
        """One log's refusal is not another's: it is noted here, and no error."""
        if not isinstance(answer, ResponseError):
            return False
        if _has_no_room(answer):
            self._shard(address).set_full(True)
        elif (said := (address.source, words_of(answer))) not in self._refused:
            self._refused.add(said)
            _log.error("the log of source %s: Redis refuses: %s", *said)
        return True


def _signs_of_life(names: Names, replica: str, seconds: float) -> list[Command]:
    plain = ("SET", names.live + replica, "", "PX", commands.milliseconds(seconds))
    return [commands.live(names, replica, seconds), plain]


def _has_no_room(answer: object) -> bool:
    return isinstance(answer, ResponseError) and OUT_OF_MEMORY in f"{answer.status_code} {answer}"


def _checked(answer: Any) -> Any:
    if isinstance(answer, ResponseError):
        raise StoreAwayError(f"Redis refuses: {words_of(answer)}")
    return answer
