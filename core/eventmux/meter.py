"""What the service counts, as plain numbers: who shows them, and in which form, is not said here.

Nothing here has a name that a client could have given: sources and plugins come from the configuration, reasons are
fixed. A source that is removed keeps its numbers, since a counter must not go back.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Literal, get_args

from .errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

Missing = Literal["evicted", "restarted", "unknown", "lagged"]
Slowness = Literal["send_timeout", "overflow"]

MISSING: tuple[Missing, ...] = get_args(Missing)
NOBODY = "none"  # whom a stall is counted for when no plugin is to be seen in it

MILLISECOND = 1_000_000  # nanoseconds
LAGS = [int(ms * MILLISECOND) for ms in (0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4)]
REPLAYS = [0, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 100_000]  # events


class Histogram:
    """Whole numbers, counted by the first bound that they do not exceed; the last count is of those above all.

    prometheus_client's own observes one value at a time, and takes a lock for each.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0

    def add(self, value: int, weight: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += weight
        self.sum += value * weight


class Tally:
    """Of one source. `open` goes up and down, all else only up."""

    __slots__ = ("appended", "delivered", "failures", "gaps", "open", "opened", "restarts")

    def __init__(self) -> None:
        self.open = self.opened = self.appended = self.delivered = self.restarts = self.failures = 0
        self.gaps: dict[str, int] = dict.fromkeys(MISSING, 0)


class Meter:
    """Of one service. `bytes`: of bodies, handed to clients; without heartbeats and HTTP's own. Lags in nanoseconds."""

    def __init__(self) -> None:
        self.open = self.opened = self.bytes = 0
        self.lag = Histogram(LAGS)
        self.replay = Histogram(REPLAYS)
        self.loop_lag = Histogram(LAGS)
        self.refusals: dict[Refusal, int] = dict.fromkeys(get_args(Refusal), 0)
        self.slow: dict[Slowness, int] = dict.fromkeys(get_args(Slowness), 0)
        self.stalls: dict[str, int] = {NOBODY: 0}
        self.tallies: dict[str, Tally] = {}

    def of(self, source: str) -> Tally:
        """The tally of a source of the configuration."""
        found = self.tallies.get(source)
        if found is None:
            found = self.tallies[source] = Tally()
        return found

    def refused(self, reason: Refusal) -> None:
        """A request for a stream gets none."""
        self.refusals[reason] += 1

    def stalled(self, plugin: str | None) -> None:
        """A plugin has blocked the loop."""
        name = plugin or NOBODY
        self.stalls[name] = self.stalls.get(name, 0) + 1
