"""One client's view of the promise: per source, what it received is what was appended, in order and once, or a
`stream.gap` names the hole. How the client gets its bytes is not known here.

In every log but that of `failing` the number of an event is its offset, so that the cursor can be checked too: it never
claims what has not been delivered. Clients must not read cursors like that; a measurement of the service may.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eventmux.cursor import Cursor, parse_cursor

from .wire import Block

FAILS_AFTER = 40  # events; `failing` has an error in its log after so many, and errors have offsets, but no numbers
RERUN = frozenset({"unknown", "restarted"})  # gaps after which another log begins


class Violation(Exception):  # noqa: N818 - it is what the report calls it
    """The promise is broken."""


@dataclass(slots=True)
class Known:
    """What a client has of one source. `n`: its cursor covers the log up to here; None: that is not known yet.

    `slack`: so many of the numbers may be errors in the log. `is_fresh`: it has come with the present connection.
    `is_doubtful`: its position is one of another source, whose cursor had no name; a gap or an end will say so.
    """

    log: str | None = None
    n: int | None = None
    slack: int = 0
    is_fresh: bool = True
    is_doubtful: bool = False
    has_ended: bool = False
    not_log: str | None = None  # the log that was given up: it must not come back


@dataclass(slots=True)
class Promise:
    """A chain of connections. `thirds`: the client asked for events of the name `third` only.

    `lengths`: how many events a finite source has. `can_lose`: private runs that have had the time to expire.
    """

    thirds: bool = False
    lengths: dict[str, int] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    cursor: str | None = None
    selection: tuple[str, ...] = ()
    can_lose: bool = False
    limit: int | None = None
    delivered: int = 0  # by the present connection
    events: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # gaps, ends and errors, by reason
    _known: dict[str, Known] = field(default_factory=dict)
    _is_placed: bool = False
    _is_nameless: bool = False

    def opened(self, selection: Sequence[str], *, can_lose: bool, limit: int | None) -> None:
        """A new connection, with the cursor of the last one."""
        # Until a cursor has come, the connection before may have opened another run without this client's knowledge.
        self.can_lose = can_lose or (self.can_lose and not self._is_placed)
        self.selection, self.limit = tuple(selection), limit
        self.delivered = 0
        self._is_placed = False
        self._is_nameless = self.cursor is not None and "=" not in self.cursor and "!" not in self.cursor
        for known in self._known.values():
            known.is_fresh = False

    @property
    def has_all_ended(self) -> bool:
        """Whether the cursor says that nothing more can come: the answer to it is 204."""
        return all(name in self._known and self._known[name].has_ended for name in self.selection)

    def told(self, block: Block) -> None:
        """Raises Violation."""
        if not self._is_placed and block.cursor is not None:
            # The cursor speaks of the present selection from now on, and of no other source.
            self._known = {name: known for name, known in self._known.items() if name in self.selection}
        if block.event == "stream.gap":
            self._gap(**block.data)
        elif block.event == "stream.end":
            self._end(**block.data)
        elif block.event == "stream.error":
            self.counts["error"] += 1
            if block.data["source"] != "failing":
                raise Violation(f"an error of a source that has none: {block.data}")
        elif block.event is not None:
            self._event(block)
        if block.cursor is not None:
            self.cursor = block.cursor
            self._is_placed = True
            self._moved(parse_cursor(block.cursor))

    def _of(self, name: str) -> Known:
        if name not in self.selection:
            raise Violation(f"an event of {name}, which was not asked for")
        known = self._known_of(name)
        if known.has_ended:
            raise Violation(f"an event of {name}, which has ended")
        return known

    def _known_of(self, name: str) -> Known:
        return self._known.setdefault(name, Known(is_doubtful=self._is_nameless))

    def _event(self, block: Block) -> None:
        data: dict[str, Any] = block.data
        name, log, n = data["source"], data["log"], data["n"]
        known = self._of(name)
        kind = "item" if n % 3 else "third"
        if block.event not in {kind, f"{name}/{kind}"} or block.source not in {None, name} or (self.thirds and n % 3):
            raise Violation(f"event {n} of {name} came as {block.event} of {block.source}")
        if log == known.not_log or known.log not in {None, log}:
            raise Violation(f"{name} goes on in log {log}, was {known.log or known.not_log}, and no gap says so")
        if known.n is not None:
            first, last = self._next(known.n + 1), self._next(known.n + 1 + known.slack)
            if not first <= n <= last:
                raise Violation(f"{name} goes on with {n}, expected {first}" + f" to {last}" * (first != last))
        known.log, known.n, known.slack, known.is_doubtful = log, n, 0, False
        self.events += 1
        self.delivered += 1
        if self.limit and self.delivered > self.limit:
            raise Violation(f"{self.delivered} events, and the limit is {self.limit}")

    def _next(self, n: int) -> int:
        """The first number from `n` on that this client asked for."""
        return n + -n % 3 if self.thirds else n

    def _gap(self, source: str, reason: str, missed: int | None) -> None:
        known = self._of(source)
        self.counts[f"gap {reason}" + " (cursor of another source)" * known.is_doubtful] += 1
        if reason in RERUN:
            if not self.may_begin_anew(source, known):
                raise Violation(f"{source}: a gap {reason}, and its log cannot be gone")
            known.n, known.log, known.not_log, known.slack, known.is_doubtful = None, None, known.log, 0, False
        elif missed is None:
            if not known.is_fresh:
                raise Violation(f"{source}: a gap {reason} that does not say how many are missed")
            known.n = None  # since an earlier time: where it goes on is for the cursor to say
        elif missed <= 0:
            raise Violation(f"{source}: a gap of {missed}")
        elif known.n is not None:
            self.counts["missed"] += missed
            # Each time that the source has failed, one of the missed is its error.
            errors = min(missed, missed // FAILS_AFTER + 2) if source == "failing" else 0
            known.slack += errors
            known.n += missed - errors

    def _end(self, source: str, reason: str) -> None:
        known = self._of(source)
        known.has_ended = True
        self.counts[f"end {reason}"] += 1
        if reason == "completed":
            length = self.lengths.get(source)
            if length is None:
                raise Violation(f"{source} has ended: completed, and it never does")
            if known.n is not None and self._next(known.n + 1) <= length:
                raise Violation(f"{source} has ended after {known.n} of {length}")
        elif reason == "limit":
            if self.delivered != self.limit:
                raise Violation(f"{source} has ended after {self.delivered} events, and the limit is {self.limit}")
        elif reason != "lost" or not self.may_be_lost(source, known):
            raise Violation(f"{source} has ended: {reason}")

    def may_begin_anew(self, source: str, known: Known) -> bool:
        """Whether another log may take the place of the one that the client knows."""
        return source in self.shared or self.can_lose or known.is_doubtful

    def may_be_lost(self, source: str, known: Known) -> bool:
        """Whether a run may be gone without another in its place."""
        return source == "paid" and (self.can_lose or known.is_doubtful)

    def _moved(self, cursor: Cursor) -> None:
        """The cursor covers what was delivered, what was not asked for, and what a gap names; nothing else."""
        for name in self.selection:
            known = self._known_of(name)
            if cursor.has_ended(name) != known.has_ended:
                raise Violation(f"{name} has ended: {known.has_ended}; the cursor says {self.cursor}")
            position = cursor.position(name)
            if known.has_ended or name == "failing":
                continue
            if position is None:
                raise Violation(f"the cursor {self.cursor} says nothing of {name}")
            if known.n is None:
                known.n = position.offset
            skipped = self._next(known.n + 1) <= position.offset
            if skipped or position.offset < known.n:
                raise Violation(f"the cursor moved {name} from {known.n} to {position.offset}")
            known.n = position.offset
