"""For how long runs stay: while somebody reads them and a while longer, within the bounds of all together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .errors import FullError

if TYPE_CHECKING:
    from .closing import Closing
    from .policy import Limits
    from .run import Run

PUBLISHED_SECONDS = 1.0  # that a run lasts at least, for what is published to it
EXPECTED_SECONDS = 5.0  # that a run lasts at least, for a client whose logs are being loaded


class Lifetimes:
    """Starts a run for who joins it, and stops it `linger` after the last has left. Once `is_draining` nothing lingers.
    `forget`: lets go a run and its log.
    """

    def __init__(self, limits: Limits, closing: Closing, forget: Callable[[Run], None]) -> None:
        self.limits = limits
        self.is_draining = False
        self._closing = closing
        self._forget = forget
        self._alive: set[Run] = set()  # that have a generator, waiting to be started again included
        self._expiries: dict[Run, asyncio.TimerHandle] = {}
        self._detached: dict[Run, None] = {}  # private runs that nobody reads, in the order in which they were left
        self._finished: dict[Run, None] = {}  # the same of those that are over

    @property
    def active(self) -> int:
        """How many generators there are, those included that are being closed."""
        return len(self._alive) + len(self._closing)

    def keep(self, run: Run) -> None:
        """Start the run, or keep it, for a subscription that joins now. Raises FullError where there is no room."""
        if run.state == "idle":
            self._make_way()
            self._alive.add(run)
        if expiry := self._expiries.pop(run, None):
            expiry.cancel()
        self._detached.pop(run, None)
        self._finished.pop(run, None)
        run.start()

    def _make_way(self) -> None:
        """At the bound of all runs, one goes that nobody reads: private ones first, of each kind the one that was left
        first. What still has published events to take stays.
        """
        if len(self._alive) + self._closing.abandoned < self.limits.runs:
            return
        lingering = (run for run in self._expiries if run in self._alive and not run.inbox and not _is_needed(run))
        if run := next(iter(self._detached), None) or next(lingering, None):
            self._expire(run)
        else:
            raise FullError(f"there are {len(self._alive)} runs, and no more are started now")

    def leave(self, run: Run) -> None:
        """The last subscription has left."""
        linger = run.enabled.policy.linger_seconds
        if linger <= 0 or self.is_draining:
            self._expire(run)
            return
        self._linger(run, linger)
        if not run.enabled.shared:
            # Finished runs cost memory, running ones more than that: neither pushes out the other.
            left = self._finished if run.state == "over" else self._detached
            left[run] = None
            if len(left) > self.limits.detached:
                self._expire(next(iter(left)))

    @contextlib.contextmanager
    def attending(self, run: Run) -> Iterator[None]:
        """Have the run started for something that it is to take, and let it have its time for that."""
        self.keep(run)
        try:
            yield
        finally:
            if not run.channel.streams and run in self._alive:  # it may have been let go meanwhile
                self._linger(run, max(run.enabled.policy.linger_seconds, PUBLISHED_SECONDS))

    def begin(self, run: Run) -> None:
        """It was loaded for a client, and goes unless somebody joins it soon."""
        self._linger(run, EXPECTED_SECONDS)

    def expect(self, run: Run) -> None:
        """Somebody is about to join it: it does not expire meanwhile."""
        if run in self._expiries:
            self._linger(run, max(run.enabled.policy.linger_seconds, EXPECTED_SECONDS))

    def lingers(self, run: Run) -> bool:
        """Whether it outlives its last subscription now."""
        return run in self._expiries

    def _linger(self, run: Run, seconds: float) -> None:
        if expiry := self._expiries.pop(run, None):
            expiry.cancel()
        self._expiries[run] = asyncio.get_running_loop().call_later(seconds, self._lingered, run, _taken(run))

    def _lingered(self, run: Run, taken: int) -> None:
        """It goes on for as long as it takes what was published to it, and has that time for the last of it, too."""
        if taken != _taken(run):
            self._linger(run, max(run.enabled.policy.linger_seconds, PUBLISHED_SECONDS))
        else:
            self._expire(run)

    def _expire(self, run: Run) -> None:
        """Stop the run. The log of a shared one stays, for the next run to go on with, unless it is over or empty, or
        in the store anyway.
        """
        if _is_needed(run) and not self.is_draining:
            self._linger(run, max(run.enabled.policy.linger_seconds, PUBLISHED_SECONDS))
        elif run.enabled.shared and run.state != "over" and run.channel.history.last and not run.seat:
            self.stop(run)
        else:
            self._forget(run)

    def over(self, run: Run) -> bool:
        """Nothing more comes of it. Returns whether it is left now as one that is over."""
        self._alive.discard(run)
        if run.channel.streams or (run in self._expiries and run not in self._detached):
            return False
        self._detached.pop(run, None)
        return True

    def stop(self, run: Run) -> None:
        """Close its generator; it may be started again."""
        if expiry := self._expiries.pop(run, None):
            expiry.cancel()
        self._detached.pop(run, None)
        self._finished.pop(run, None)
        self._alive.discard(run)
        self._closing.add(run.stop(is_leaving=self.is_draining))


def _is_needed(run: Run) -> bool:
    """Whether other replicas need it, or what was published here."""
    return bool((run.seat and run.seat.is_needed) or (run.box and run.box.is_attended))


def _taken(run: Run) -> int:
    return 0 if run.inbox is None else run.inbox.taken
