"""What all clients together have seen of the shared logs: each number is one event, and each stretch has one writer."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .check import Violation

if TYPE_CHECKING:
    from eventmux.store.contract import Record

FORK_STEPS = 8  # numbers that are shown on both sides of what is wrong


@dataclass(slots=True)
class Seen:
    """Of one log, by number: when each event was made, and by whom (0: nobody has seen it)."""

    made: array[float] = field(default_factory=lambda: array("d"))
    by: array[int] = field(default_factory=lambda: array("L"))
    writers: list[str] = field(default_factory=lambda: [""])

    @property
    def last(self) -> int:
        return len(self.by) - 1

    def take(self, n: int, by: str, made: float) -> str | None:
        """What is wrong with that, if anything."""
        if n > self.last:
            self.by.extend([0] * (n - self.last))
            self.made.extend([0.0] * (n + 1 - len(self.made)))
        if self.by[n]:
            before = self.writers[self.by[n]]
            if (before, self.made[n]) != (by, made):
                return f"number {n} is of {by} at {made:.6f}, and was of {before} at {self.made[n]:.6f} for others"
            return None
        if by not in self.writers[-3:]:
            self.writers.append(by)
        self.by[n], self.made[n] = len(self.writers) - 1 - self.writers[::-1].index(by), made
        return None

    def faults(self) -> Iterator[str]:
        """A writer that was followed by another must not write again, and time goes on with the numbers."""
        past: set[str] = set()
        writer, newest = "", 0.0
        for n, by in enumerate(self.by):
            if not by:
                continue
            name = self.writers[by]
            if name != writer:
                if name in past:
                    yield f"number {n} is of {name}, which {writer} had followed: {self._around(n)}"
                past.add(writer)
                writer = name
            if self.made[n] < newest:
                yield f"number {n} was made before the one before it: {self._around(n)}"
            newest = self.made[n]

    def _around(self, n: int) -> str:
        some = range(max(1, n - FORK_STEPS), min(self.last, n + FORK_STEPS) + 1)
        return ", ".join(f"{i}: {self.writers[self.by[i]] or '?'} at {self.made[i]:.4f}" for i in some)


class Witness:
    """`events`: how many the clients have told of; `read_back`: how many were compared with what the store has."""

    def __init__(self) -> None:
        self.events = self.read_back = 0
        self._logs: dict[str, Seen] = {}

    def last(self, source: str) -> int:
        """The highest number that anybody has seen."""
        return self._logs[source].last if source in self._logs else 0

    def saw(self, data: dict[str, Any]) -> None:
        """A client has got this event of a shared source. Raises Violation if another got something else."""
        self.events += 1
        source = data["source"]
        if wrong := self._logs.setdefault(source, Seen()).take(data["n"], data["by"], data["made"]):
            raise Violation(f"{source}: the log is forked: {wrong}")

    def faults(self) -> list[str]:
        """What is wrong with the logs as they were seen."""
        return [f"{source}: {fault}" for source, seen in self._logs.items() for fault in seen.faults()]

    def compare(self, source: str, found: Sequence[dict[str, Any]], where: str) -> list[str]:
        """What is wrong with a part of a log as it was read back: the numbers follow each other, and are as seen."""
        wrong: list[str] = []
        for before, data in zip([None, *found], found, strict=False):
            self.read_back += 1
            if before and data["n"] != before["n"] + 1:
                wrong.append(f"{source} {where}: {data['n']} follows {before['n']}")
            if before and data["log"] != before["log"]:
                wrong.append(f"{source} {where}: log {data['log']} follows {before['log']} at {data['n']}")
            try:
                self.saw(data)
            except Violation as violation:
                wrong.append(f"{where}: {violation}")
        return wrong[:5]


def events_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The data of what a source has made, without what the service has added."""
    return [
        json.loads(b"\n".join(line[6:] for line in one.body.split(b"\n") if line.startswith(b"data: ")))
        for one in records
        if one.ended is None and not one.event.startswith("stream.")
    ]
