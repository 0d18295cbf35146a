"""The work that is measured, as data: what servers have to do, who does it, and how good the product is meant to be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .peers.shape import QUERY, Shape

PRODUCT = "eventmux"
OURS = (PRODUCT, "unstalled")
TITLES = {  # in the order in which they are shown
    PRODUCT: "eventmux",
    "unstalled": "eventmux, nobody stalled",
    "nchan": "nginx with Nchan",
    "better-sse": "better-sse on Node",
    "naive": "sse-starlette",
    "native": "FastAPI's own SSE",
    "aiostream": "aiostream.merge + sse-starlette",
    "floor": "C, one send() per event",
}

US = "us_per_event"


@dataclass(frozen=True, slots=True)
class Ratio:
    """The product's figure divided by a server's. `limit`: the target, at most, or with `at_least` at least; None if
    there is none. `of`: the figure of the other, if it is not the same.
    """

    server: str
    limit: float | None = None
    figure: str = US
    of: str = ""
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """`shows`: figures of the table, the main one first. `ready`: what a client waits for to be connected: the first
    byte of the `body`, or an `event`. `seconds`: that are measured; `settle`: seconds before that.
    """

    name: str
    says: str
    shape: Shape
    clients: int
    ratios: tuple[Ratio, ...]
    servers: tuple[str, ...]
    shows: tuple[str, ...] = (US, "events_per_s", "server_core", "client_core", "p50_ms", "p99_ms", "kib_per_client")
    seconds: float = 3.0
    settle: float = 1.0
    ready: Literal["body", "event"] = "body"
    parallel: int = 128
    stalled: int = 0
    storm: int = 0
    path: str = ""  # of the product; what the shape says if it is empty

    def shortened(self) -> Work:
        """For a look whether all is well; its figures say little."""
        return replace(
            self,
            says=f"{self.says} (quick: {min(self.clients, 500)} clients)",
            clients=min(self.clients, 500),
            storm=min(self.storm, 500),
            stalled=min(self.stalled, 10),
            seconds=min(self.seconds, 1.0),
            settle=0.5,
        )


def _fanout(clients: int, servers: tuple[str, ...], ratios: tuple[Ratio, ...], settle: float) -> Work:
    says = f"one shared source, 10 events/s of 120 bytes, {clients:,} subscribers"
    return Work(f"fanout-{clients}", says, Shape("shared"), clients, ratios, servers, settle=settle)


def _connect(name: str, says: str, kind: Literal["quotes-shared", "quotes-private"]) -> Work:
    rates = [Ratio("naive", 3.0, figure, at_least=True) for figure in ("connects_per_cpu_s", "connects_per_s")]
    shows = ("connect_us", "connects_per_cpu_s", "connects_per_s", "first_p50_ms", "first_p99_ms", "kib_per_client")
    source = "quotes" if kind == "quotes-shared" else "quote"
    return Work(
        name,
        says + ", behind FastAPI's parameters and a bearer token, until its first event; 3,000 connections",
        Shape(kind),
        3_000,
        tuple(rates),
        (PRODUCT, "naive"),
        shows,
        seconds=0.5,
        settle=0.2,
        ready="event",
        path=f"/sse/{source}?{QUERY}" + "&since=earliest" * (kind == "quotes-shared"),
    )


WORKS = (
    _fanout(
        1_000,
        (PRODUCT, "nchan", "floor", "better-sse", "naive", "native"),
        (Ratio("nchan", 0.85), Ratio("naive", 0.30), Ratio("native"), Ratio("better-sse"), Ratio("floor")),
        settle=1.0,
    ),
    _fanout(
        5_000,
        (PRODUCT, "nchan", "floor", "better-sse"),
        (Ratio("nchan", 0.85), Ratio("better-sse"), Ratio("floor")),
        settle=1.5,
    ),
    _fanout(10_000, (PRODUCT, "nchan", "floor"), (Ratio("nchan", 0.85), Ratio("floor")), settle=2.0),
    Work(
        "saturated",
        "one shared source as fast as it can, one event in each turn of the loop, 1,000 subscribers",
        Shape("shared", rate=0),
        1_000,
        (Ratio("nchan", 0.85), Ratio("naive"), Ratio("better-sse"), Ratio("floor")),
        (PRODUCT, "nchan", "floor", "better-sse", "naive"),
        (US, "events_per_s", "events_per_write", "server_core", "client_core", "p50_ms", "p99_ms"),
    ),
    Work(
        "coalesced",
        "the same in bursts of 16 events in each turn",
        Shape("shared", rate=0, burst=16),
        1_000,
        (Ratio("floor", 2.0),),
        (PRODUCT, "floor"),
        (US, "events_per_s", "events_per_write", "server_core", "client_core", "p50_ms", "p99_ms"),
    ),
    Work(
        "private",
        "200 clients with a private source each, one typed event in each turn of the loop; the product keeps history",
        Shape("private", rate=0),
        200,
        (Ratio("naive", 0.60), Ratio("native"), Ratio("floor")),
        (PRODUCT, "naive", "native", "floor"),
    ),
    Work(
        "private-merge",
        "200 clients, each with a merge of two private sources of its own, typed events",
        Shape("private", rate=0, channels=2),
        200,
        (Ratio("aiostream", 0.30),),
        (PRODUCT, "aiostream"),
    ),
    Work(
        "merged-10",
        "ten shared sources merged, each 10 events/s, 500 subscribers",
        Shape("shared", channels=10),
        500,
        (Ratio("nchan", 0.85), Ratio("naive"), Ratio("aiostream"), Ratio("floor")),
        (PRODUCT, "nchan", "floor", "naive", "aiostream"),
    ),
    Work(
        "idle",
        "10,000 subscribers of a shared source that says nothing, heartbeats every 15 s",
        Shape("idle"),
        10_000,
        (Ratio("nchan", 0.30, "kib_per_client"), Ratio("nchan", figure="heartbeat_us")),
        (PRODUCT, "nchan", "naive"),
        ("kib_per_client", "heartbeat_us", "server_core", "connect_us", "connects_per_s"),
        seconds=15.0,
    ),
    _connect("connect", "a shared source", "quotes-shared"),
    _connect("connect-private", "a private source for each", "quotes-private"),
    Work(
        "stalled",
        "one shared source, 10 events/s, 5,000 subscribers of which 50 never read, against none that stalls",
        Shape("shared"),
        5_000,
        (Ratio("unstalled", 1.2, "p99_ms"), Ratio("unstalled")),
        (PRODUCT, "unstalled"),
        ("p99_ms", "p50_ms", "max_ms", US, "server_core"),
        seconds=6.0,
        settle=2.0,
        stalled=50,
    ),
    Work(
        "storm",
        "5,000 clients reconnect at once, each 100 events behind, while 1,000 others are served 10 events/s",
        Shape("shared"),
        1_000,
        (
            Ratio(PRODUCT, 1.0, "replay_us", of=US),
            Ratio(PRODUCT, 2.0, "storm_p99_ms", of="p99_ms"),
            # With 6,000 each event takes six times as long to be sent: this is what the storm adds to that.
            Ratio(PRODUCT, figure="storm_p99_ms", of="crowd_p99_ms"),
        ),
        (PRODUCT,),
        (
            *("replay_us", "replay_most_us", US, "crowd_us", "storm_connect_us", "storm_s", "replayed"),
            *("storm_p99_ms", "plain_p99_ms", "crowd_p99_ms", "p99_ms"),
        ),
        seconds=5.0,
        parallel=1_000,
        storm=5_000,
    ),
)

BY_NAME = {work.name: work for work in WORKS}
