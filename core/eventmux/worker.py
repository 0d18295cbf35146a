"""Which of the processes of one service this is, and where the others are found. What they say is not known here."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = "EVENTMUX_WORKER"


@dataclass(frozen=True, slots=True)
class Worker:
    """One of `count` workers, from 0. `directory`: where each has its socket, and nobody else may look."""

    number: int
    count: int
    directory: Path

    @property
    def siblings(self) -> tuple[int, ...]:
        return tuple(number for number in range(self.count) if number != self.number)

    def socket(self, number: int) -> Path:
        """Where a worker listens for its siblings."""
        return self.directory / f"{number}.sock"

    def environ(self) -> dict[str, str]:
        """How a process is told that it is this one."""
        return {_VARIABLE: f"{self.number} {self.count} {self.directory}"}


def take_worker(environ: MutableMapping[str, str]) -> Worker | None:
    """Which one this process was told that it is; its own children are not told."""
    if (text := environ.pop(_VARIABLE, None)) is None:
        return None
    number, count, directory = text.split(" ", 2)
    return Worker(int(number), int(count), Path(directory))
