"""A client of a hub without a connection: it takes what its subscription has to give when a test says so."""

from __future__ import annotations

from collections.abc import Sequence

from eventmux.cursor import parse_cursor
from eventmux.hub import Hub, Start, Wanted
from eventmux.selection import Selection
from eventmux.step import Piece
from eventmux.web.formats import SSE, format_of
from whatwg import Message, Parser

FORM = format_of(SSE, qualify=False)


class Taking:
    """Takes nothing by itself. `is_sent_away`: the service has ended its stream, and it may come back."""

    def __init__(
        self, hub: Hub, wanted: Sequence[Wanted], start: str | Start | None = None, principal: str | None = None
    ) -> None:
        """`start`: a cursor, or all of it."""
        if not isinstance(start, Start):
            start = Start(parse_cursor(start) if start else None, principal=principal)
        self.subscription = hub.subscribe(wanted, start, Selection(FORM))
        self.opening = FORM.opening(self.subscription.cursor, 1000)
        self.is_ended = False
        self._text = b""
        self._parser = Parser()
        self.subscription.start(self)
        self.subscription.is_held = True

    def write(self, piece: Piece, now: float) -> bool:
        self._text += piece.body
        return True

    def end(self) -> None:
        self.is_ended = True

    def fail(self) -> None:
        raise AssertionError("a subscription failed")

    @property
    def is_sent_away(self) -> bool:
        return self.is_ended and not self.subscription.is_over

    @property
    def cursor(self) -> str:
        return self.subscription.cursor.decode()

    def take(self) -> bytes:
        """All that there is, as bytes of SSE."""
        while not self.is_ended:
            before = self.subscription.place
            self.subscription.is_held = False
            self.subscription.take(self.subscription.next(), 0.0)
            self.subscription.is_held = True
            if self.subscription.place == before:
                break
        text, self._text = self._text, b""
        return text

    def messages(self) -> list[Message]:
        """The same as what an EventSource sees."""
        return self._parser.feed(self.take())

    def events(self) -> list[str]:
        return [message.event for message in self.messages()]

    def close(self) -> None:
        self.subscription.close()
