"""Tickets in a store: each is good on every replica, and opens one stream on one of them.

A ticket is used by a swap of what lies in the store, which one replica wins. What lies there stays for an hour after
its stream has ended, because the replica that has the stream says again and again that it does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from .cursor import new_proof
from .errors import StoreAwayError
from .replica import BATCH, PATIENCE
from .seal import Sealed, seal, unseal
from .stubs import Stub, Stubs
from .tickets import REMEMBERED, Grant, is_text, key_of, new_text

if TYPE_CHECKING:
    from .access import Principal
    from .replica import Replica
    from .tickets import Ticket

RENEWAL = 300.0  # seconds between two times that a ticket with a stream is said to have one
AGAIN = 10.0  # the same where the store was away
KEPT = REMEMBERED + 2 * RENEWAL  # one time may fail
LOOKED_AT = 16  # tickets of a principal that may have been used on other replicas, for each that it wants beyond


class SharedTickets:
    """`clock`: seconds since 1970, about the same on all replicas. The bounds are those of each."""

    def __init__(self, replica: Replica, clock: Callable[[], float] = time.time) -> None:
        self.store = replica.store
        self._replica = replica
        self._clock = clock
        self._stubs = Stubs[bytes](clock, self._drop)
        self._returning: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._stubs)

    async def issue(self, principal: Principal, credential: bytes, lifetime: float) -> str:
        if self._stubs.is_full(principal.id):
            await self._look(principal.id)
        text = new_text()
        value = seal(text, Sealed(Grant(principal, credential, new_proof()), self._clock() + lifetime))
        stub = self._stubs.add(key_of(text), principal.id, value, lifetime)
        try:
            await self.store.swap(_place(stub.key), None, value, lifetime)
        except BaseException:
            self._stubs.discard(stub)
            raise
        return text

    async def find(self, text: str, proof: str | None) -> Ticket | None:
        found = await self.read(text, proof)
        return SharedTicket(self, text, proof, *found) if found else None

    async def read(self, text: str, proof: str | None) -> tuple[bytes, Sealed] | None:
        """What lies in the store of one that is good: as it is, and what it says."""
        if not is_text(text):
            return None  # also while the store is away
        key = key_of(text)
        if key in self._returning:
            raise StoreAwayError("a ticket is being given back")
        value = await self.store.get(_place(key))
        content = None if value is None else unseal(text, value)
        return (value, content) if value and content and content.lets_in(proof) else None

    def hold(self, key: str, owner: str | None, value: bytes, stream: object) -> None:
        """The ticket has opened `stream`, here."""
        self._stubs.use(key, owner, value, stream)
        self._wake_in(RENEWAL)

    def take_back(self, text: str, content: Sealed, values: tuple[bytes, bytes]) -> None:
        """Have a ticket be unused again whose value is the first of these, or the second if it was claimed."""
        key = key_of(text)
        self._returning.add(key)
        task = self._replica.spawn(self._take_back(text, content, values), "gives a ticket back")
        task.add_done_callback(lambda _: self._returning.discard(key))

    async def _take_back(self, text: str, content: Sealed, values: tuple[bytes, bytes]) -> None:
        """Whether a claim was heard may not be known, and it may be heard yet: it finds another value then."""
        place, new = _place(key_of(text)), seal(text, content)
        while (seconds := content.until - self._clock()) > 0:
            try:
                value = await self.store.get(place)
                if value not in values or await self.store.swap(place, value, new, seconds):
                    return
            except StoreAwayError:
                await asyncio.sleep(PATIENCE)

    async def _look(self, owner: str | None) -> None:
        """Forget those that are not as they were: they have been used elsewhere."""
        stubs = self._stubs.unused(owner, LOOKED_AT)
        values = await asyncio.gather(*(self.store.get(_place(stub.key)) for stub in stubs))
        for stub, value in zip(stubs, values, strict=True):
            if value != stub.content and not stub.opened:
                self._stubs.discard(stub)

    def _drop(self, stub: Stub[bytes]) -> None:
        self._replica.spawn(self._forget(stub), "drops a ticket")

    async def _forget(self, stub: Stub[bytes]) -> None:
        try:
            await self.store.swap(_place(stub.key), stub.content, None, 0.0)
        except StoreAwayError:
            return  # it is left to its time

    def _wake_in(self, seconds: float) -> None:
        if self._timer is None and not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._replica.spawn(self._renew(), "renews tickets")

    async def _renew(self) -> None:
        held, seconds = self._stubs.held(), RENEWAL
        try:
            for start in range(0, len(held), BATCH):
                await asyncio.gather(*(self._keep(stub) for stub in held[start : start + BATCH]))
        except StoreAwayError:
            seconds = AGAIN
        if held:
            self._wake_in(seconds)

    async def _keep(self, stub: Stub[bytes]) -> None:
        """Also where the store has lost it."""
        if not await self.store.swap(_place(stub.key), stub.content, stub.content, KEPT):
            await self.store.swap(_place(stub.key), None, stub.content, KEPT)

    def close(self) -> None:
        self._is_closed = True
        if self._timer:
            self._timer.cancel()


class SharedTicket:
    def __init__(self, tickets: SharedTickets, text: str, proof: str | None, value: bytes, content: Sealed) -> None:
        self._tickets = tickets
        self._text = text
        self._proof = proof
        self._value = value  # that lies in the store
        self._content = content
        self._claimed: bytes | None = None
        self._is_open = False

    @property
    def grant(self) -> Grant:
        return self._content.grant

    async def claim(self) -> bool:
        while not await self._swap():
            found = await self._tickets.read(self._text, self._proof)
            if found is None:
                return False
            self._value, self._content = found
        return True

    async def _swap(self) -> bool:
        content = self._content
        claimed = self._value if content.is_used else seal(self._text, replace(content, is_used=True))
        try:
            is_mine = await self._tickets.store.swap(_place(key_of(self._text)), self._value, claimed, KEPT)
        except BaseException:  # it may have been done
            self._return(claimed)
            raise
        if is_mine:
            self._claimed = claimed
        return is_mine

    def open(self, stream: object) -> None:
        assert self._claimed is not None  # noqa: S101 - `claim` comes first
        self._is_open = True
        self._tickets.hold(key_of(self._text), self.grant.principal.id, self._claimed, stream)

    def give_back(self) -> None:
        if self._claimed is not None and not self._is_open:
            self._return(self._claimed)

    def _return(self, claimed: bytes) -> None:
        if not self._content.is_used:
            self._tickets.take_back(self._text, self._content, (self._value, claimed))


def _place(key: str) -> str:
    return f"ticket:{key}"
