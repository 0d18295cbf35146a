"""Where the store is: what the URL says, and the nodes of a cluster that it has named. Nothing is asked here.

redis-py connects, speaks TLS, names the user and packs words; its own time-outs and retries are off.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)

from ...errors import ConfigError
from .replies import Parser

Place: TypeAlias = "tuple[str, int]"


class Target:
    """`name` is for texts. Raises ConfigError for a URL that is none."""

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
            "client_name": "eventmux",
            **words,
            "socket_timeout": None,
            "socket_connect_timeout": timeout,
            "protocol": 2,
            "parser_class": Parser,
            "driver_info": None,
        }
        self._nodes: tuple[Place, ...] = ()
        self._turn = 0
        if issubclass(self._kind, UnixDomainSocketConnection):
            self.name = str(words.get("path"))
        else:
            self.name = f"{words.get('host', 'localhost')}:{words.get('port', 6379)}"

    def connection(self, place: Place | None) -> AbstractConnection:
        """To this place of a cluster, None for where the URL says."""
        if place is None or issubclass(self._kind, UnixDomainSocketConnection):
            return self._kind(**self._words)
        words = {**self._words, "host": place[0], "port": place[1]}
        return (SSLConnection if issubclass(self._kind, SSLConnection) else Connection)(**words)

    def learn(self, nodes: Iterable[Place]) -> None:
        """These belong to the cluster now; none where there is no cluster."""
        self._nodes = tuple(nodes)

    def another(self) -> Place | None:
        """Where to try next when a place cannot be had: each node in its turn, and what the URL says between them. Any
        node knows where the keys are.
        """
        self._turn += 1
        places = [place for node in self._nodes for place in (None, node)] or [None]
        return places[self._turn % len(places)]
