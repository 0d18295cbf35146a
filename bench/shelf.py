"""A Redis that a measurement breaks, and what the replicas have left in it."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from .redis_process import DURABLE
from .store import Store

if TYPE_CHECKING:
    from eventmux.store.contract import Record

NO_TTL = -1


class Shelf(Store):
    """One that keeps what it acknowledged when it is ended or killed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, DURABLE)

    def keys(self) -> Counter[str]:
        """How many there are of each kind: the source of a log, else `live`, `wake`, `box`."""
        with self.client() as client:
            return Counter(_kind(key.decode()) for key in client.scan_iter(count=1_000))

    def eternal(self) -> list[str]:
        """Keys that nothing will ever let go."""
        with self.client() as client:
            return [key.decode() for key in client.scan_iter(count=1_000) if client.pttl(key) == NO_TTL]

    def about(self, cursor: str | None) -> str:
        """What it has of the private logs that a cursor is of, for who asks what went wrong."""
        found: list[str] = []
        epochs = {
            word for part in (cursor or "").split(",") if len(word := part.rpartition("=")[2].partition(".")[0]) > 4
        }
        with self.client(socket_timeout=1.0) as client, contextlib.suppress(redis.RedisError):
            for key in client.scan_iter(count=1_000):
                if key.endswith(b":s") and any(epoch in key.decode() for epoch in epochs):
                    names = [name.decode() for name, _ in client.execute_command("XRANGE", key, "-", "+")]
                    holes = [
                        f"{before} {after}"
                        for before, after in itertools.pairwise(names)
                        if int(after.partition("-")[0]) > int(before.partition("-")[0]) + 1
                    ]
                    head = {name.decode(): value.decode() for name, value in client.hgetall(key[:-1] + b"h").items()}
                    found.append(f"{_kind(key.decode())} {names[:1]} to {names[-1:]}, holes {holes}, {head}")
        return "; ".join(found) or "no private log"

    def log_of(self, source: str) -> Sequence[Record]:
        """What is kept of the log of a shared source that has one log."""
        from eventmux.store.redis.commands import records  # noqa: PLC0415 - what only this needs

        with self.client() as client:
            streams = [
                key for key in client.scan_iter(count=1_000) if _kind(key.decode()) == source and key.endswith(b":s")
            ]
            if len(streams) != 1:
                raise RuntimeError(f"{source} has {len(streams)} logs: {streams}")
            entries = client.execute_command("XRANGE", streams[0], "-", "+")
        return records([(name, next(iter(fields.items()))) for name, fields in entries])


def _kind(key: str) -> str:
    """`{eventmux:0}:steady:digest:s` is of steady, `{eventmux:0}::replica:s` is a box of a replica."""
    return key.partition("}:")[2].partition(":")[0] or "box"
