"""Bytes on their way to clients, and what they mean for who stands at one place in a stream. Values only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .meter import Tally
    from .reader import Place


class Piece:
    """Bytes on their way to many clients. `chunk` is the same as a chunk of HTTP/1.1 (RFC 9112, 7.1), made once if
    anybody wants it; of nothing it is nothing, since an empty chunk would be the end.
    """

    _chunk = b""

    def __init__(self, body: bytes) -> None:
        self.body = body

    @property
    def chunk(self) -> bytes:
        if not self._chunk and self.body:
            self._chunk = b"%x\r\n%b\r\n" % (len(self.body), self.body)
        return self._chunk


class Step(Piece):
    """What follows a place, and the place `after` it. `events`: how many count for a limit. `has_more`: there is more
    at once. `has_moved`: the place is further than the body says. `is_last`: the stream is over, or the client is to
    come back; `is_cut`: because it lags too far. `at`: when the oldest event was appended. `shares`: the events of each
    source, where there are several sources. `gaps`: source and reason of those that it tells.
    """

    events = at = 0
    has_more = has_moved = False
    is_last = is_cut = False
    shares: Sequence[tuple[Tally, int]] = ()
    gaps: Sequence[tuple[str, str]] = ()

    def __init__(self, body: bytes, after: Place) -> None:
        self.body = body
        self.after = after
