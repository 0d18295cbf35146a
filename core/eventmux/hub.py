"""Finds or opens the channel for a source and its parameters, and decides how long it stays. Makes no bytes."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .channel import Channel, Clock
from .cursor import NOWHERE, SHARED_LETTERS, Cursor, Position, private_epoch, shared_epoch
from .errors import FullError
from .history import Ledger
from .run import Run
from .subscription import Selection, Subscription, View

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import BaseModel

    from .catalog import EnabledSource

SWEEP_SECONDS = 5.0  # how often logs are looked through for what has grown too old
RUN_BYTES = 4_096
RELIEF = 0.9  # when all histories together are over their bound, they are cut to this part of it, so not at every event


@dataclass(frozen=True, slots=True)
class Wanted:
    """A source that a request asks for, with its validated parameters."""

    enabled: EnabledSource
    parameters: BaseModel


@dataclass(frozen=True, slots=True)
class Start:
    """Where a client begins: at its cursor; where that says nothing, at `since`; else with what comes next.

    `since`: nanoseconds since 1970; 0 is the earliest there is. `principal`: whose private runs it may return to.
    """

    cursor: Cursor | None = None
    since: int | None = None
    principal: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process keeps: bytes of all histories together, and private runs without a subscriber."""

    history: int = 256 * 1024 * 1024
    detached: int = 1_000


