"""What all clients of a chaos run have in common: where they go, what they have seen, and when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from .clients import Totals
from .journal import Journal
from .replica import Replica
from .witness import Witness


@dataclass
class Scene:
    """`cuts`: how often the connections of all were cut. `look`: what the store
    has of the logs of a cursor, as text.
    """

    replicas: list[Replica]
    journal: Journal
    look: Callable[[str | None], str]
    witness: Witness = field(default_factory=Witness)
    totals: Totals = field(default_factory=Totals)
    sockets: set[socket.socket] = field(default_factory=set)
    cuts: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def cut(self) -> None:
        """Every connection of a client, in the middle of whatever it says."""
        self.cuts += 1
        for connection in self.sockets:
            with contextlib.suppress(OSError):  # it has just ended by itself
                connection.shutdown(socket.SHUT_RDWR)
