"""Frames: events as bytes, and nothing else. The rules are WHATWG HTML 9.2.6; line ends are LF only.

A frame is made once per event. Its body has everything but the `id:` line, which is each client's own.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from pydantic_core import PydanticSerializationError
from sse_starlette import ServerSentEvent

from .event import Event, check_event_name
from .source import Source

HEARTBEAT = b":\n\n"

# str.splitlines would also split at U+2028, form feed and others, which SSE does not.
_LINE = re.compile(r"\r\n|\r|\n")


class Frame:
    """One event, ready to be written. `at`: nanoseconds since 1970, strictly rising within a process, so that it is
    both the time and the order of arrival. `total`: bytes that its log had taken with it, for the distance in bytes.
    """

    __slots__ = ("at", "body", "event", "is_control", "is_json", "total")

    at: int
    total: int

    def __init__(self, event: str, body: bytes, *, is_json: bool) -> None:
        self.event = event
        self.body = body
        self.is_json = is_json
        self.is_control = event.startswith("stream.")


@lru_cache(maxsize=4096)
def _head(event: str) -> bytes:
    return f"event: {event}\ndata: ".encode()


def encode(source: Source[...], event: Event | ServerSentEvent) -> Frame:
    """The frame of what `source` has yielded.

    Raises UndeclaredEventError for a class that its annotation does not name, ValueError for a ServerSentEvent that
    would break the framing or that is not text.
    """
    name = source.events.get(type(event)) or source.event_name(event)  # type: ignore[arg-type] # a relay's is in no dict
    if isinstance(event, ServerSentEvent):
        return _encode_server_sent_event(name, event)
    try:
        data = event.__pydantic_serializer__.to_json(event, by_alias=True)
    except PydanticSerializationError:
        # A lone surrogate has no UTF-8. JSON can still say it (\ud800), and JSON.parse gives the same string back.
        data = json.dumps(event.model_dump(mode="json", by_alias=True), separators=(",", ":"), allow_nan=False).encode(
            "ascii"
        )
    return Frame(name, b"%b%b\n\n" % (_head(name), data), is_json=True)


def decode(source: Source[...], frame: Frame) -> Event | ServerSentEvent:
    """What `source` had yielded. Raises ValueError where its event cannot be made of its own JSON."""
    if frame.is_json:
        for kind in (kind for kind, name in source.events.items() if name == frame.event):
            return kind.model_validate_json(data(frame))
        raise ValueError(f"the source has no event {frame.event!r}")
    lines = frame.body.decode().split("\n")
    fields: dict[str, list[str]] = {"": [], "event": [], "data": []}
    for line in lines:
        name, found, value = line.partition(": ")
        if found and name in fields:
            fields[name].append(value)
    return ServerSentEvent(
        data="\n".join(fields["data"]) if fields["data"] else None,
        event=fields["event"][0] if fields["event"] else None,
        comment="\n".join(fields[""]) if fields[""] else None,
    )


def _encode_server_sent_event(name: str, event: ServerSentEvent) -> Frame:
    """`id` and `retry` are the service's: they are checked as sse-starlette's users expect, and not sent."""
    check_event_name(name)
    if event.id is not None and re.search(r"[\r\n\0]", str(event.id)):
        raise ValueError(f"the id of a ServerSentEvent cannot hold a line break or NUL: got {event.id!r}")
    lines = [f": {line}" for line in _LINE.split(str(event.comment))] if event.comment is not None else []
    if event.event is not None:
        lines.append(f"event: {name}")
    if event.data is not None:
        lines += [f"data: {line}" for line in _LINE.split(str(event.data))]
    try:
        body = "\n".join([*lines, "", ""]).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a ServerSentEvent must be text: a lone surrogate at {error.start} has no UTF-8") from None
    return Frame(name, body, is_json=False)


def control(event: str, **data: Any) -> Frame:
    """What the service itself says in a stream: `stream.gap`, `stream.error`, `stream.end`."""
    return Frame(event, b"%b%b\n\n" % (_head(event), json.dumps(data, separators=(",", ":")).encode()), is_json=True)


def block(frame: Frame, cursor: bytes) -> bytes:
    return b"id: %b\n%b" % (cursor, frame.body)


def qualified(frame: Frame, source: str) -> bytes:
    """The body with the event named `source/name`; what the service says itself keeps its name."""
    if frame.is_control:
        return frame.body
    name = f"event: {source}/{frame.event}\n".encode()
    # Only at the start of a line: data may hold the same text.
    comment, found, rest = (b"\n" + frame.body).partition(f"\nevent: {frame.event}\n".encode())
    return comment[1:] + b"\n" * (len(comment) > 0) + name + rest if found else name + frame.body


def data(frame: Frame) -> bytes:
    """The event's data as a client gets it: the `data:` lines joined by LF."""
    return b"\n".join(line[6:] for line in frame.body.split(b"\n") if line.startswith(b"data: "))
