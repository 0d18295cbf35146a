"""What a store does, whichever it is. Who runs a source, and who reads it, is decided above; nothing here is decided.

eventmux.testing.store is the same as tests: a store of a third party passes it, or is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from ..policy import Bounds


EMPTY_KEEP = 60.0  # seconds that a log without an event stays when nobody reads it


class Address(NamedTuple):
    """Of a log. `name` tells the logs of a source apart: a digest of its parameters, or a private run's epoch."""

    source: str
    name: str


class Record(NamedTuple):
    """One event as it is stored. `at`: nanoseconds since 1970. Where `ended` is given the log is over for this reason:
    it is no event, and its offset is that of the last one.
    """

    offset: int
    epoch: str
    at: int
    event: str
    is_json: bool
    body: bytes
    ended: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a replica wants of a log, again and again, for `lease` seconds each time.

    `writes`: the right to write it, if nobody else has that. `reads`: to be counted among its readers. `opens`: begin
    the log where there is none (`none`), also where it is over (`over`), or never. `epoch`: of a log that begins, or
    that the store may have lost a part of. `label`: what is noted with a log that begins. `keep`: seconds that it stays
    when nobody claims it.
    """

    address: Address
    replica: str
    lease: float
    keep: float
    epoch: str = ""
    label: str = ""
    writes: bool = False
    reads: bool = False
    opens: Literal["never", "none", "over"] = "never"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a log is, and what came of a claim. `term`: with which this replica may write now, None if it may not.

    `lineage`: the epochs of the log, the oldest first, each with the offset after which it began. A position is in this
    log if its epoch is there and no later one began before its offset. `owner`: who has or had the right to write;
    `is_owned`: whether that still holds. `readers`: other replicas that read it.
    """

    epoch: str
    lineage: tuple[tuple[str, int], ...]
    last: int
    ended: str | None
    label: str
    term: int | None
    owner: str
    is_owned: bool
    readers: tuple[str, ...]


def common(lineage: Sequence[tuple[str, int]], epoch: str, offset: int) -> int:
    """Up to which offset a reader has what a log of this lineage has. It is at `offset`, its last event of `epoch`."""
    names = [name for name, _ in lineage]
    if epoch not in names:
        return 0
    later = lineage[names.index(epoch) + 1 :]
    return min(offset, later[0][1]) if later else offset


@dataclass(frozen=True, slots=True)
class Append:
    """Records that follow `after`, under a `term`; their own offsets and epochs do not matter. `skips`: whether
    `after` may be further than the log's last offset, because what is between was let go. `ended`: the log is over
    with these. `epoch`: that the writer takes the log to have, "" where it does not mind.
    """

    address: Address
    term: int
    after: int
    records: Sequence[Record]
    bounds: Bounds
    keep: float
    skips: bool = False
    ended: str | None = None
    epoch: str = ""


class Appended(NamedTuple):
    """What became of an append. `last` is the log's last offset now.

    `refused`: `fenced`, if the term is over; `offset`, if `after` is not the last one: then nothing was appended, or it
    had been by an earlier attempt; `epoch`, if the log has another one, or the store may have lost something since the
    last claim: claim again; `full`, if the store has no room now; `unable`, if it cannot take it for a reason of its
    own, which it logs: ask again later. None: all of it is in the log.
    """

    last: int
    refused: Literal["fenced", "offset", "epoch", "full", "unable"] | None = None


Sink: TypeAlias = "Callable[[Sequence[Record]], None]"


class Store(Protocol):
    """All methods that wait raise StoreAwayError where the store cannot be asked now; what they were to do may then
    have been done or not. Batches are answered in their order.
    """

    @property
    def fault(self) -> str | None:
        """Why the store cannot be asked, or takes nothing, now; for an operator, without secrets. None: all well."""
        ...

    async def open(self, on_return: Callable[[], None]) -> None:
        """Begin. A store that is away is waited for in the background; `on_return` is called when one that was away
        is back, before anything more is given to a sink. Raises ConfigError for what waiting does not mend: a wrong
        password, a version that is too old.
        """
        ...

    async def close(self) -> None: ...

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Standing | None]:
        """None where there is no log and none was to be begun."""
        ...

    async def append(self, appends: Sequence[Append]) -> Sequence[Appended]:
        """Each is done as a whole or not at all. What is over the bounds is let go; the newest record stays."""
        ...

    async def read(self, address: Address, after: int, limit: int) -> Sequence[Record]:
        """The first records after this offset that are still there, the end of the log among them."""
        ...

    def follow(self, address: Address, after: int, sink: Sink) -> None:
        """Give `sink` what comes after this offset, in order and once, until `unfollow`; in the loop's thread, and not
        before this has returned. A sink must not raise.
        """
        ...

    def unfollow(self, address: Address) -> None: ...

    async def release(self, address: Address, replica: str) -> Sequence[str]:
        """From now on the replica neither writes nor reads the log. Returns the replicas that do read it.

        A log without an event that nobody reads stays for EMPTY_KEEP: whoever asks for new parameters begins one.
        """
        ...

    async def drop(self, addresses: Sequence[Address]) -> None:
        """Let go the logs as a whole."""
        ...

    async def live(self, replica: str, seconds: float) -> None:
        """The replica is there for so long. Logs that were claimed with a lease of 0 are owned while it is."""
        ...

    async def post(self, address: Address, body: bytes, room: int, keep: float) -> bool:
        """Append a record to a box, which is a log that everybody may write to and that one follows. False if it has
        `room` records already. It stays for `keep` seconds after the last post.
        """
        ...

    async def trim(self, address: Address, offset: int) -> None:
        """Let go what a box has up to this offset."""
        ...

    async def get(self, key: str) -> bytes | None:
        """A value that was put under a key, until its time is over."""
        ...

    async def swap(self, key: str, before: bytes | None, after: bytes | None, seconds: float) -> bool:
        """Put `after` in the place of `before`, for so long; None is no value. False if `before` is not there."""
        ...
