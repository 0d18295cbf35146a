"""Who has something to do, once per turn of the loop, for all channels together. What it is, is not known here."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .channel import Channel

# A turn of the loop is for all: 10,000 writes in one go would hold it for 50 to 70 ms (docs/performance.md). What is
# not done after so many seconds is done in the next turn.
TURN_SECONDS = 0.004

JOBS = 4  # that are done before the clock is looked at


class Job(Protocol):
    """Something to do piece by piece. It must not raise: the jobs behind it are other clients' events."""

    def advance(self, now: float) -> bool:
        """Do a small piece at the time `now` of the loop's clock; return whether there is more."""
        ...


class Fanout:
    """Brings channels that have more to their streams, in one callback per turn of the loop, however many they are."""

    def __init__(self) -> None:
        self._news: list[Channel] = []
        self._jobs: deque[Job] = deque()
        self._is_called = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self) -> None:
        """Call it when a client comes: the loop may be another than the last time, as in a test client."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._is_called = loop, False
            if self._jobs or self._news:
                self._call()

    def mark(self, channel: Channel) -> None:
        """The channel has more. Call it once until it has been asked to tell its streams."""
        self._news.append(channel)
        if not self._is_called:
            self._call()

    def add(self, job: Job) -> None:
        """The job is advanced until it is done. It must not be under way yet."""
        self._jobs.append(job)
        if not self._is_called:
            self._call()

    def _call(self) -> None:
        """One turn of the loop is left to those who make events: where the loop has nothing to do it passes at once;
        where 200 sources yield without a pause, two events go out by one write (24 against 17 µs each).
        """
        self._is_called = True
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._turn)

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        news, self._news = self._news, []
        try:
            for channel in news:
                channel.tell(self)
            self._do(now, now + TURN_SECONDS)
        finally:  # a job that raises all the same must not be the end of the others
            self._is_called = bool(self._jobs)
            if self._jobs:
                loop.call_soon(self._turn)
            elif self._news:
                self._call()

    def _do(self, now: float, ends: float) -> None:
        jobs, done = self._jobs, 0
        while jobs and now < ends:
            job = jobs.popleft()
            if job.advance(now):
                jobs.append(job)
            done += 1
            if done % JOBS == 0:
                now = asyncio.get_running_loop().time()
