"""One connection to a server: where it goes, what is said when it begins, one exchange at a time.

redis-py connects, speaks TLS, names the user and packs words; its own time-outs and retries are off. An exchange that
is not over in time, or is cancelled, closes the connection: an answer that comes later is never taken for another's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from ...errors import ConfigError
from .commands import Command, packed
from .replies import Parser
from .scripts import ALL

OLDEST = (6, 2)
MAX_WAIT = 2.0  # seconds between two tries
FIRST_WAIT = 0.05

# What a server says while it cannot do a thing that it will do soon.
SOON = AskError | TryAgainError | ClusterDownError | MasterDownError


class LostError(Exception):
    """The server cannot be asked now; the text says why, and has no secrets."""


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


class Target:
    """Where the store is. `name` is for texts. Raises ConfigError for a URL that is none."""

    def __init__(self, url: str, timeout: float) -> None:
        try:
            words: dict[str, Any] = dict(parse_url(url))
        except ValueError:  # its text may have a part of the password
            raise ConfigError(
                ["store: not the URL of a Redis server: write redis://, rediss:// or unix://, and %-encode a password"]
            ) from None
        self._kind: type[AbstractConnection] = words.pop("connection_class", Connection)
        for word in ("max_connections", "timeout", "socket_timeout", "retry_on_timeout", "health_check_interval"):
            words.pop(word, None)
        self._words = {
            **words,
            "socket_timeout": None,
            "socket_connect_timeout": timeout,
            "protocol": 2,
            "parser_class": Parser,
            "driver_info": None,
            "client_name": "eventmux",
        }
        if issubclass(self._kind, UnixDomainSocketConnection):
            self.name = str(words.get("path"))
        else:
            self.name = f"{words.get('host', 'localhost')}:{words.get('port', 6379)}"

    def connection(self, place: tuple[str, int] | None) -> AbstractConnection:
        """To this place of a cluster, None for where the URL says."""
        if place is None or issubclass(self._kind, UnixDomainSocketConnection):
            return self._kind(**self._words)
        words = {**self._words, "host": place[0], "port": place[1]}
        return (SSLConnection if issubclass(self._kind, SSLConnection) else Connection)(**words)


class Link:
    """A connection that its one user makes anew whenever it is lost. `run_id`: which server, and which life of it."""

    def __init__(self, target: Target, timeout: float) -> None:
        self.run_id = ""
        self._target = target
        self._timeout = timeout
        self._place: tuple[str, int] | None = None
        self._connection: AbstractConnection | None = None

    @property
    def is_up(self) -> bool:
        return self._connection is not None and self._connection.is_connected

    @property
    def name(self) -> str:
        return f"{self._place[0]}:{self._place[1]}" if self._place else self._target.name

    async def connect(self) -> None:
        """Raises ConfigError for what waiting does not mend, LostError for all else."""
        await self.drop()
        self._connection = self._target.connection(self._place)
        try:
            async with asyncio.timeout(self._timeout):
                await self._connection.connect()  # type: ignore[no-untyped-call]
                await self._greet()
        except BaseException as error:
            name = self.name
            self._place = None
            await self.drop()
            if isinstance(error, TimeoutError):
                raise LostError(f"{name} does not answer within {self._timeout:g} s") from None
            if isinstance(error, RedisError | OSError):
                raise _told(name, error) from error
            raise

    async def _greet(self) -> None:
        asked: list[Command] = [("INFO", "server"), ("INFO", "replication")]
        server, replication, *loaded = await self.exchange(
            asked + [("SCRIPT", "LOAD", script.text) for script in ALL], self._timeout
        )
        for answer in (server, replication, *loaded):
            if isinstance(answer, ResponseError):
                raise answer
        said = fields(server)
        check_version(self.name, said.get("redis_version", ""))
        if fields(replication).get("role") == "slave":
            raise LostError(f"{self.name} is a replica, which takes nothing: name the master, or promote it")
        self.run_id = said.get("run_id", "")

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
        except (RedisError, OSError) as error:
            await self.drop()
            raise _told(self.name, error) from error
        except BaseException:
            await self.drop()
            raise

    async def is_stale(self) -> bool:
        """Whether it has been closed by the other side while nothing was asked."""
        return self._connection is None or not self.is_up or await self._connection.can_read()

    def move(self, place: tuple[str, int]) -> None:
        """Be of another node from the next `connect` on; where that fails, of the URL's again."""
        self._place = place

    async def drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


def _told(name: str, error: Exception) -> Exception:
    text = " ".join(str(error).split())
    if isinstance(error, AuthenticationError | NoPermissionError):
        return ConfigError([f"store: {name} refuses the user or the password, or a command of that user: {text}"])
    if isinstance(error, ResponseError) and "DB index" in text:
        return ConfigError([f"store: {name}: {text}"])
    return LostError(text if name in text else f"{name}: {text}")


def fields(info: bytes) -> dict[str, str]:
    """What INFO says."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {key: value.strip() for key, _, value in lines if value}


def check_version(name: str, said: str) -> None:
    """Raises ConfigError for one that is too old. What says none is taken for new enough."""
    numbers = tuple(int(part) for part in said.split(".")[:2] if part.isdigit())
    if numbers and numbers < OLDEST:
        raise ConfigError([f"store: {name} is Redis {said}: 6.2 or newer is needed, or Valkey"])
