"""A chaos run as text: faults by kind, what clients have seen, what was wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from .journal import EVERYBODY, Fault

if TYPE_CHECKING:
    from .chaos import Result

MIB = 1024 * 1024


def report(result: Result) -> str:
    totals, peak = result.totals, result.peak
    told = [name for name in totals.counts if name.startswith(("gap", "end", "error"))]
    faults = sum(fault.kind not in EVERYBODY for fault in result.faults)
    lines = [
        *_table(result.faults),
        f"{faults} faults in {result.seconds:.0f} s, lease {result.options['lease']:g} s, Redis {result.redis}",
        f"{totals.events} events checked on {totals.connections} connections, {totals.bytes / MIB:.0f} MiB",
        f"{result.options['clients']} clients; replicas were started {result.lives} times",
        f"{result.shared_events} events of shared sources compared with what others had, {result.read_back} read back",
        f"told: {_counts(totals.counts, told)}",
        f"connections: {_counts(totals.counts, [name for name in totals.counts if name not in told])}",
        f"at most {peak.rss / MIB:.0f} MiB and {peak.fds} open files in a process; keys left: {result.keys_left}",
        f"violations: {len(totals.violations)}",
        *totals.violations[:20],
        *(f"WRONG: {what}" for what in result.wrong[:40]),
        "FAILED" if result.wrong or totals.violations else "passed",
    ]
    return "\n".join(lines)


def _counts(counts: Mapping[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {counts[name]}" for name in sorted(names)) or "nothing"


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
