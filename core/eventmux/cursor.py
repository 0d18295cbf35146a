r"""Positions and cursors, text to value and back. Which log a position is in, and what it holds, is not known here.

One source:      9fQ2.41                      epoch, dot, the offset of the last event received
Several:         clock=9fQ2.41,echo=Zk...w.7  each with its name; an epoch equal to the one before is left out: echo=.7
A run is over:   counter!                     the name alone, so that a 204 needs no memory of the log
With a token:    ~9fQ2.41                     given to a principal: whoever comes back with it and without a token is
                                              not let in as nobody. ~Ab3dEf6h~9fQ2.41: its stream was opened by a ticket

All of it is within what CORS lets pass as `Last-Event-ID` without preflight: at most 128 bytes, none of "():<>?@[\]{}
(WHATWG Fetch, CORS-unsafe request-header byte).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

MAX_CURSOR = 4096  # bytes read from a client; a stream of 32 sources needs less than 3,400

_POSITION = re.compile(r"(?:(?P<name>[a-z][a-z0-9-]{0,62})=)?(?P<epoch>[\w-]{0,64})\.(?P<offset>\d{1,18})", re.ASCII)
_ENDED = re.compile(r"(?P<name>[a-z][a-z0-9-]{0,62})!", re.ASCII)
_MARK = re.compile(r"~(?:(?P<proof>[\w-]{8})~)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Position:
    """The offset of the last event received, and the log that it counts in."""

    epoch: str
    offset: int


NOWHERE = Position("-", 0)  # in a log that there never was


@dataclass(frozen=True, slots=True)
class Cursor:
    """What a client has of each source: a position, or None where it has seen the end.

    A cursor of one source carries no name; its position stands under the empty one. `mark`: None for one that nobody
    had to prove himself for, else the proof that its stream's ticket gave, or "" where there was no ticket.
    """

    positions: dict[str, Position | None]
    mark: str | None = None

    def position(self, name: str) -> Position | None:
        """The position of a source that has not ended; None too for one that the cursor does not know."""
        return self.positions.get(name) or self.positions.get("")

    @classmethod
    def unreadable(cls) -> Cursor:
        """What stands for a cursor that makes no sense: a position in a log that there never was."""
        return cls({"": NOWHERE})

    def has_ended(self, name: str) -> bool:
        return name in self.positions and self.positions[name] is None


def parse_cursor(text: str) -> Cursor:
    """Raises ValueError for what no cursor looks like; that is a gap to its sender, never an error status."""
    if len(text) > MAX_CURSOR:
        raise ValueError("the cursor is too long")
    positions: dict[str, Position | None] = {}
    epoch = ""
    mark = _MARK.match(text)
    for part in text[mark.end() if mark else 0 :].split(","):
        if ended := _ENDED.fullmatch(part):
            name, position = ended["name"], None
        elif match := _POSITION.fullmatch(part):
            epoch = match["epoch"] or epoch
            name, position = match["name"] or "", Position(epoch, int(match["offset"]))
            if not epoch:
                raise ValueError("the cursor's first position has no epoch")
        else:
            raise ValueError("the cursor cannot be read")
        if name in positions:
            raise ValueError("the cursor names a source twice")
        positions[name] = position
    if "" in positions and len(positions) > 1:
        raise ValueError("the cursor has a position without a name")
    return Cursor(positions, (mark["proof"] or "") if mark else None)


MARK = b"~"  # before the cursor of a principal that had to prove itself


def new_proof() -> str:
    """48 random bits, of no use without the ticket that they belong to."""
    return secrets.token_urlsafe(6)


def mark_of(proof: str) -> bytes:
    """What stands before the cursor of a stream that was opened by the ticket with this proof."""
    return b"~%b~" % proof.encode()


SHARED_LETTERS = 4  # of a shared log's epoch; a private one has 22


def shared_epoch() -> str:
    """Four letters (24 bits) tell one log from the next; more would cost a merged cursor its 128 bytes."""
    return secrets.token_urlsafe(3)


def private_epoch() -> str:
    """128 random bits: whoever has them may return to the run."""
    return secrets.token_urlsafe(16)


class CursorWriter:
    """The cursor of one stream as bytes, rewritten at every event: only one number changes."""

    __slots__ = ("_epochs", "_mark", "_names", "_offsets", "_parts", "_prefixes", "_slots")

    def __init__(self, positions: list[tuple[str, str, int | None]], mark: bytes = b"") -> None:
        """`positions`: (source, epoch, offset) in the order of the stream; offset None for one that has ended.
        `mark`: what stands before them.
        """
        self._mark = mark
        # Positions with one epoch stand side by side, so that it is written once: the private runs of a request.
        epochs = [epoch for _, epoch, _ in positions]
        order = sorted(range(len(positions)), key=lambda index: epochs.index(epochs[index]))
        self._slots = [order.index(index) for index in range(len(positions))]
        positions = [positions[index] for index in order]
        self._names = [name for name, _, _ in positions]
        self._epochs = [epoch for _, epoch, _ in positions]
        self._offsets = [offset for _, _, offset in positions]
        self._prefixes: list[bytes] = []
        self._parts: list[bytes] = []
        self._write()

    def _write(self) -> None:
        is_named = len(self._names) > 1
        self._prefixes, self._parts = [], []
        before = None
        for name, epoch, offset in zip(self._names, self._epochs, self._offsets, strict=True):
            if offset is None:
                self._prefixes.append(b"")
                self._parts.append(b"%b!" % name.encode())
                continue
            label = f"{name}=" if is_named else ""
            self._prefixes.append(f"{label}{'' if epoch == before else epoch}.".encode())
            self._parts.append(b"%b%d" % (self._prefixes[-1], offset))
            before = epoch

    def move(self, index: int, offset: int) -> None:
        slot = self._slots[index]
        self._offsets[slot] = offset
        self._parts[slot] = b"%b%d" % (self._prefixes[slot], offset)

    def place(self, index: int, epoch: str, offset: int) -> None:
        """Another log than before."""
        slot = self._slots[index]
        self._epochs[slot], self._offsets[slot] = epoch, offset
        self._write()

    def end(self, index: int) -> None:
        self._offsets[self._slots[index]] = None
        self._write()

    def text(self) -> bytes:
        return self._mark + b",".join(self._parts)
