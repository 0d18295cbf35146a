"""Sends many clients away, so that all others get their events meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stream import MEMBERS

if TYPE_CHECKING:
    from .stream import Stream


class Farewells:
    """Sends the members of a stream away, a few at a time: they come back, with their cursors, to what there is."""

    def __init__(self, stream: Stream, reason: str = "moved") -> None:
        self._left = stream.members
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
