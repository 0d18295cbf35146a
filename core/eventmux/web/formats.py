"""Entries as the bytes of a response: SSE, JSON lines or a JSON array. One object serves one response."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from .. import sse

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..subscription import Entry, Subscription

SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json"
MEDIA_TYPES = (SSE, NDJSON, JSON)


class Format(Protocol):
    """What a response writes. `heartbeat` is called only where nothing else was written for a while."""

    media_type: str

    def opening(self, cursor: bytes, retry: int) -> bytes: ...
    def read(self, subscription: Subscription) -> bytes:
        """What has come since the last call; nothing if nothing has."""
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
        self._cursor = b""

    def opening(self, cursor: bytes, retry: int) -> bytes:
        self._cursor = cursor
        return b"retry: %d\nid: %b\n\n" % (retry, cursor)

    def read(self, subscription: Subscription) -> bytes:
        if not self._qualify and (joined := subscription.read_joined()):
            self._cursor = subscription.cursor
            return joined
        entries = subscription.read()
        if not entries:
            return b""
        self._cursor = entries[-1].cursor
        if self._qualify:
            return b"".join(b"id: %b\n%b" % (e.cursor, sse.qualified(e.frame, e.source)) for e in entries)
        return b"".join([sse.block(frame, cursor) for _, frame, cursor in entries])

    def heartbeat(self, cursor: bytes) -> bytes:
        moved, self._cursor = cursor != self._cursor, cursor
        return sse.HEARTBEAT + (b"id: %b\n\n" % cursor if moved else b"")

    def farewell(self, retry: int) -> bytes:
        return b"retry: %d\n\n" % retry

    def closing(self) -> bytes:
        return b""


class LinesFormat:
    """JSON lines: one object per event. An empty line is the heartbeat."""

    media_type = NDJSON

    def __init__(self, *, qualify: bool) -> None:
        self._qualify = qualify

    def opening(self, cursor: bytes, retry: int) -> bytes:  # noqa: ARG002 - a line is an event, and this is none
        return b""

    def read(self, subscription: Subscription) -> bytes:
        return b"".join(_line(entry, qualify=self._qualify) + b"\n" for entry in subscription.read())

    def heartbeat(self, cursor: bytes) -> bytes:  # noqa: ARG002 - as in Format
        return b"\n"

    def farewell(self, retry: int) -> bytes:  # noqa: ARG002 - as in Format
        return b""

    def closing(self) -> bytes:
        return b""


class ArrayFormat:
    """The same objects as one JSON array; white space between them is the heartbeat."""

    media_type = JSON

    def __init__(self, *, qualify: bool) -> None:
        self._qualify = qualify
        self._is_first = True

    def opening(self, cursor: bytes, retry: int) -> bytes:  # noqa: ARG002 - as in Format
        return b"["

    def read(self, subscription: Subscription) -> bytes:
        entries = subscription.read()
        text = b",\n".join(_line(entry, qualify=self._qualify) for entry in entries)
        if entries and not self._is_first:
            text = b",\n" + text
        self._is_first = self._is_first and not entries
        return text

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


def new_format(media_type: str, *, qualify: bool) -> Format:
    kinds: dict[str, Callable[..., Format]] = {SSE: EventStreamFormat, NDJSON: LinesFormat, JSON: ArrayFormat}
    return kinds[media_type](qualify=qualify)
