"""Sends many clients away, so that all others get their events meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stream import MEMBERS

if TYPE_CHECKING:
    from .subscription import Subscription


class Farewells:
    """Sends subscriptions away, a few at a time: their clients come back, with their cursors, to what there is."""

    def __init__(self, members: list[Subscription], reason: str = "moved") -> None:
        self._left = members
        self._reason = reason

    def advance(self, now: float) -> bool:  # noqa: ARG002 - as the fanout calls it
        members = self._left[-MEMBERS:]
        del self._left[-MEMBERS:]
        for member in members:
            try:
                member.drain(self._reason)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others have done nothing
                member.fail(error)
        return bool(self._left)
