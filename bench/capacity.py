"""What it takes on paper to serve so many subscribers: processes, memory, bandwidth, Redis. Prints the tables of
docs/scaling.md, which are made by nothing else: `python -m bench.capacity`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOAD = 0.6  # of a core that is planned for: above it delays grow
PER_PROCESS = 20_000  # subscribers of one process, so that who takes over is not busy for long when it dies
SIZES = (1_000, 10_000, 100_000, 1_000_000)
RATES = (0.1, 1.0, 10.0)  # events a second for each subscriber
KIB, MEBI, GIGA = 1024, 1024 * 1024, 1e9


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured, where each says so. `us`: microseconds of CPU."""

    fanout_us: float = 9.3  # an event for one of 1,000 subscribers: docs/performance.md, fanout-1000
    connect_us: float = 356.0  # until the first event: docs/performance.md, connect
    subscriber_kib: float = 2.9  # idle: docs/measurements.md, Connecting
    kernel_kib: float = 4.2  # a connection: what Slab in /proc/meminfo grew by for each of 12,000 idle sockets
    event_bytes: int = 224  # of 120 bytes of JSON: 158 in a stream, and 66 of TCP, IP and Ethernet before them
    append_us: float = 70.0  # of Redis, for an event of a source with 1,000 a second: docs/scaling.md, What it costs
    read_us: float = 26.0  # of Redis, for each other replica that reads it: the same


COSTS = Costs()


def processes(subscribers: int, rate: float, costs: Costs = COSTS) -> int:
    """That serve them with LOAD of a core each at the most."""
    by_rate = math.ceil(subscribers * rate * costs.fanout_us / 1e6 / LOAD)
    return max(by_rate, math.ceil(subscribers / PER_PROCESS))


def memory(subscribers: int, costs: Costs = COSTS) -> float:
    """Bytes, of processes and kernels together."""
    return subscribers * (costs.subscriber_kib + costs.kernel_kib) * KIB


def bandwidth(subscribers: int, rate: float, costs: Costs = COSTS) -> float:
    """Bits a second."""
    return subscribers * rate * costs.event_bytes * 8


def redis_load(events: float, readers: int, costs: Costs = COSTS) -> float:
    """Of a core of Redis, for so many events a second that are appended, each read by so many other replicas."""
    return events * (costs.append_us + readers * costs.read_us) / 1e6


def storm(subscribers: int, left: int, costs: Costs = COSTS) -> float:
    """Seconds for which the processes that are left are busy, when a process with so many subscribers has died."""
    return subscribers * costs.connect_us / 1e6 / left


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def subscribers_table() -> str:
    rows = [
        [
            f"{size:,}",
            f"{rate:g}",
            f"{processes(size, rate):,}",
            f"{memory(size) / MEBI:,.0f} MiB",
            _rate(bandwidth(size, rate)),
        ]
        for size in SIZES
        for rate in RATES
    ]
    return table(("subscribers", "events/s for each", "processes", "memory", "bandwidth"), rows)


def redis_table() -> str:
    rows = []
    for events in (10, 100, 1_000, 10_000):
        for readers in (1, 9, 99):
            load = redis_load(events, readers)
            rows.append([f"{events:,}", f"{readers}", f"{load:.2g}", f"{max(1, math.ceil(load / LOAD))}"])
    return table(("events/s appended, in all", "other replicas that read each", "cores of Redis", "shards"), rows)


def storm_table() -> str:
    rows = [
        [f"{size:,}", f"{left}", f"{storm(size, left):.1f} s"]
        for size, left in ((1_000, 1), (10_000, 1), (10_000, 9), (50_000, 19))
    ]
    return table(("subscribers of the process that died", "processes left", "they are busy for"), rows)


def _rate(bits: float) -> str:
    return f"{bits / GIGA:.1f} Gbit/s" if bits >= GIGA else f"{bits / 1e6:.1f} Mbit/s"


def main() -> None:
    print(f"{subscribers_table()}\n\n{redis_table()}\n\n{storm_table()}")


if __name__ == "__main__":
    main()