class Hub:
    """All runs of a process with their logs, and the subscriptions that are open.

    Everything here is synchronous: between finding a log, replaying from it and joining it there is no `await`, so no
    event comes between.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.is_draining = False
        self.abandoned = 0  # generators that have not closed in time
        self._limits = limits or Limits()
        self._clock = Clock()
        self._ledger = Ledger(self._limits.history, self._relieve)
        self._runs: dict[str, dict[str, Run]] = defaultdict(dict)  # source -> epoch -> run
        self._shared: dict[tuple[str, bytes], list[Run]] = {}  # source and parameters -> runs; one, but for secrets
        self._detached: dict[Run, None] = {}  # private runs that nobody reads, in the order in which they were left
        self._expiries: dict[Run, asyncio.TimerHandle] = {}
        self._finished: dict[Run, None] = {}  # the same of those that are over
        self._weights = 0
        self._closing: dict[asyncio.Task[None], Run] = {}
        self._subscriptions: set[Subscription] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    # --- subscriptions -------------------------------------------------------------------------------------------

    def subscribe(self, wanted: Sequence[Wanted], start: Start, selection: Selection) -> Subscription:
        """Open a subscription. Raises FullError where a source has no room for a run, or the service goes down."""
        if self.is_draining:
            raise FullError("the service is shutting down")
        start = self._located(wanted, start)
        opening = _Opening(start, private_epoch())
        try:
            views = [self._view(want, opening) for want in wanted]
        except FullError:
            for run in opening.opened:
                self._forget(run)  # nobody has its epoch, so nobody could return to it
            raise
        subscription = Subscription(views, selection)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        subscription.close()

    def state(self, enabled: EnabledSource) -> str:
        """`unavailable | running | restarting | quarantined | idle`: of several runs the liveliest counts."""
        if enabled.unavailable:
            return "unavailable"
        states = {run.state for run in self._runs[enabled.name].values()}
        return next((state for state in ("running", "restarting", "quarantined") if state in states), "idle")

    def _located(self, wanted: Sequence[Wanted], start: Start) -> Start:
        """A cursor of one source has no name: give it that of the selected source whose log it is in; if there is none,
        of all that it could have been of.
        """
        position = start.cursor.positions.get("") if start.cursor else None
        if position is None or len(wanted) == 1:
            return start
        names = [want.enabled.name for want in wanted if self._find(want, position, start.principal)]
        names = names or [want.enabled.name for want in wanted if _could_be_of(position, want.enabled)]
        return replace(start, cursor=Cursor(dict.fromkeys(names, position)))

    def _view(self, want: Wanted, opening: _Opening) -> View:
        name, policy, start = want.enabled.name, want.enabled.policy, opening.start
        hangs_up = policy.shared and policy.overflow == "disconnect"
        if start.cursor and start.cursor.has_ended(name):
            return View(None, name, is_over=True)
        position = start.cursor.position(name) if start.cursor else None
        if position and (run := self._find(want, position, start.principal)):
            gap = "evicted" if position.offset < run.channel.history.first - 1 else None
            return View(self._joined(run), name, position.offset, gap=gap, hangs_up=hangs_up)
        if position and policy.once:
            return View(None, name, told=position)
        run = self._current(want, is_replay=start.since is not None) if policy.shared else None
        run = run or self._open(want, opening)
        history = run.channel.history
        offset, gap = _live(run), None
        if position:
            gap = "restarted" if policy.shared and self._is_gone(position) else "unknown"
            # A log that has started anew holds nothing that this client has seen.
            offset = history.first - 1 if gap == "restarted" else history.last
        elif start.since is not None:
            offset = history.offset_before(start.since)
            gap = "evicted" if offset == history.first - 1 and history.evicted_at >= start.since > 0 else None
        return View(self._joined(run), name, offset, gap=gap, told=position, hangs_up=hangs_up)

    def _is_gone(self, position: Position) -> bool:
        """Whether it is in a shared log that is no more. One that is there is of another source or other parameters."""
        epoch = position.epoch
        return len(epoch) == SHARED_LETTERS and not any(epoch in runs for runs in self._runs.values())

    # --- runs ----------------------------------------------------------------------------------------------------

    def _find(self, want: Wanted, position: Position, principal: str | None) -> Run | None:
        """The run whose log `position` is in, if it is what is wanted and the client's own."""
        run = self._runs[want.enabled.name].get(position.epoch)
        if run is None or run.principal != (None if want.enabled.shared else principal):
            return None
        return run if run.parameters == want.parameters and position.offset <= run.channel.history.last else None

    def _current(self, want: Wanted, *, is_replay: bool) -> Run | None:
        """The shared run with these parameters. One that is over is good only for who wants to see what it was."""
        # JSON finds them fast; equality decides, because JSON shows a secret as asterisks.
        for run in self._shared.get(_key(want), ()):
            if run.parameters == want.parameters and (is_replay or run.state != "over"):
                return run
        return None

    def _open(self, want: Wanted, opening: _Opening) -> Run:
        name, policy = want.enabled.name, want.enabled.policy
        self._make_room(want.enabled)
        if self._weights > self._limits.history:
            self._relieve()
        channel = Channel(
            name,
            self._new_epoch(name) if policy.shared else opening.epoch,
            bounds=policy.history,
            clock=self._clock,
            ledger=self._ledger,
            on_idle=self._left,
        )
        owner = None if policy.shared else opening.start.principal
        run = Run(want.enabled, want.parameters, channel, principal=owner, on_over=self._run_over)
        self._runs[name][channel.epoch] = run
        self._weights += _weight(run)
        opening.opened.append(run)
        if policy.shared:
            others = [other for other in self._shared.get(_key(want), ()) if other.parameters != want.parameters]
            self._shared[_key(want)] = [run, *others]
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        return run

    def _new_epoch(self, source: str) -> str:
        while (epoch := shared_epoch()) in self._runs[source]:
            pass
        return epoch

    def _make_room(self, enabled: EnabledSource) -> None:
        """A source at its bound lets go the log that nobody has read for the longest time."""
        runs = self._runs[enabled.name]
        if len(runs) < enabled.policy.max_runs:
            return
        idle = [run for run in runs.values() if not run.channel.subscriptions]
        if not idle:
            raise FullError(f"source {enabled.name!r} has {len(runs)} runs, and takes no more now")
        self._forget(min(idle, key=lambda run: run.channel.touched))

    def _joined(self, run: Run) -> Channel:
        """Start or keep the run for a subscription that joins now."""
        if expiry := self._expiries.pop(run, None):
            expiry.cancel()
        self._detached.pop(run, None)
        self._finished.pop(run, None)
        run.start()
        return run.channel

    def _left(self, channel: Channel) -> None:
        """The last subscription has left: the run outlives it by `linger`."""
        run = self._runs[channel.source].get(channel.epoch)
        if run is None:
            return
        linger = run.enabled.policy.linger_seconds
        if linger <= 0 or self.is_draining:
            self._expire(run)
            return
        if expiry := self._expiries.pop(run, None):
            expiry.cancel()
        self._expiries[run] = asyncio.get_running_loop().call_later(linger, self._expire, run)
        if not run.enabled.shared:
            # Finished runs cost memory, running ones more than that: neither pushes out the other.
            left = self._finished if run.state == "over" else self._detached
            left[run] = None
            if len(left) > self._limits.detached:
                self._expire(next(iter(left)))

    def _expire(self, run: Run) -> None:
        """Stop the run. The log of a shared one stays, for the next run to go on with, unless it is over or empty."""
        if run.enabled.shared and run.state != "over" and run.channel.history.last:
            self._stop(run)
        else:
            self._forget(run)

    def _run_over(self, run: Run) -> None:
        channel = run.channel
        if not channel.subscriptions and (run in self._detached or run not in self._expiries):
            self._detached.pop(run, None)
            self._left(channel)

    def _stop(self, run: Run) -> None:
        if expiry := self._expiries.pop(run, None):
            expiry.cancel()
        self._detached.pop(run, None)
        self._finished.pop(run, None)
        if task := run.stop():
            self._closing[task] = run
            task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        run = self._closing.pop(task)
        self.abandoned += run.is_abandoned

    def _forget(self, run: Run) -> None:
        """Stop the run, and let go its log: a cursor that points there is a gap from now on."""
        self._stop(run)
        if self._runs[run.enabled.name].pop(run.channel.epoch, None):
            self._weights -= _weight(run)
        key = _key(run)
        if run in self._shared.get(key, ()):
            self._shared[key].remove(run)
            if not self._shared[key]:
                del self._shared[key]
        run.channel.history.clear()

    # --- memory --------------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[Run]:
        for runs in self._runs.values():
            yield from list(runs.values())

    def _relieve(self) -> None:
        """All histories together, or all parameters, are over the bound: let go, beginning with the longest idle."""
        aim = int(self._limits.history * RELIEF)
        by_idleness = sorted(self._all(), key=lambda run: (bool(run.channel.subscriptions), run.channel.touched))
        for run in by_idleness:
            if self._ledger.bytes <= aim and self._weights <= aim:
                return
            if not run.channel.subscriptions:
                self._forget(run)
            elif self._ledger.bytes > aim:
                run.channel.history.evict_bytes(self._ledger.bytes - aim)

    def _sweep(self) -> None:
        now = self._clock.now()
        for run in self._all():
            run.channel.history.trim(now)
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    # --- the end -------------------------------------------------------------------------------------------------

    @property
    def runs(self) -> int:
        """How many generators there are, those included that are being closed."""
        return sum(run.state in {"running", "restarting", "quarantined"} for run in self._all()) + len(self._closing)

    @property
    def subscriptions(self) -> int:
        return len(self._subscriptions)

    @property
    def history_bytes(self) -> int:
        return self._ledger.bytes

    def drain(self) -> None:
        """End every stream in an orderly way."""
        self.is_draining = True
        for subscription in self._subscriptions:
            subscription.drain()

    async def close(self) -> None:
        """Stop every run, and wait until their generators are closed or abandoned."""
        self.drain()
        if self._sweeper:
            self._sweeper.cancel()
        for run in self._all():
            self._forget(run)
        while self._closing:
            await asyncio.wait(self._closing)


@dataclass(slots=True)
class _Opening:
    """One call of `subscribe`: where it starts, the epoch that its private runs share, and the runs that it opens."""

    start: Start
    epoch: str
    opened: list[Run] = field(default_factory=list)


def _key(of: Wanted | Run) -> tuple[str, bytes]:
    # A digest, because parameters can be a mebibyte of text.
    return of.enabled.name, hashlib.blake2b(of.parameters.model_dump_json().encode(), digest_size=16).digest()


def _weight(run: Run) -> int:
    """What a log costs before its first event, in bytes: a channel and a run, and the parameters that clients send."""
    return RUN_BYTES + len(run.parameters.model_dump_json())


def _could_be_of(position: Position, enabled: EnabledSource) -> bool:
    """Whether a source has logs with such an epoch; one that cannot be read could be of any."""
    return position is NOWHERE or (len(position.epoch) == SHARED_LETTERS) == enabled.shared


def _live(run: Run) -> int:
    """The offset of a client that begins now. While a source waits for its restart, the failure is what comes first."""
    history = run.channel.history
    if run.state not in {"restarting", "quarantined"}:
        return history.last
    last = history.after(history.last - 1, 1)
    return history.last - 1 if last and last[0].is_control else history.last
