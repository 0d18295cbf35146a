"""From what the load client found to figures, from these to ratios, and to met or missed. Nothing is timed here."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .load import Found
from .work import PRODUCT, Ratio, Work

FIGURES = {  # name: its heading with the unit
    "us_per_event": "CPU us/event",
    "events_per_s": "events/s",
    "events_per_write": "events/write",
    "server_core": "core used",
    "server_waited": "core waited for",
    "client_core": "by the client",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "max_ms": "max ms",
    "kib_per_client": "KiB/client",
    "heartbeat_us": "CPU us/heartbeat",
    "connect_us": "CPU us/connect",
    "connects_per_cpu_s": "connects/s of CPU",
    "connects_per_s": "connects/s",
    "first_p50_ms": "first event p50 ms",
    "first_p99_ms": "first event p99 ms",
    "replay_us": "CPU us/replayed event",
    "replay_most_us": "at most",
    "crowd_us": "CPU us/event with all",
    "storm_connect_us": "CPU us/connect",
    "storm_p99_ms": "p99 ms in the storm",
    "plain_p99_ms": "p99 ms while as many connect",
    "crowd_p99_ms": "p99 ms with all",
    "storm_s": "storm s",
    "replayed": "replayed",
}
KEPT_UP = 0.95  # of the events that were due: a server that delivers fewer is overloaded, and its delays say nothing
DISTURBED = 0.1  # of the time: so long a server that could have run has waited for its core, which others had
CLIENT_BUSY = 0.93  # of a core: the load client is what limits the throughput; CPU per event holds

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one server. `found` is what the load client has printed; `error` says why there is nothing."""

    work: str
    server: str
    round: int
    found: Found | None = None
    error: str | None = None

    @property
    def figures(self) -> Figures:
        return figures_of(self.found) if self.found else {}


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of several rounds."""

    median: float
    least: float
    most: float
    count: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A ratio of the product's figure to another's, and whether the target is met; None if there is no target."""

    ratio: Ratio
    spread: Spread
    is_met: bool | None

    @property
    def is_worse(self) -> bool:
        """Whether the product is the worse of the two."""
        return self.spread.median < 1 if self.ratio.at_least else self.spread.median > 1


def figures_of(found: Found) -> Figures:
    """All figures that can be had of a run; times in the unit that their names say, CPU in microseconds."""
    steady, connect, memory = found["steady"], found["connect"], found["memory"]
    ready = max(1, connect["ready"])
    figures = {
        "events_per_s": steady["events"] / steady["seconds"],
        "server_core": steady["server_cpu_us"] / steady["seconds"] / 1e6,
        "server_waited": steady["server_waited_us"] / steady["seconds"] / 1e6,
        "client_core": steady["client_cpu_us"] / steady["seconds"] / 1e6,
        "kib_per_client": (memory["after_kib"] - memory["before_kib"]) / ready,
        "connect_us": connect["server_cpu_us"] / ready,
        "connects_per_s": connect["ready"] / connect["seconds"],
        "connects_per_cpu_s": 1e6 * connect["ready"] / max(1.0, connect["server_cpu_us"]),
        "first_p50_ms": connect["first_p50_us"] / 1e3,
        "first_p99_ms": connect["first_p99_us"] / 1e3,
    }
    if steady["events"]:
        figures["us_per_event"] = steady["server_cpu_us"] / steady["events"]
        if steady["chunks"]:  # Nchan sends none: its stream ends with the connection
            figures["events_per_write"] = steady["events"] / steady["chunks"]
        figures |= {f"{name}_ms": steady[f"{name}_us"] / 1e3 for name in ("p50", "p99", "max")}
        if "storm" in found:
            figures |= _storm(found)
    elif steady["reads"]:
        figures["heartbeat_us"] = steady["server_cpu_us"] / steady["reads"]
    return figures


