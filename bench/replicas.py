"""What several replicas cost over one Redis, against one with its memory: `python -m bench.replicas`, minutes.

Prints the tables of docs/scaling.md. CPU is what counts: four replicas and a Redis share the cores that there are, so
that delays and rates are theirs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence

from .cases import BY_NAME, MEMORY, Case
from .fleet import fleet
from .load import LoadError

COLUMNS = {
    "us_per_event": "CPU us/delivery",
    "writer_us": "us/event, runs the source",
    "reader_us": "us/event, reads it",
    "redis_us": "us/event, Redis",
    "redis_calls": "commands/event",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "other_p50_ms": "p50 ms elsewhere",
    "other_p99_ms": "p99 ms elsewhere",
}


def measure(case: Case, names: Sequence[str], rounds: int) -> Mapping[str, Mapping[str, list[float]]]:
    """Each fleet in turn, round after round: its figures, by name."""
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names}
    for _ in range(rounds):
        for name in names:
            with fleet(case.work, name) as members:
                for figure, value in members.measure().items():
                    found[name][figure].append(value)
    return found


def table(case: Case, found: Mapping[str, Mapping[str, list[float]]]) -> str:
    columns = [name for name in COLUMNS if any(name in figures for figures in found.values())]
    lines = [f"| {case.work.says} | " + " | ".join(COLUMNS[name] for name in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, figures in found.items():
        cells = [f"{statistics.median(figures[one]):.3g}" if figures.get(one) else "" for one in columns]
        lines.append(f"| {_title(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(found: Mapping[str, Mapping[str, list[float]]], name: str, figure: str) -> str:
    """Against the memory, in the same round."""
    pairs = zip(found[name][figure], found[MEMORY][figure], strict=True)
    ratios = sorted(one / other for one, other in pairs)
    return f"{_title(name)} against memory: {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def _title(name: str) -> str:
    return {MEMORY: "memory", "1": "1 replica"}.get(name, f"{name} replicas" if name.isdigit() else name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default=",".join(BY_NAME), help=f"of {', '.join(BY_NAME)}")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.work.split(","):
        case = BY_NAME[name]
        try:
            found = measure(case, case.fleets, options.rounds)
        except LoadError as error:
            sys.exit(f"{name}: {error}")
        print(table(case, found))
        for one in case.fleets:
            if one != MEMORY:
                print(ratio(found, one, case.figure))
        print(flush=True)


if __name__ == "__main__":
    main()
