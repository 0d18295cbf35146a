"""What a process keeps of the tickets that it has issued or that hold streams here, within bounds. What they are good
for is not known here.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

from . import tickets
from .tickets import REMEMBERED, TooManyTicketsError

T = TypeVar("T")


class Stub(Generic[T]):
    """`owner`: the principal's id. `opened`: streams that it holds open now. `until`: by the clock."""

    __slots__ = ("content", "is_used", "key", "opened", "owner", "until")

    def __init__(self, key: str, owner: str | None, content: T, until: float) -> None:
        self.key = key
        self.owner = owner
        self.content = content
        self.until = until
        self.is_used = False
        self.opened = 0


class Stubs(Generic[T]):
    """`clock`: seconds. `on_drop` is told of one that gives way to another."""

    def __init__(self, clock: Callable[[], float], on_drop: Callable[[Stub[T]], None] = lambda _: None) -> None:
        self._clock = clock
        self._on_drop = on_drop
        self._all: dict[str, Stub[T]] = {}
        self._unused: dict[str, Stub[T]] = {}  # the oldest first
        self._away: dict[str, Stub[T]] = {}  # used, and without a stream now; away for the longest first
        self._waiting: Counter[str | None] = Counter()  # unused ones by owner

    def __len__(self) -> int:
        return len(self._all)

    def get(self, key: str) -> Stub[T] | None:
        self._prune()
        return self._all.get(key)

    def held(self) -> list[Stub[T]]:
        """Those that hold a stream open."""
        return [stub for stub in self._all.values() if stub.opened]

    def is_full(self, owner: str | None) -> bool:
        """Whether the owner has as many unused ones as it may."""
        self._prune()
        return self._waiting[owner] >= tickets.MAX_UNUSED

    def unused(self, owner: str | None, count: int) -> list[Stub[T]]:
        """So many of the owner's, the oldest first."""
        return list(islice((stub for stub in self._unused.values() if stub.owner == owner), count))

    def add(self, key: str, owner: str | None, content: T, lifetime: float) -> Stub[T]:
        """One that was not used yet. Raises TooManyTicketsError."""
        if self.is_full(owner) or not self._has_room(owner):
            oldest = next(iter(self._unused.values()), None)
            raise TooManyTicketsError(oldest.until - self._clock() if oldest else lifetime)
        stub = self._all[key] = self._unused[key] = Stub(key, owner, content, self._clock() + lifetime)
        self._waiting[owner] += 1
        return stub

    def use(self, key: str, owner: str | None, content: T, stream: object) -> None:
        """It has opened `stream`. It may have been issued elsewhere."""
        stub = self.get(key)
        if stub is None:
            self._has_room(owner)  # if not, there are as many streams, which have a bound of their own
            stub = self._all[key] = Stub(key, owner, content, 0.0)
        stub.content, stub.is_used = content, True
        stub.opened += 1
        self._away.pop(key, None)
        self._count_as_used(stub)
        weakref.finalize(stream, self._let_go, stub).atexit = False

    def discard(self, stub: Stub[T]) -> None:
        """Know no more of it. Not of one that holds a stream."""
        self._all.pop(stub.key, None)
        self._away.pop(stub.key, None)
        self._count_as_used(stub)

    def _let_go(self, stub: Stub[T]) -> None:
        stub.opened -= 1
        if not stub.opened:
            stub.until = self._clock() + REMEMBERED
            self._away[stub.key] = stub

    def _prune(self) -> None:
        now = self._clock()
        for kept in (self._unused, self._away):
            while kept and (oldest := next(iter(kept.values()))).until <= now:
                self.discard(oldest)

    def _count_as_used(self, stub: Stub[T]) -> None:
        if self._unused.pop(stub.key, None):
            self._waiting[stub.owner] -= 1
            if not self._waiting[stub.owner]:
                del self._waiting[stub.owner]

    def _has_room(self, owner: str | None) -> bool:
        """At the bound, one that is away gives way: the owner's own, if it has any, before that of another."""
        if len(self._all) < tickets.MAX_TICKETS:
            return True
        own = (stub for stub in self._away.values() if stub.owner == owner)
        found = next(own, None) or next(iter(self._away.values()), None)
        if found:
            self.discard(found)
            self._on_drop(found)
        return found is not None
