"""How a source is run: what its author proposes, and what the operator makes of it in plugins.yaml. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SHARED_LINGER = 10.0  # seconds
PRIVATE_LINGER = 30.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a history keeps. `bytes` counts what an event costs beside its text too; `age` is in seconds."""

    events: int = 1_000
    bytes: int = 4 * 1024 * 1024
    age: float | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """How a shared source that has failed is started again. Seconds.

    The wait begins with `backoff`, doubles with every failure in a row up to `max_backoff`, and is jittered, so that
    many sources of one upstream do not come back together. A run that lasts for `max_backoff` begins a new row. After
    `attempts` failures in a row the source is quarantined: its streams stay open, and it is tried every `quarantine`
    seconds.
    """

    backoff: float = 1.0
    max_backoff: float = 60.0
    attempts: int = 5
    quarantine: float = 300.0

    def wait(self, failures: int, jitter: float) -> float:
        """Seconds until the next try after so many failures in a row; `jitter` is from 0 to 1."""
        return float(min(self.max_backoff, self.backoff * 2.0 ** min(failures - 1, 32)) * (0.5 + jitter / 2))


@dataclass(frozen=True, slots=True)
class Policy:
    """`shared`: one run for all subscribers with equal parameters, instead of one for each request. `once`: a reconnect
    never starts a run again. `linger`: seconds that a run outlives its last subscriber. `overflow`: a reader that lags
    behind the history is moved on with a gap (`skip`), or disconnected and told when it comes back (`disconnect`).
    `max_runs`: so many logs of the source at a time, since their parameters come from clients.
    """

    shared: bool = False
    once: bool = False
    linger: float | None = None
    history: Bounds = field(default_factory=Bounds)
    overflow: Literal["skip", "disconnect"] = "skip"
    restart: Restart = field(default_factory=Restart)
    max_runs: int = 10_000

    @property
    def linger_seconds(self) -> float:
        if self.linger is not None:
            return self.linger
        return SHARED_LINGER if self.shared else PRIVATE_LINGER


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process takes and keeps. `history`: bytes of all together, and as many of what clients have sent as
    parameters. `detached`: private runs without a subscriber. `runs`: generators. `streams`: open ones, in all, of one
    principal and of one address; `new_streams`: of them in a second, of which five seconds' worth may come at once.
    `sources`: in one stream. `query`, `body`: bytes of a request.
    """

    history: int = 256 * 1024 * 1024
    detached: int = 1_000
    runs: int = 20_000
    streams: int = 50_000
    streams_per_principal: int = 20_000
    streams_per_address: int = 20_000
    new_streams: float = 2_000.0
    sources: int = 32
    query: int = 32 * 1024
    body: int = 1024 * 1024
