"""Who follows a stream as EventSource does: comes back with the last event id, stops for ever at any other status."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2

from eventsource import PATIENCE, TRUST, Received, received
from whatwg import Parser


class Follower(threading.Thread):
    """`cuts`: how often it hangs up by itself, in the middle of what has come, at places drawn by `seed`."""

    def __init__(self, url: str, *, cuts: int = 0, seed: int = 0, **client: Any) -> None:
        super().__init__()
        self.events: list[Received] = []
        self.statuses: list[int] = []
        self.lost = 0  # connections that ended otherwise than by its own doing
        self.cuts_left = cuts
        self.error: BaseException | None = None
        self._url = url
        self._client = client
        self._random = random.Random(seed)
        self._last_event_id = ""
        self._stopping = threading.Event()

    @property
    def numbers(self) -> list[int]:
        return [event.data["n"] for event in self.events if event.event == "note"]

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        try:
            with httpx2.Client(**{"timeout": PATIENCE, "trust_env": False, "verify": TRUST, **self._client}) as client:
                while not self._stopping.is_set() and self.statuses[-1:] in ([], [200]):
                    with contextlib.suppress(httpx2.TransportError):
                        self._follow(client)
                    time.sleep(0.01)  # what EventSource waits for, `retry`, is longer
        except BaseException as error:  # noqa: BLE001 - raised by `following`
            self.error = error

    def _follow(self, client: httpx2.Client) -> None:
        headers = {"accept": "text/event-stream"}
        if self._last_event_id:
            headers["last-event-id"] = self._last_event_id
        parser = Parser(self._last_event_id)
        with client.stream("GET", self._url, headers=headers) as response:
            self.statuses.append(response.status_code)
            if response.status_code != 200:
                return
            for chunk in response.iter_raw():
                is_cut = self.cuts_left > 0 and self._random.random() < 0.2
                part = chunk[: self._random.randrange(len(chunk) + 1)] if is_cut else chunk
                self.events += [received(message) for message in parser.feed(part)]
                self._last_event_id = parser.last_event_id
                if self._stopping.is_set():
                    return
                if is_cut:
                    self.cuts_left -= 1
                    return
        self.lost += 1


@contextlib.contextmanager
def following(url: str, **options: Any) -> Iterator[Follower]:
    follower = Follower(url, **options)
    follower.start()
    try:
        yield follower
    finally:
        follower.stop()
        follower.join(PATIENCE)
        assert not follower.is_alive(), "the follower did not end: its stream says nothing"
    if follower.error:
        raise follower.error
