"""Where in which logs a client begins."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .cursor import NOWHERE, SHARED_LETTERS, Cursor, Position, private_epoch
from .reader import Gap, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .catalog import EnabledSource
    from .run import Run
    from .runs import Runs, Wanted
    from .selection import Start

AWAITED = ("idle", "remote")  # it may be waiting, wherever it runs


class Beginning:
    """Of one client, who comes with a cursor or without. Runs that it needs are kept, or opened: `undo` lets them go
    again where it is turned away after all.
    """

    __slots__ = ("_epoch", "_joined", "_opened", "_runs", "_start")

    def __init__(self, runs: Runs, start: Start) -> None:
        self._runs = runs
        self._start = start
        self._epoch = ""  # of the private runs of this request
        self._joined: list[Run] = []
        self._opened: list[Run] = []

    def views(self, wanted: Sequence[Wanted]) -> list[View]:
        """One for each source. Raises FullError where one has no room for a run."""
        self._locate(wanted)
        self._epoch = "" if all(want.enabled.shared for want in wanted) else private_epoch()
        return [self._view(want) for want in wanted]

    def undo(self) -> None:
        """Nobody has the epoch of what was opened, to return to it."""
        for run in self._opened:
            self._runs.forget(run)
        for run in self._joined:
            if run not in self._opened and not run.channel.streams:
                self._runs.leave(run.channel)

    @property
    def behind(self) -> int | None:
        """Events between the client's positions and the ends of the logs that they are in; None if they are in none."""
        behind = None
        for run in self._joined:
            position = self._position(run.enabled)
            if position and position.epoch == run.channel.epoch:
                behind = (behind or 0) + run.channel.history.last - position.offset
        return behind

    def current_or_new(self, want: Wanted) -> Run:
        enabled, start = want.enabled, self._start
        if enabled.shared and (run := self._runs.current(enabled, want.parameters, is_replay=start.since is not None)):
            return run
        self._opened.append(self._runs.open(want, self._epoch, start.principal, start.trace))
        return self._opened[-1]

    def _locate(self, wanted: Sequence[Wanted]) -> None:
        """A cursor of one source has no name: give it that of the selected source whose log it is in; if there is none,
        of all that it could have been of.
        """
        cursor = self._start.cursor
        position = cursor.positions.get("") if cursor else None
        if position is None or len(wanted) == 1:
            return
        names = [want.enabled.name for want in wanted if self._find(want, position)]
        names = names or [want.enabled.name for want in wanted if _could_be_of(position, want.enabled)]
        self._start = replace(self._start, cursor=Cursor(dict.fromkeys(names, position)))

    def _position(self, enabled: EnabledSource) -> Position | None:
        return self._start.cursor.position(enabled.name) if self._start.cursor else None

    def _view(self, want: Wanted) -> View:
        enabled, policy = want.enabled, want.enabled.policy
        hangs_up = policy.shared and policy.overflow == "disconnect"
        if self._start.cursor and self._start.cursor.has_ended(enabled.name):
            return View(None, enabled.name, is_over=True)
        position = self._position(enabled)
        run = self._find(want, position)
        if run is None and position and policy.once:
            return View(None, enabled.name, gap=Gap("lost", position, 0))
        is_own = run is not None
        if run and position:
            offset, told = position.offset, None
            gap = "evicted" if offset < run.channel.history.first - 1 else None
        else:
            run = self.current_or_new(want)
            offset, gap = self._offset(run, position)
            told = position
        self._runs.lifetimes.keep(run)
        self._joined.append(run)
        return View(run.channel, enabled.name, hangs_up, offset, Gap(gap, told, offset, is_own) if gap else None)

    def _find(self, want: Wanted, position: Position | None) -> Run | None:
        if position is None:
            return None
        return self._runs.find(want.enabled, want.parameters, position, self._start.principal)

    def _offset(self, run: Run, position: Position | None) -> tuple[int, str | None]:
        """The offset where a client begins whose position is not in this log, and why that is a gap."""
        history, since = run.channel.history, self._start.since
        if position and run.enabled.shared and (end := run.channel.aliases.get(position.epoch)) is not None:
            return max(end, history.first - 1), "restarted"  # it has seen more of that epoch than was kept
        if position and run.enabled.shared and self._is_gone(position):
            return history.first - 1, "restarted"  # the new log holds nothing that this client has seen
        if position:
            return history.last, "unknown"
        if since is None:
            return _live(run), None
        offset = history.offset_before(since)
        is_cut = offset == history.first - 1 and history.evicted_at >= since > 0
        return offset, "evicted" if is_cut else None

    def _is_gone(self, position: Position) -> bool:
        """Whether it is in a shared log that is no more. One that is there is of another source or other parameters."""
        return len(position.epoch) == SHARED_LETTERS and not self._runs.knows(position.epoch)


def _could_be_of(position: Position, enabled: EnabledSource) -> bool:
    """Whether a source has logs with such an epoch; one that cannot be read could be of any."""
    return position is NOWHERE or (len(position.epoch) == SHARED_LETTERS) == enabled.shared


def _live(run: Run) -> int:
    """The offset of a client that begins now. While a source waits for its restart, the failure is what comes first."""
    history = run.channel.history
    if run.pause is None and run.state not in AWAITED:
        return history.last
    last = history.after(history.last - 1, 1)
    return history.last - 1 if last and last[0].is_control else history.last
