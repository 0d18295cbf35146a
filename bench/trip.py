"""One connection of a client as it is meant, drawn by chance: what it asks for, of whom, how, and for how long."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from .pact import Pact
from .replica import Replica
from .wire import NDJSON, request

SHARED = ("steady", "bursty", "small", "changed", "failing")
FINITE = ("answer", "paid", "flood")
SOURCES = (*SHARED, *FINITE, "endless")
WEIGHTS = (5, 2, 2, 2, 2, 3, 2, 1, 3)
# Events that their histories hold, as in chaos.yaml.
BOUNDED = {"steady": 5_000, "changed": 5_000, "failing": 5_000, "bursty": 20_000, "small": 120, "flood": 1_000}
LINGER = 10.0  # seconds, as there


@dataclass(frozen=True, slots=True)
class Trip:
    """One connection as it is meant. `stall`: (after so many seconds, for so many seconds), or None."""

    replica: Replica
    text: bytes
    is_lines: bool
    seconds: float
    stall: tuple[float, float] | None
    resets: bool
    small: bool


def choose(chance: random.Random, before: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Sources, some of those that were asked for before among them."""
    chosen = {name for name in before if chance.random() < 0.7}
    chosen |= set(chance.choices(SOURCES, WEIGHTS, k=chance.choice((1, 1, 2, 3))))
    return tuple(chance.sample(sorted(chosen), len(chosen)))


def plan(chance: random.Random, replicas: Sequence[Replica], pact: Pact) -> Trip:
    """Go on with the pact: at any replica, by any of the ways that there are to ask."""
    selection = pact.selection
    query, headers = {}, {"Accept": NDJSON if (is_lines := chance.random() < 0.15) else "text/event-stream"}
    if pact.cursor is None and chance.random() < 0.3:
        query["since"] = chance.choice(("earliest", "2s"))
    elif pact.cursor is not None and chance.random() < 0.2:
        query["last_event_id"] = pact.cursor
    elif pact.cursor is not None:
        headers["Last-Event-ID"] = pact.cursor
    if pact.thirds:
        query["events"] = "third"
    counts = {name: {"count": pact.lengths[name]} for name in selection if name in FINITE}
    is_merged = len(selection) > 1 or chance.random() < 0.2
    path = "/sse" if is_merged else f"/sse/{selection[0]}"
    body = None
    if chance.random() < 0.2:
        sources = {name: counts.get(name, {}) for name in selection}
        body = json.dumps({"sources": sources} if is_merged else sources[selection[0]]).encode()
    else:
        query |= {f"{name}.count": str(given["count"]) for name, given in counts.items()}
        query |= {"sources": ",".join(selection)} if is_merged else {}
    return Trip(
        replica=chance.choice(replicas),
        text=_request(path, query, body, headers),
        is_lines=is_lines,
        seconds=chance.choice((0.0, chance.expovariate(0.4), chance.uniform(2, 20))),
        stall=(chance.expovariate(1), chance.uniform(1, 3)) if chance.random() < 0.15 else None,
        resets=chance.random() < 0.3,
        small=chance.random() < 0.2,
    )


def _request(path: str, query: Mapping[str, str], body: bytes | None, headers: Mapping[str, str]) -> bytes:
    return request(path + "?" * bool(query) + urlencode(query), body, **headers)
