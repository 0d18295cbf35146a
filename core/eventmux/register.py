"""Where runs are found: by the epoch of their log, and shared ones by their parameters. How long they stay there is not
said here.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .cursor import shared_epoch
from .run import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel

    from .catalog import EnabledSource
    from .run import Run

FEW = 4  # runs of a source that are compared one by one, the newest first


@dataclass(slots=True)
class Census:
    """The runs of one source by their state, and what their logs keep."""

    states: Counter[str] = field(default_factory=Counter)
    events: int = 0
    bytes: int = 0

    def count(self, run: Run) -> None:
        history = run.channel.history
        self.states[run.pause or run.state] += 1
        self.events += history.last + 1 - history.first
        self.bytes += history.bytes


class Register:
    """`parameters`: bytes of what clients have sent as parameters of these runs."""

    def __init__(self) -> None:
        self.parameters = 0
        self._runs: dict[str, dict[str, Run]] = defaultdict(dict)  # source -> epoch -> run
        self._shared: dict[tuple[str, bytes], list[Run]] = {}  # source and parameters -> runs; one, but for secrets
        self._aliases: dict[tuple[str, str], Run] = {}  # source and an epoch that its log had before

    def all(self) -> list[Run]:
        return [run for runs in self._runs.values() for run in runs.values()]

    def of(self, source: str) -> list[Run]:
        return list(self._runs[source].values())

    def count(self, source: str) -> int:
        return len(self._runs[source])

    def at(self, source: str, epoch: str) -> Run | None:
        return self._runs[source].get(epoch) or self._aliases.get((source, epoch))

    def knows(self, epoch: str) -> bool:
        return any(epoch in runs for runs in self._runs.values()) or any(known == epoch for _, known in self._aliases)

    def shared(self, enabled: EnabledSource, parameters: BaseModel) -> Iterable[Run]:
        """The shared runs with these parameters, the newest first."""
        # JSON finds them fast among many; equality decides, because JSON shows a secret as asterisks.
        runs = self._runs[enabled.name]
        found = reversed(runs.values()) if len(runs) <= FEW else self._shared.get(_key(enabled, parameters), ())
        return (run for run in found if run.enabled.shared and run.parameters == parameters)

    def new_epoch(self, source: str) -> str:
        while (epoch := shared_epoch()) in self._runs[source]:
            pass
        return epoch

    def add(self, run: Run) -> None:
        self._runs[run.enabled.name][run.channel.epoch] = run
        self.parameters += run.size
        self.file(run)

    def rename(self, run: Run, epoch: str, aliases: Mapping[str, int]) -> None:
        """Let it be found by another epoch from now on, and by those that its log had before."""
        runs = self._runs[run.enabled.name]
        is_listed = runs.get(run.channel.epoch) is run
        if is_listed:
            del runs[run.channel.epoch]
        self._forget_aliases(run)
        run.channel.rename(epoch, aliases)
        if is_listed:
            runs[epoch] = run
            self._aliases |= {(run.enabled.name, alias): run for alias in aliases}

    def _forget_aliases(self, run: Run) -> None:
        for alias in run.channel.aliases:
            self._aliases.pop((run.enabled.name, alias), None)

    def remove(self, run: Run) -> None:
        """A second call does nothing."""
        runs = self._runs[run.enabled.name]
        if runs.get(run.channel.epoch) is run:
            del runs[run.channel.epoch]
            self.parameters -= run.size
            self._forget_aliases(run)
        if not runs:
            del self._runs[run.enabled.name]
        self.unfile(run)

    def file(self, run: Run) -> None:
        """Let a shared run be found by its parameters, before others that have the same."""
        if run.enabled.shared:
            key = _key(run.enabled, run.parameters)
            others = [other for other in self._shared.get(key, ()) if other.parameters != run.parameters]
            self._shared[key] = [run, *others]

    def unfile(self, run: Run) -> None:
        """Before its parameters become other ones."""
        key = _key(run.enabled, run.parameters)
        if run in self._shared.get(key, ()):
            self._shared[key].remove(run)
            if not self._shared[key]:
                del self._shared[key]


def _key(enabled: EnabledSource, parameters: BaseModel) -> tuple[str, bytes]:
    # A digest, because parameters can be a mebibyte of text.
    return enabled.name, hashlib.blake2b(fingerprint(parameters), digest_size=16).digest()
