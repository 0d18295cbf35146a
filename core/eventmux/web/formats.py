"""Entries as the bytes of a response: SSE, JSON lines or a JSON array."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from .. import sse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..reader import Entry

SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json"
MEDIA_TYPES = (SSE, NDJSON, JSON)


class Format(Protocol):
    """What a response writes. It has no state: one object serves all. `heartbeat` is for where nothing else was written
    for a while, with the cursor if the client has not got it yet.
    """

    media_type: str
    is_plain: bool

    def opening(self, cursor: bytes, retry: int) -> bytes: ...
    def body(self, entries: Sequence[Entry], *, is_first: bool) -> bytes:
        """`is_first`: whether no entry has been written yet."""
        ...

    def heartbeat(self, cursor: bytes) -> bytes: ...
    def farewell(self, retry: int) -> bytes:
        """The service ends the stream; the client may come back after `retry` milliseconds."""
        ...

    def closing(self) -> bytes: ...


class EventStreamFormat:
    """SSE. A cursor that filtered events have moved goes along with the heartbeat, so that a quiet client keeps up."""

    media_type = SSE

    def __init__(self, *, qualify: bool) -> None:
        self._qualify = qualify
        self.is_plain = not qualify

    def opening(self, cursor: bytes, retry: int) -> bytes:
        return b"retry: %d\nid: %b\n\n" % (retry, cursor)

    def body(self, entries: Sequence[Entry], *, is_first: bool) -> bytes:  # noqa: ARG002 - as in Format
        if self._qualify:
            return b"".join([b"id: %b\n%b" % (e.cursor, sse.qualified(e.frame, e.source)) for e in entries])
        return b"".join([sse.block(frame, cursor) for _, frame, cursor in entries])

    def heartbeat(self, cursor: bytes) -> bytes:
        return sse.HEARTBEAT + (b"id: %b\n\n" % cursor if cursor else b"")

    def farewell(self, retry: int) -> bytes:
        return b"retry: %d\n\n" % retry

    def closing(self) -> bytes:
        return b""


class LinesFormat:
    """JSON lines: one object per event. An empty line is the heartbeat."""

    media_type = NDJSON
    is_plain = False

    def __init__(self, *, qualify: bool) -> None:
        self._qualify = qualify

    def opening(self, cursor: bytes, retry: int) -> bytes:  # noqa: ARG002 - a line is an event, and this is none
        return b""

    def body(self, entries: Sequence[Entry], *, is_first: bool) -> bytes:  # noqa: ARG002 - as in Format
        return b"".join([_line(entry, qualify=self._qualify) + b"\n" for entry in entries])

    def heartbeat(self, cursor: bytes) -> bytes:  # noqa: ARG002 - as in Format
        return b"\n"

    def farewell(self, retry: int) -> bytes:  # noqa: ARG002 - as in Format
        return b""

    def closing(self) -> bytes:
        return b""


class ArrayFormat:
    """The same objects as one JSON array; white space between them is the heartbeat."""

    media_type = JSON
    is_plain = False

    def __init__(self, *, qualify: bool) -> None:
        self._qualify = qualify

    def opening(self, cursor: bytes, retry: int) -> bytes:  # noqa: ARG002 - as in Format
        return b"["

    def body(self, entries: Sequence[Entry], *, is_first: bool) -> bytes:
        text = b",\n".join([_line(entry, qualify=self._qualify) for entry in entries])
        return text if is_first else b",\n" + text

    def heartbeat(self, cursor: bytes) -> bytes:  # noqa: ARG002 - as in Format
        return b"\n"

    def farewell(self, retry: int) -> bytes:  # noqa: ARG002 - as in Format
        return b""

    def closing(self) -> bytes:
        return b"]\n"


def _line(entry: Entry, *, qualify: bool) -> bytes:
    frame = entry.frame
    name = f"{entry.source}/{frame.event}" if qualify and not frame.is_control else frame.event
    data = sse.data(frame)
    return b'{"id":"%b","source":"%b","event":%b,"data":%b}' % (
        entry.cursor,
        entry.source.encode(),
        _json_name(name),
        data if frame.is_json else json.dumps(data.decode()).encode(),
    )


@lru_cache(maxsize=4096)
def _json_name(name: str) -> bytes:
    return json.dumps(name).encode()


def media_type(accept: str) -> str:
    """The one of ours that an `Accept` header prefers (RFC 9110, 12.5.1); SSE where it prefers none."""
    best, best_weight = SSE, (0.0, False)
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        try:
            quality = next((float(word[2:]) for word in parameters if word.startswith("q=")), 1.0)
        except ValueError:
            continue
        found = name if name in MEDIA_TYPES else SSE if name in {"*/*", "text/*"} else None
        weight = (quality, name in MEDIA_TYPES)
        if found and quality > 0 and weight > best_weight:
            best, best_weight = found, weight
    return best


def format_of(media_type: str, *, qualify: bool) -> Format:
    """The one object for this."""
    return _FORMATS[media_type, qualify]


_KINDS: dict[str, Callable[..., Format]] = {SSE: EventStreamFormat, NDJSON: LinesFormat, JSON: ArrayFormat}
_FORMATS = {(name, qualify): kind(qualify=qualify) for name, kind in _KINDS.items() for qualify in (False, True)}
