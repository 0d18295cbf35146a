"""What a replica and a run have to do with a log in a store, seen from either side. There are three kinds of parts:
`SharedLog` writes where it may and reads what anybody has written, `PrivateLog` copies what is written here, and
`RemoteLog` reads what another replica copies.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

    from .sse import Frame
    from .store.contract import Address, Append, Appended, Claim, Standing


SENT_EVENTS = 256  # in one append
SENT_BYTES = 256 * 1024


class Log(Protocol):
    """Where a run's events go. A channel is one."""

    def append(self, frame: Frame) -> None: ...

    def end(self, reason: str) -> None:
        """The run is over."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether the writer is to wait."""
        ...

    async def room(self) -> None:
        """Return when it is not full."""
        ...


class Seat(Protocol):
    """What a run asks of its part of a log."""

    @property
    def is_needed(self) -> bool:
        """Whether other replicas need the run that is here."""
        ...

    def seek(self) -> bool:
        """The run is wanted here. Whether it may begin at once; else it is told when it may."""
        ...

    def rest(self, closing: asyncio.Task[bool] | None, *, is_leaving: bool) -> None:
        """The run is not wanted any more once its generator is closed. `is_leaving`: because the process ends."""
        ...


class Tenant(Protocol):
    """What a part tells its run."""

    def gain(self) -> None:
        """It may begin: nobody else runs it, and its channel has all that there is."""
        ...

    def lose(self) -> None:
        """Another replica may begin it."""
        ...

    def rest(self) -> None:
        """It is not wanted here any more."""
        ...

    def finish(self) -> None:
        """It is over, wherever it ran."""
        ...

    def fork(self) -> None:
        """The store has another log than its channel."""
        ...

    def rename(self, epoch: str, aliases: Mapping[str, int]) -> None:
        """The same log has another epoch now."""
        ...


class Part(Protocol):
    """What the replica asks of a part, and tells it."""

    address: Address

    @property
    def last(self) -> int:
        """The last offset that is known here."""
        ...

    def claim(self) -> Claim | None:
        """What it wants of the log now, None for nothing."""
        ...

    def stand(self, standing: Standing | None, last: int) -> None:
        """What the log is. `last`: what was known here when that was asked."""
        ...

    def returned(self) -> None:
        """The store was away, and may have lost something."""
        ...

    def hear(self, reached: int) -> None:
        """A reader on another replica has taken what is up to this offset."""
        ...

    def batch(self) -> Append | None:
        """What is to be appended now, None for nothing."""
        ...

    def appended(self, outcome: Appended) -> None:
        """What became of the last batch."""
        ...


def aliases_of(lineage: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """The epochs that a log had before, each with its last offset."""
    return {epoch: end for (epoch, _), (_, end) in itertools.pairwise(lineage)}
