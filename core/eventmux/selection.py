"""What a client wants of channels, from where on, and as what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .cursor import Cursor
    from .reader import Entry


class Format(Protocol):
    """How entries become bytes. It has no state: one serves all."""

    is_plain: bool  # whether an entry is `id: cursor` and the frame's own bytes, as in SSE

    def body(self, entries: Sequence[Entry], *, is_first: bool) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """What a client wants of its channels, and how: only `events`, at most `limit` of them, as `form` writes them.
    `reconnects`: whether it comes back by itself when it is sent away. `mark`: what stands before its cursor. `name`:
    of the stream in plugins.yaml, if it asked for one.
    """

    form: Format
    events: frozenset[str] | None = None
    limit: int | None = None
    reconnects: bool = True
    mark: bytes = b""
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Where a client begins: at its cursor; where that says nothing, at `since`; else with what comes next.

    `since`: nanoseconds since 1970; 0 is the earliest there is. `principal`: whose private runs it may return to.
    `trace`: the `traceparent` of its request, for the private runs that it begins.
    """

    cursor: Cursor | None = None
    since: int | None = None
    principal: str | None = None
    trace: str | None = None
