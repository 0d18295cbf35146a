"""What a server is asked first on each connection: whether it is one that can be the store, and lets us.

A refusal is found here, and not at the first append: so a server that takes nothing is away until it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    MovedError,
    NoPermissionError,
    ResponseError,
    TryAgainError,
)

from ...errors import ConfigError
from . import commands
from .commands import Command, Names
from .scripts import ALL
from .target import Place

OLDEST = (6, 2)
# In what a server says to a user that may not: 6.2 and 7.0, newer ones, and where no script is between.
FORBIDDEN = ("executing the script can't", "ACL failure", "NOPERM")


class LostError(Exception):
    """The server cannot be asked now; the text says why, and has no secrets."""


def questions(names: Names) -> list[Command]:
    # PEXPIRE: 6.2 lets a script write where it lets nobody else (min-replicas-to-write).
    plain: list[Command] = [("INFO", "server"), ("INFO", "replication"), ("CLUSTER", "SLOTS")]
    writes: list[Command] = [("PEXPIRE", names.probes()[0], 1), commands.probe(names)]
    return [*plain, *(commands.load(script) for script in ALL), *writes]


def check(name: str, answers: Sequence[Any]) -> str:
    """The run id of the server. Raises ConfigError, LostError, or what it has answered."""
    server, replication, _, *rest = answers
    _raise_first((server, replication))
    said = fields(server)
    check_version(name, said.get("redis_version", ""))
    _raise_first(answer for answer in rest if isinstance(answer, MovedError))
    if fields(replication).get("role") == "slave":
        raise LostError(f"{name} is a replica, which takes nothing: name the master, or promote it")
    _raise_first(rest)
    probed = rest[-1]
    if isinstance(probed, bytes) and probed:
        text = probed.decode(errors="replace")
        raise _forbidden(name, text) if any(word in text for word in FORBIDDEN) else LostError(f"{name}: {text}")
    return said.get("run_id", "")


def nodes(answers: Sequence[Any]) -> list[Place]:
    """Of a cluster, as far as it may be known."""
    ranges = answers[2] if isinstance(answers[2], list) else []
    found = {(host.decode(), port): None for _, _, *those in ranges for host, port, *_ in those if host}
    return list(found)


def _raise_first(answers: Iterable[Any]) -> None:
    """The first error, but for those of a slot that is about to move: a probe's keys are looked for where it goes."""
    for answer in answers:
        is_on_its_way = isinstance(answer, AskError | TryAgainError) and not isinstance(answer, MovedError)
        if isinstance(answer, ResponseError) and not is_on_its_way:
            raise answer


def words_of(error: ResponseError) -> str:
    """What the server has said, with the word that it begins with, which redis-py takes off."""
    return f"{error.status_code or ''} {error}".strip()


def told(name: str, error: Exception) -> Exception:
    """ConfigError for what waiting does not mend, LostError for all else."""
    text = " ".join(str(error).split())
    if isinstance(error, AuthenticationError | NoPermissionError):
        return _forbidden(name, text)
    if isinstance(error, ResponseError) and "DB index" in text:
        return ConfigError([f"store: {name}: {text}"])
    return LostError(text if name in text else f"{name}: {text}")


def _forbidden(name: str, text: str) -> ConfigError:
    return ConfigError([f"store: {name} refuses the user or the password, or a command of that user: {text}"])


def fields(info: bytes) -> dict[str, str]:
    """What INFO says."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {key: value.strip() for key, _, value in lines if value}


def check_version(name: str, said: str) -> None:
    """Raises ConfigError for one that is too old. What says none is taken for new enough."""
    numbers = tuple(int(part) for part in said.split(".")[:2] if part.isdigit())
    if numbers and numbers < OLDEST:
        raise ConfigError([f"store: {name} is Redis {said}: 6.2 or newer is needed, or Valkey"])
