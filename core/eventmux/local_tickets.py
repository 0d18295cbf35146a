"""Tickets in the memory of a process: they are good in that process only, and gone with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .cursor import new_proof
from .stubs import Stub, Stubs
from .tickets import Grant, key_of, new_text

if TYPE_CHECKING:
    from .access import Principal
    from .tickets import Ticket


class LocalTickets:
    """`clock`: monotonic seconds. Nothing here waits, so that nothing comes between a claim and its stream."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._stubs = Stubs[Grant](clock)

    def __len__(self) -> int:
        return len(self._stubs)

    async def issue(self, principal: Principal, credential: bytes, lifetime: float) -> str:
        text = new_text()
        self._stubs.add(key_of(text), principal.id, Grant(principal, credential, new_proof()), lifetime)
        return text

    async def find(self, text: str, proof: str | None) -> Ticket | None:
        stub = self._stubs.get(key_of(text))
        if stub is None or not stub.content.lets_in(proof, is_used=stub.is_used):
            return None
        return _LocalTicket(self._stubs, stub, proof)

    def close(self) -> None:
        pass


class _LocalTicket:
    def __init__(self, stubs: Stubs[Grant], stub: Stub[Grant], proof: str | None) -> None:
        self.grant = stub.content
        self._stubs = stubs
        self._stub = stub
        self._proof = proof

    async def claim(self) -> bool:
        stub = self._stub
        return self._stubs.get(stub.key) is stub and self.grant.lets_in(self._proof, is_used=stub.is_used)

    def open(self, stream: object) -> None:
        self._stubs.use(self._stub.key, self._stub.owner, self.grant, stream)

    def give_back(self) -> None:
        pass
