"""Tickets: each opens one stream, once, and lets that stream come back. Who may have one is not said here.

A ticket stands in a URL, and so in logs. What opens the stream again is the ticket together with a proof, which is in
the stream's cursors only: a URL that somebody finds opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from .access import Principal
from .cursor import mark_of, new_proof
from .errors import EventmuxError

MAX_TICKETS = 100_000
MAX_UNUSED = 1_000  # of one principal
REMEMBERED = 3_600.0  # seconds for which a stream may be away


class TooManyTicketsError(EventmuxError):
    """A principal has as many tickets as it may, and uses none of them."""

    status = 429

    def __init__(self, seconds: float) -> None:
        super().__init__("too many tickets wait to be used: use them, or try again later")
        self.headers = {"Retry-After": str(max(1, int(seconds) + 1))}


class _Ticket:
    __slots__ = ("credential", "is_used", "key", "opened", "principal", "proof", "until")

    def __init__(self, key: bytes, principal: Principal, credential: bytes, until: float) -> None:
        self.key = key
        self.principal = principal
        self.credential = credential
        self.until = until  # by the monotonic clock
        self.proof = new_proof()
        self.is_used = False
        self.opened = 0  # streams that it holds open now


class Tickets:
    """All tickets of a service. `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all: dict[bytes, _Ticket] = {}  # by digest: what is looked up says nothing about what is there
        self._unused: dict[bytes, _Ticket] = {}  # the oldest first
        self._away: dict[bytes, _Ticket] = {}  # used, and without a stream now; away for the longest first
        self._waiting: Counter[str | None] = Counter()  # unused ones by principal

    def __len__(self) -> int:
        return len(self._all)

    def issue(self, principal: Principal, credential: bytes, lifetime: float) -> str:
        """A ticket for the principal, who has proved itself by what has this digest. Raises TooManyTicketsError."""
        now = self._clock()
        self._prune(now)
        if self._waiting[principal.id] >= MAX_UNUSED or not self._has_room(principal):
            oldest = next(iter(self._unused.values()), None)
            raise TooManyTicketsError(oldest.until - now if oldest else lifetime)
        text = secrets.token_urlsafe(24)
        key = _digest(text)
        ticket = _Ticket(key, principal, credential, now + lifetime)
        self._all[key] = self._unused[key] = ticket
        self._waiting[principal.id] += 1
        return text

    def holder(self, text: str, proof: str | None) -> tuple[Principal, bytes] | None:
        """Whose ticket it is, and the digest of what that was proved by; None if it opens nothing. `proof`: that in the
        mark of the cursor that comes with it.
        """
        ticket = self._find(text, proof)
        return (replace(ticket.principal, mark=mark_of(ticket.proof)), ticket.credential) if ticket else None

    def is_good(self, text: str, proof: str | None) -> bool:
        return self._find(text, proof) is not None

    def use(self, text: str, stream: object) -> None:
        """It has opened `stream`. It is good for another as long as that lives and for an hour more, with its proof.

        A client that is turned away uses nothing: it comes back with the same URL and without a cursor.
        """
        ticket = self._all[_digest(text)]
        if not ticket.is_used:
            ticket.is_used = True
            del self._unused[ticket.key]
            self._uncount(ticket)
        ticket.opened += 1
        self._away.pop(ticket.key, None)
        weakref.finalize(stream, self._let_go, ticket).atexit = False

    def _find(self, text: str, proof: str | None) -> _Ticket | None:
        self._prune(self._clock())
        ticket = self._all.get(_digest(text))
        if ticket is None or ticket.principal.has_expired():
            return None
        if ticket.is_used and not hmac.compare_digest(ticket.proof.encode(), (proof or "").encode()):
            return None
        return ticket

    def _let_go(self, ticket: _Ticket) -> None:
        ticket.opened -= 1
        if not ticket.opened:
            ticket.until = self._clock() + REMEMBERED
            self._away[ticket.key] = ticket

    def _prune(self, now: float) -> None:
        for kept in (self._unused, self._away):
            while kept and (oldest := next(iter(kept.values()))).until <= now:
                self._drop(oldest)

    def _drop(self, ticket: _Ticket) -> None:
        del self._all[ticket.key]
        self._away.pop(ticket.key, None)
        if self._unused.pop(ticket.key, None):
            self._uncount(ticket)

    def _uncount(self, ticket: _Ticket) -> None:
        self._waiting[ticket.principal.id] -= 1
        if not self._waiting[ticket.principal.id]:
            del self._waiting[ticket.principal.id]

    def _has_room(self, principal: Principal) -> bool:
        """At the bound, one that is away gives way: the principal's own, if it has any, before that of another."""
        if len(self._all) < MAX_TICKETS:
            return True
        own = (ticket for ticket in self._away.values() if ticket.principal.id == principal.id)
        found = next(own, None) or next(iter(self._away.values()), None)
        if found:
            self._drop(found)
        return found is not None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
