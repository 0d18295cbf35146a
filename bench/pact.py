"""What replicas of one store promise a client, stricter than Promise: a shared log is never lost, and a private run
only where its process was, or was taken for dead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .check import Known, Promise, Violation
from .journal import Journal
from .wire import Block
from .witness import Witness

LONG = 2_000  # events of a history that no client reads in one go from its first to its last
UNSEEN = 10  # the part of such a history that may have come since anybody was told of an event: half a minute at least


@dataclass
class Pact(Promise):
    """`bounded`: sources with the events that their history has: only these may have a gap for who lags, and only when
    it is full.

    `began`: when the chain's present connection did.
    """

    journal: Journal = field(default_factory=lambda: Journal(1.0))
    witness: Witness = field(default_factory=Witness)
    bounded: dict[str, int] = field(default_factory=dict)
    began: float = 0.0
    _makers: dict[str, int] = field(default_factory=dict)  # the process that runs it, as its last event says
    _since: dict[str, float] = field(default_factory=dict)  # when the client may have begun its run
    _due: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # made before then, or a gap was not true

    def begin(self, selection: tuple[str, ...], *, can_lose: bool) -> None:
        """A new connection is tried."""
        self.began = time.monotonic()
        self.opened(selection, can_lose=can_lose, limit=None)
        for name in selection:
            self._since.setdefault(name, self.began)

    def _event(self, block: Block) -> None:
        name, n = block.data["source"], block.data["n"]
        known = self._known_of(name)
        is_first = known.n is None and known.log is None and known.not_log is None
        if is_first and name not in self.shared and not known.is_doubtful and n != self._next(1):
            raise Violation(f"a run of {name} begins with {n}")
        super()._event(block)
        self._makers[name] = int(block.data["by"].partition(".")[0])
        if name in self.shared:
            self.witness.saw(block.data)
        self._check_due(name, n, block.data["made"])

    def _check_due(self, name: str, n: int, made: float) -> None:
        due = self._due.get(name, [])
        for needed, told in due:
            if needed == n and made > told:
                raise Violation(f"{name}: a gap said that events were let go, and there was room for them: {n} is new")
        self._due[name] = [(needed, told) for needed, told in due if needed > n]

    def _gap(self, source: str, reason: str, missed: int | None) -> None:
        known = self._known_of(source)
        is_for_sure = reason in {"evicted", "lagged"} and not known.is_doubtful
        if is_for_sure and source not in self.bounded:
            raise Violation(f"{source}: a gap {reason} of {missed} after {known.n}, and the history has room for all")
        if is_for_sure and known.n is not None:
            # What comes next is the oldest that is kept: so the history was full then.
            bound = self.bounded[source]
            needed, newest = known.n + (missed or 1) + bound, self.witness.last(source)
            if bound < LONG:
                self._due.setdefault(source, []).append((needed, time.monotonic()))
            elif newest + bound // UNSEEN < needed:
                text = f"{source}: a gap {reason} of {missed} after {known.n}, and the history has room for all"
                raise Violation(f"{text}: nobody has seen more than {newest}")
        super()._gap(source, reason, missed)
        if reason not in {"evicted", "lagged"}:
            self._makers.pop(source, None)
            self._since[source] = self.began

    def may_begin_anew(self, source: str, known: Known) -> bool:
        """Not so one that is bought once: it is lost, then, and says so."""
        return source != "paid" and self._may_be_gone(source, known)

    def may_be_lost(self, source: str, known: Known) -> bool:
        return self._may_be_gone(source, known)

    def _may_be_gone(self, source: str, known: Known) -> bool:
        return known.is_doubtful or (source not in self.shared and (self.can_lose or self._has_lost(source)))

    def _has_lost(self, source: str) -> bool:
        return self.journal.can_have_lost(self._makers.get(source), self._since[source])

    def maker(self, source: str) -> str:
        """Who runs it, as far as is known, for a text."""
        return f"{source} by {self._makers.get(source, '?')}"
