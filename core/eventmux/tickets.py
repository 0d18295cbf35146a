"""Tickets: each opens one stream, once, and lets that stream come back. Who may have one, and where they are kept, is
not said here.

A ticket stands in a URL, and so in logs. What opens the stream again is the ticket together with a proof, which is in
the stream's cursors only: a URL that somebody finds opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .errors import EventmuxError

if TYPE_CHECKING:
    from .access import Principal

MAX_TICKETS = 100_000  # that a process knows of
MAX_UNUSED = 1_000  # of one principal
REMEMBERED = 3_600.0  # seconds for which a stream may be away

_TEXT = re.compile(r"[\w-]{32}", re.ASCII)


class TooManyTicketsError(EventmuxError):
    """A principal has as many tickets as it may, and uses none of them."""

    status = 429

    def __init__(self, seconds: float) -> None:
        super().__init__("too many tickets wait to be used: use them, or try again later")
        self.headers = {"Retry-After": str(max(1, int(seconds) + 1))}


@dataclass(frozen=True, slots=True)
class Grant:
    """What a ticket stands for. `credential`: what is kept of that by which the principal has proved itself. `proof`:
    that in the mark of its stream's cursors.
    """

    principal: Principal
    credential: bytes
    proof: str

    def lets_in(self, proof: str | None, *, is_used: bool) -> bool:
        """Whether it is good for who comes with this proof."""
        if self.principal.has_expired():
            return False
        return not is_used or hmac.compare_digest(self.proof.encode(), (proof or "").encode())


class Ticket(Protocol):
    """One that was found to be good. It is claimed, and then it opens a stream or is given back."""

    @property
    def grant(self) -> Grant: ...

    async def claim(self) -> bool:
        """Have it for the stream that is about to be opened, and for no other. False if it is good no more. Raises
        StoreAwayError.
        """
        ...

    def open(self, stream: object) -> None:
        """It has opened `stream`. It is good for another as long as that lives and for an hour more, with its proof."""
        ...

    def give_back(self) -> None:
        """Unless it has opened a stream, it is as it was before it was claimed: a client that is turned away comes back
        with the same URL and without a cursor.
        """
        ...


class Tickets(Protocol):
    """All tickets of a service."""

    async def issue(self, principal: Principal, credential: bytes, lifetime: float) -> str:
        """A ticket that is to be used within so many seconds. Raises TooManyTicketsError and StoreAwayError."""
        ...

    async def find(self, text: str, proof: str | None) -> Ticket | None:
        """None if it opens nothing. `proof`: that in the mark of the cursor that comes with it. Raises
        StoreAwayError.
        """
        ...

    def close(self) -> None: ...


def new_text() -> str:
    """192 random bits."""
    return secrets.token_urlsafe(24)


def is_text(text: str) -> bool:
    """Whether it looks like a ticket."""
    return _TEXT.fullmatch(text) is not None


def key_of(text: str) -> str:
    """Under which it is looked up. It says nothing about the ticket."""
    return hashlib.blake2b(text.encode(), digest_size=32, person=b"eventmux find").hexdigest()