def _storm(found: Found) -> Figures:
    """What a replayed event costs: what is left of the storm's CPU when live delivery and connecting are taken off.

    A live event's cost is from the crowd: as many clients as in the storm, when all were connected. A connection's is
    from the plain ones, which did the same without a cursor: their CPU without the live delivery of that time. It is a
    difference of large numbers, and can be less than nothing where it is small; `replay_most_us` is what it is at most,
    with only the plain ones taken off.
    """
    plain, crowd, storm = found["plain"], found["crowd"], found["storm"]
    live_us = crowd["server_cpu_us"] / max(1.0, _live(crowd))
    connect_us = (plain["server_cpu_us"] - live_us * _live(plain)) / max(1, plain["newcomers_ready"])
    rest = storm["server_cpu_us"] - live_us * _live(storm) - connect_us * storm["newcomers_ready"]
    return {
        "storm_connect_us": connect_us,
        "replay_us": rest / max(1, storm["replayed"]),
        "replay_most_us": (storm["server_cpu_us"] - plain["server_cpu_us"]) / max(1, storm["replayed"]),
        "crowd_us": live_us,
        "storm_p99_ms": storm["p99_us"] / 1e3,
        "plain_p99_ms": plain["p99_us"] / 1e3,
        "crowd_p99_ms": crowd["p99_us"] / 1e3,
        "storm_s": storm["seconds"],
        "replayed": float(storm["replayed"]),
    }


def _live(window: dict[str, Any]) -> float:
    """Events that were delivered as they came, to those who were there before and to the newcomers."""
    return float(window["events"] + window["newcomers_events"])


def fault_of(work: Work, found: Found) -> str | None:
    """Why a run must not be counted, or None."""
    connect, steady = found["connect"], found["steady"]
    if connect["ready"] < work.clients * 0.99:
        said = f": {found['said']}" if found.get("said") else ""
        return f"only {connect['ready']:,} of {work.clients:,} clients got connected{said}"
    if steady["lost"] > work.clients * 0.01:
        return f"{steady['lost']:,} of {work.clients:,} connections were closed by the server"
    if work.shape.kind in {"shared", "private"} and not steady["events"]:
        return "no event was received"
    if "storm" in found and found["storm"]["caught_up"] < work.storm * 0.99:
        return f"only {found['storm']['caught_up']:,} of {work.storm:,} have caught up with the storm"
    return None


def is_higher_better(work: Work, figure: str) -> bool | None:
    """None for what is neither good nor bad."""
    if figure == "events_per_s":  # of a paced source all have the same
        return True if work.shape.rate == 0 or work.shape.kind == "private" else None
    if figure in {"connects_per_s", "connects_per_cpu_s"}:
        return True
    return None if figure in {"events_per_write", "server_core", "client_core", "replayed", "storm_s"} else False


def spread_of(values: Sequence[float]) -> Spread | None:
    return Spread(statistics.median(values), min(values), max(values), len(values)) if values else None


def values_of(runs: Iterable[Run], server: str, figure: str) -> dict[int, float]:
    """The figure in each round."""
    return {run.round: run.figures[figure] for run in runs if run.server == server and figure in run.figures}


def verdict_of(ratio: Ratio, runs: Sequence[Run]) -> Verdict | None:
    """None if one of the two was not measured. Only rounds that have both count: then both had the same machine."""
    mine = values_of(runs, PRODUCT, ratio.figure)
    theirs = values_of(runs, ratio.server, ratio.of or ratio.figure)
    spread = spread_of([mine[number] / theirs[number] for number in mine.keys() & theirs.keys() if theirs[number]])
    if spread is None:
        return None
    is_met = None
    if ratio.limit is not None:
        is_met = spread.median >= ratio.limit if ratio.at_least else spread.median <= ratio.limit
    return Verdict(ratio, spread, is_met)


def remark_on(work: Work, figures: Figures) -> str:
    """What a reader of the row must know."""
    remarks = []
    due = work.clients * work.shape.rate * work.shape.channels if work.shape.kind == "shared" else 0
    if figures["events_per_s"] < due * KEPT_UP:
        remarks.append(f"overloaded: {figures['events_per_s'] / due:.0%} of what was due")
    if figures["client_core"] > CLIENT_BUSY:
        remarks.append("client-bound")
    if figures["server_waited"] > DISTURBED:
        remarks.append(f"disturbed: waited {figures['server_waited']:.0%} of the time for its core")
    return ", ".join(remarks)
