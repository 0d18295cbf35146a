"""What is measured on Redis and on memory, as data. How it is done is in fleet.py."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .peers.shape import Shape
from .work import PRODUCT, US, Work

MEMORY = "memory"
READER = "reader"
SUBSCRIBERS = 8  # of each replica, where they are only there to see the delay


@dataclass(frozen=True, slots=True)
class Case:
    """`fleets`: `memory`, or how many replicas there are over one Redis, or `reader`: one that reads what another
    writes. `figure`: what is compared of one replica on Redis and one on memory; `limit`: that ratio at most, None if
    there is no target.
    """

    work: Work
    fleets: tuple[str, ...] = (MEMORY, "1")
    figure: str = US
    limit: float | None = None

    @property
    def name(self) -> str:
        return self.work.name

    def shortened(self) -> Case:
        return replace(self, work=self.work.shortened())


def _work(name: str, says: str, shape: Shape, clients: int, seconds: float = 3.0) -> Work:
    return Work(name, says, shape, clients, (), (PRODUCT,), seconds=seconds, settle=1.5)


def _connect(name: str, says: str, shape: Shape, path: str) -> Work:
    work = _work(name, f"{says}, until the first event; 3,000 connections", shape, 3_000, seconds=0.5)
    return replace(work, ready="event", path=path, settle=0.2)


_ALL = (MEMORY, "1", "2", "4")
_FANOUT = (MEMORY, "1", READER)
_QUERY = "symbol=ACME&depth=5&interval=60"

CASES = (
    Case(_work("slow", "one source, 10 events/s", Shape("shared"), SUBSCRIBERS, 6.0), _ALL),
    Case(_work("fast", "one source, 1,000 events/s", Shape("shared", rate=1_000), SUBSCRIBERS), _ALL),
    Case(
        _work("many", "32 sources merged, 1,000 events/s in all", Shape("shared", 31.25, channels=32), SUBSCRIBERS),
        _ALL,
    ),
    Case(_work("fanout", "1,000 subscribers of one source, 10 events/s", Shape("shared"), 1_000), _FANOUT, limit=1.1),
    Case(
        _work("bursts", "the same, 16 events at once ten times a second", Shape("shared", burst=16), 1_000),
        _FANOUT,
        limit=1.1,
    ),
    Case(
        _work("coalesced", "the same, 16 events in each turn of the loop", Shape("shared", rate=0, burst=16), 1_000),
        _FANOUT,
        limit=1.1,
    ),
    Case(_work("answers", "200 private sources, 40 typed events/s each", Shape("private", rate=40), 200, 5.0)),
    Case(_work("private", "200 private sources, as fast as they can", Shape("private", rate=0), 200)),
    Case(
        _connect(
            "connect", "a shared source, with a token", Shape("quotes-shared"), f"/sse/quotes?{_QUERY}&since=earliest"
        ),
        figure="connect_us",
    ),
    Case(
        _connect(
            "connect-private",
            "a private source for each, with a token",
            Shape("quotes-private"),
            f"/sse/quote?{_QUERY}",
        ),
        figure="connect_us",
    ),
)
BY_NAME = {case.name: case for case in CASES}
