"""A chaos run as text: faults by kind, what clients have seen, what was wrong."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chaos import Result
    from .journal import Fault

MIB = 1024 * 1024


def report(result: Result) -> str:
    totals = result.totals
    gaps = {name: count for name, count in sorted(totals.counts.items()) if name.startswith(("gap", "end", "error"))}
    others = {name: count for name, count in sorted(totals.counts.items()) if name not in gaps}
    lines = [
        *_table(result.faults),
        f"{sum(1 for fault in result.faults if fault.kind != 'slow machine')} faults in {result.seconds:.0f} s, "
        f"lease {result.options['lease']:g} s, Redis {result.redis}, replicas started {result.lives} times",
        f"{totals.events} events checked on {totals.connections} connections of {result.options['clients']} clients, "
        f"{totals.bytes / MIB:.0f} MiB; {result.shared_events} of shared sources compared, {result.read_back} of them "
        "read back from Redis and from replicas",
        "told: " + (", ".join(f"{name} {count}" for name, count in gaps.items()) or "no gap"),
        "connections: " + ", ".join(f"{name} {count}" for name, count in others.items()),
        f"at most {result.peak.rss / MIB:.0f} MiB and {result.peak.fds} open files in a process; "
        f"keys left in Redis: {result.keys_left}",
        f"violations: {len(totals.violations)}",
        *totals.violations[:20],
        *(f"WRONG: {what}" for what in result.wrong[:40]),
        "FAILED" if result.wrong or totals.violations else "passed",
    ]
    return "\n".join(lines)


def _table(faults: list[Fault]) -> list[str]:
    kinds: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    rows = [("fault", "times", "seconds, median", "all have events again after, median", "at most")]
    for kind, found in sorted(kinds.items()):
        backs = [fault.back for fault in found if fault.back is not None]
        shown = (f"{median(backs):.1f} s", f"{max(backs):.1f} s") if backs else ("-", "-")
        rows.append((kind, str(len(found)), f"{median(fault.end - fault.begin for fault in found):.1f}", *shown))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
