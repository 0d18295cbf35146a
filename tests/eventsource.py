"""EventSource for tests, on httpx2: opens a URL, reads it by the WHATWG rules, comes back with its last event id."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from whatwg import Message, Parser

PATIENCE = 10.0  # seconds that a test waits for what must come
# A client makes one of its own otherwise, and reads all certificates of the world for it: 90 ms, thousands of times.
TRUST = ssl.create_default_context()


@dataclass(frozen=True)
class Received:
    event: str
    data: Any
    id: str


class EventSource:
    """`take(n)` gives the next n events; `rest()` all until the stream ends. A context manager: leaving hangs up.

    `client`: words for httpx2's.
    """

    def __init__(
        self,
        url: str,
        *,
        cursor: str | None = None,
        method: str = "GET",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        client: Mapping[str, Any] | None = None,
    ) -> None:
        self.parser = Parser()
        headers = {"accept": "text/event-stream", **(headers or {})} | ({"last-event-id": cursor} if cursor else {})
        self._client = httpx2.Client(**{"timeout": PATIENCE, "trust_env": False, "verify": TRUST, **(client or {})})
        self._stack = self._client.stream(method, url, headers=headers, json=body)
        self.response = self._stack.__enter__()
        self.chunks = self.response.iter_raw()
        self._events = self._received()
        self._taken = ""

    @property
    def cursor(self) -> str:
        """The id of the last event taken; more may have come, and is lost for a client that is cut off now."""
        return self._taken or self.parser.last_event_id

    def _received(self) -> Iterator[Received]:
        for chunk in self.chunks:
            for message in self.parser.feed(chunk):
                self._taken = message.id
                yield received(message)

    def __enter__(self) -> EventSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.__exit__(None, None, None)
        self._client.close()

    def take(self, count: int) -> list[Received]:
        return [next(self._events) for _ in range(count)]

    def until(self, event: str) -> list[Received]:
        found = []
        for got in self._events:
            found.append(got)
            if got.event == event:
                break
        return found

    def rest(self) -> list[Received]:
        return list(self._events)


def received(message: Message) -> Received:
    try:
        data = json.loads(message.data)
    except ValueError:
        data = message.data
    return Received(message.event, data, message.id)


def wait_until(condition: Callable[[], Any], what: str = "") -> Any:
    """Poll `condition` until it is true; fail after PATIENCE seconds, naming what did not come."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"did not come: {what or condition}"
        time.sleep(0.005)
    return found
