"""One connection to a server, one exchange at a time. An exchange that is not over in time, or is cancelled, closes the
connection: an answer that comes later is never taken for another's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    RedisError,
    TryAgainError,
)

from . import greeting
from .commands import Command, Names, packed
from .greeting import LostError
from .replies import Parser
from .target import Place, Target

MAX_WAIT = 2.0  # seconds between two tries
FIRST_WAIT = 0.05

MAX_MOVES = 4  # from one node of a cluster to another until the one is found that has the slot
PAUSE = 0.05  # seconds before a server is asked again that cannot yet
# What a server says while it cannot do a thing that it will do soon. MovedError is one of them, as an AskError.
SOON = AskError | TryAgainError | ClusterDownError | MasterDownError


class Backoff:
    """Seconds to wait before the next try; the first comes at once."""

    def __init__(self) -> None:
        self._tries = 0

    def reset(self) -> None:
        self._tries = 0

    def next(self) -> float:
        self._tries += 1
        if self._tries == 1:
            return 0.0
        longest = min(MAX_WAIT, FIRST_WAIT * 2.0 ** min(self._tries - 2, 16))
        return longest * (0.5 + random.random() / 2)  # noqa: S311 - no secret


class Link:
    """A connection that its one user makes anew whenever it is lost. `names`: of the shard that it is for. `run_id`:
    which server, and which life of it.
    """

    def __init__(self, target: Target, names: Names, timeout: float) -> None:
        self.run_id = ""
        self._target = target
        self._questions = greeting.questions(names)
        self._timeout = timeout
        self._place: Place | None = None
        self._connection: AbstractConnection | None = None

    @property
    def is_up(self) -> bool:
        return self._connection is not None and self._connection.is_connected

    @property
    def name(self) -> str:
        return f"{self._place[0]}:{self._place[1]}" if self._place else self._target.name

    async def connect(self) -> None:
        """Raises ConfigError for what waiting does not mend, LostError for all else."""
        for _ in range(MAX_MOVES):
            try:
                await self._connect()
            except MovedError as moved:
                self.move((moved.host, moved.port))
            else:
                return
        raise LostError(f"{self.name}: no node of the cluster says that it has the keys")

    async def _connect(self) -> None:
        await self.drop()
        self._connection = self._target.connection(self._place)
        try:
            async with asyncio.timeout(self._timeout):
                await self._connection.connect()  # type: ignore[no-untyped-call]
                answers = await self.exchange(self._questions, self._timeout)
                self.run_id = greeting.check(self.name, answers)
                self._target.learn(greeting.nodes(answers))
        except BaseException as error:
            name = self.name
            self._place = self._target.another()
            await self.drop()
            if isinstance(error, MovedError):
                raise
            if isinstance(error, TimeoutError):
                raise LostError(f"{name} does not answer within {self._timeout:g} s") from None
            if isinstance(error, RedisError | OSError):
                raise greeting.told(name, error) from error
            raise

    async def exchange(self, commands: Sequence[Command], timeout: float) -> list[Any]:  # noqa: ASYNC109 - closes, too
        """Write all, and read all the answers; a ResponseError of one is its answer. Raises LostError."""
        connection = self._connection
        if connection is None:
            raise LostError(f"no connection to {self.name}")
        words = packed(commands, self.run_id)
        try:
            async with asyncio.timeout(timeout):
                await connection.send_packed_command(words, check_health=False)
                # Of a connection's own `read_response` a third of an exchange's time here is spent.
                parser: Parser = connection._parser  # type: ignore[assignment] # noqa: SLF001 - it is ours
                return await parser.read(len(commands))
        except TimeoutError:
            await self.drop()
            raise LostError(f"{self.name} does not answer within {timeout:g} s") from None
        except (RedisError, OSError, RuntimeError) as error:  # the last is uvloop's, of a transport that is closed
            await self.drop()
            raise greeting.told(self.name, error) from error
        except BaseException:
            await self.drop()
            raise

    async def verify(self) -> None:
        """Raises LostError where the other side has closed it while nothing was asked."""
        if self._connection is None or not self.is_up or await self._connection.can_read():
            await self.drop()
            raise LostError(f"{self.name} has closed the connection")

    def move(self, place: Place) -> None:
        """Be of another node from the next `connect` on; where that fails, of the URL's or of one that it has named."""
        self._place = place

    async def drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
