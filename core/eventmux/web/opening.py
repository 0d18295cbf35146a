"""What comes right before a stream is begun, where something does: what it needs of the store is brought here, and its
ticket is claimed for it alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ..errors import AuthenticationError

if TYPE_CHECKING:
    from ..tickets import Ticket

USED = "this ticket is used, or too old: get a new one by POST /tickets"


@asynccontextmanager
async def opening(
    check: Callable[[], None], load: Callable[[], Awaitable[None]], ticket: Ticket | None
) -> AsyncIterator[None]:
    """In it the stream is subscribed to, and nothing is waited for; or it is not, and the ticket is as it was. `check`
    raises FullError for who would be turned away in any case: the store is not asked for him. Raises
    AuthenticationError, and FullError where there is no room or no store.
    """
    check()
    await load()
    if ticket is None:
        yield
        return
    if not await ticket.claim():
        raise AuthenticationError(USED)
    try:
        await load()  # what has gone meanwhile, which is next to never anything
        yield
    finally:
        ticket.give_back()
