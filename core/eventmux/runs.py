"""The runs of a process with their logs, and how long each stays. Who reads them is known to their channels only."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from .channel import Channel, Clock
from .cursor import shared_epoch
from .errors import FullError, PluginError
from .history import Ledger
from .meter import Meter
from .run import Run, fingerprint
from .stream import Farewells
from .turn import Pulse

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .catalog import EnabledSource
    from .cursor import Position
    from .fanout import Fanout
    from .policy import Limits

log = logging.getLogger("eventmux.run")

PUBLISHED_SECONDS = 1.0  # that a run lasts at least, for what is published to it
SLICE = 8  # runs that follow a change before others have a turn
SWEEP_SECONDS = 5.0  # how often logs are looked through for what has grown too old
FEW = 4  # runs of a source that are compared one by one, the newest first
COUNTED = 500  # runs that are counted in a turn of the loop
RELIEF = 0.9  # when all together are over their bound, they are cut to this part of it, so not at every event


@dataclass(frozen=True, slots=True)
class Wanted:
    """A source that a request asks for, with its validated parameters, and what they were made of."""

    enabled: EnabledSource
    parameters: BaseModel
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Census:
    """The runs of one source by their state, and what their logs keep."""

    states: Counter[str] = field(default_factory=Counter)
    events: int = 0
    bytes: int = 0


class Runs:
    """Finds, opens and lets go runs. A run outlives its last subscription by `linger`; the log of a shared one stays
    longer, until its memory is needed.

    Everything here is synchronous: between finding a log and joining it there is no `await`, so no event comes between.
    """

    def __init__(self, limits: Limits, fanout: Fanout, meter: Meter | None = None) -> None:
        self.is_draining = False
        self.abandoned = 0  # generators that have not closed in time
        self.ledger = Ledger(limits.history, self.relieve)
        self._limits = limits
        self._fanout = fanout
        self._meter = meter or Meter()
        self._clock = Clock()
        self._pulse = Pulse()
        self._runs: dict[str, dict[str, Run]] = defaultdict(dict)  # source -> epoch -> run
        self._shared: dict[tuple[str, bytes], list[Run]] = {}  # source and parameters -> runs; one, but for secrets
        self._detached: dict[Run, None] = {}  # private runs that nobody reads, in the order in which they were left
        self._finished: dict[Run, None] = {}  # the same of those that are over
        self._alive: set[Run] = set()  # that have a generator, waiting to be started again included
        self._expiries: dict[Run, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[bool]] = set()
        self._offered: Mapping[str, EnabledSource] = {}
        self._stale: dict[Run, None] = {}  # which have still to follow a change of what is offered
        self._withdrawn: dict[Channel, Run] = {}  # stopped, and found by nobody, but still read
        self._parameters = 0  # bytes of what clients have sent as parameters of these runs
        self._sweeper: asyncio.TimerHandle | None = None
        self._late = asyncio.Event()
        self._hurry: asyncio.TimerHandle | None = None

    def all(self) -> list[Run]:
        listed = [run for runs in self._runs.values() for run in runs.values()]
        return [*listed, *self._withdrawn.values()]

    def of(self, source: str) -> list[Run]:
        return list(self._runs[source].values())

    async def census(self) -> dict[str, Census]:
        """Of every source that has runs. It gives way: 20,000 runs would hold the loop for 20 ms."""
        found: dict[str, Census] = defaultdict(Census)
        for count, run in enumerate(self.all()):
            if count % COUNTED == COUNTED - 1:
                await asyncio.sleep(0)
            census, history = found[run.enabled.name], run.channel.history
            census.states[run.pause or run.state] += 1
            census.events += history.last + 1 - history.first
            census.bytes += history.bytes
        return found

    def knows(self, epoch: str) -> bool:
        return any(epoch in runs for runs in self._runs.values())

    @property
    def active(self) -> int:
        """How many generators there are, those included that are being closed."""
        return len(self._alive) + len(self._closing)

    def find(
        self, enabled: EnabledSource, parameters: BaseModel, position: Position, principal: str | None
    ) -> Run | None:
        """The run whose log `position` is in, if it has these parameters and is the client's own."""
        run = self._runs[enabled.name].get(position.epoch)
        if run in self._stale:
            self._follow(run)
            run = self._runs[enabled.name].get(position.epoch)
        if run is None or run.principal != (None if enabled.shared else principal):
            return None
        return run if run.parameters == parameters and position.offset <= run.channel.history.last else None

    def current(self, enabled: EnabledSource, parameters: BaseModel, *, is_replay: bool) -> Run | None:
        """The shared run with these parameters. One that is over is good only for who wants to see what it was."""
        # JSON finds them fast among many; equality decides, because JSON shows a secret as asterisks.
        runs = self._runs[enabled.name]
        found = reversed(runs.values()) if len(runs) <= FEW else self._shared.get(_key(enabled, parameters), ())
        for run in found:
            if run.enabled.shared and run.parameters == parameters and (is_replay or run.state != "over"):
                return run
        return None

    def open(self, want: Wanted, epoch: str, principal: str | None, trace: str | None = None) -> Run:
        """A new run, not started yet. A private one has the `epoch`, principal and trace given, a shared one its own
        epoch and no more. Raises FullError where the source has no room for it.
        """
        enabled, parameters = want.enabled, want.parameters
        name, policy = enabled.name, enabled.policy
        self._make_room(enabled)
        channel = Channel(
            name,
            self._new_epoch(name) if policy.shared else epoch,
            bounds=policy.history,
            clock=self._clock,
            ledger=self.ledger,
            on_news=self._fanout.mark,
            on_idle=self.leave,
        )
        run = Run(
            enabled,
            parameters,
            channel,
            given=want.given,
            pulse=self._pulse,
            principal=None if policy.shared else principal,
            tally=self._meter.of(name),
            on_over=self._run_over,
        )
        run.trace = None if policy.shared else trace
        self._runs[name][channel.epoch] = run
        self._parameters += run.size
        if policy.shared:
            self._file(run)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        return run

    def _file(self, run: Run) -> None:
        """Let a shared run be found by its parameters."""
        key = _key(run.enabled, run.parameters)
        others = [other for other in self._shared.get(key, ()) if other.parameters != run.parameters]
        self._shared[key] = [run, *others]

    def _unfile(self, run: Run) -> None:
        key = _key(run.enabled, run.parameters)
        if run in self._shared.get(key, ()):
            self._shared[key].remove(run)
            if not self._shared[key]:
                del self._shared[key]

    def _new_epoch(self, source: str) -> str:
        while (epoch := shared_epoch()) in self._runs[source]:
            pass
        return epoch

    def _make_room(self, enabled: EnabledSource) -> None:
        """A source at its bound lets go the log that nobody has read for the longest time."""
        runs = self._runs[enabled.name]
        if len(runs) < enabled.policy.max_runs:
            return
        idle = [run for run in runs.values() if not run.channel.streams]
        if not idle:
            raise FullError(f"source {enabled.name!r} has {len(runs)} runs, and takes no more now")
        self.forget(min(idle, key=lambda run: run.channel.touched))

    def keep(self, run: Run) -> None:
        """Start the run, or keep it, for a subscription that joins now. Raises FullError where there is no room."""
        if run.state == "idle":
            self._make_way()
            self._alive.add(run)
        if expiry := self._expiries.pop(run, None):
            expiry.cancel()
        self._detached.pop(run, None)
        self._finished.pop(run, None)
        run.start()

    def _make_way(self) -> None:
        """At the bound of all runs, the private one goes that nobody has read for the longest time."""
        if len(self._alive) + self.abandoned < self._limits.runs:
            return
        if not self._detached:
            raise FullError(f"there are {len(self._alive)} runs, and no more are started now")
        self._expire(next(iter(self._detached)))

    def leave(self, channel: Channel) -> None:
        """The last subscription has left: the run outlives it by `linger`."""
        if channel in self._withdrawn:
            self.forget(self._withdrawn[channel])
            return
        run = self._runs[channel.source].get(channel.epoch)
        if run is None:
            return
        linger = run.enabled.policy.linger_seconds
        if linger <= 0 or self.is_draining:
            self._expire(run)
            return
        self._linger(run, linger)
        if not run.enabled.shared:
            # Finished runs cost memory, running ones more than that: neither pushes out the other.
            left = self._finished if run.state == "over" else self._detached
            left[run] = None
            if len(left) > self._limits.detached:
                self._expire(next(iter(left)))

    def publish(self, run: Run, message: BaseModel) -> None:
        """Put `message` in the run's inbox; it is started for that. Raises FullError where there is no room."""
        assert run.inbox is not None  # noqa: S101 - the source takes something, or has no such route
        self.keep(run)
        try:
            run.inbox.put(message)
        finally:
            if not run.channel.streams:
                self._linger(run, max(run.enabled.policy.linger_seconds, PUBLISHED_SECONDS))

    def _linger(self, run: Run, seconds: float) -> None:
        if expiry := self._expiries.pop(run, None):
            expiry.cancel()
        self._expiries[run] = asyncio.get_running_loop().call_later(seconds, self._lingered, run, _taken(run))

    def _lingered(self, run: Run, taken: int) -> None:
        """It goes on for as long as it takes what was published to it."""
        if run.inbox and taken != run.inbox.taken:
            self._linger(run, PUBLISHED_SECONDS)
        else:
            self._expire(run)

    def _expire(self, run: Run) -> None:
        """Stop the run. The log of a shared one stays, for the next run to go on with, unless it is over or empty."""
        if run.enabled.shared and run.state != "over" and run.channel.history.last:
            self._stop(run)
        else:
            self.forget(run)

    def _run_over(self, run: Run) -> None:
        channel = run.channel
        self._alive.discard(run)
        if not channel.streams and (run in self._detached or run not in self._expiries):
            self._detached.pop(run, None)
            self.leave(channel)

    def _stop(self, run: Run) -> None:
        if expiry := self._expiries.pop(run, None):
            expiry.cancel()
        self._detached.pop(run, None)
        self._finished.pop(run, None)
        self._alive.discard(run)
        self._watch(run.stop())

    def _watch(self, closing: asyncio.Task[bool] | None) -> None:
        if closing:
            self._closing.add(closing)
            closing.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[bool]) -> None:
        self._closing.discard(task)
        self.abandoned += not task.cancelled() and task.result()

    def forget(self, run: Run) -> None:
        """Stop the run, and let go its log: a cursor that points there is a gap from now on."""
        self._stop(run)
        if run.inbox:
            log.warning("source %s is gone with %d published events it had not taken", run.enabled.name, len(run.inbox))
        self._unlist(run)
        self._withdrawn.pop(run.channel, None)
        run.channel.history.clear()

    def _unlist(self, run: Run) -> None:
        """Let nobody find it any more."""
        listed = self._runs[run.enabled.name]
        if listed.get(run.channel.epoch) is run:
            del listed[run.channel.epoch]
            self._parameters -= run.size
            if not listed:
                del self._runs[run.enabled.name]
        self._stale.pop(run, None)
        self._unfile(run)

    def apply(self, offered: Mapping[str, EnabledSource], limits: Limits) -> None:
        """Offer this from now on: end what is no longer there, change what is another now, and leave alone the rest.

        Shared runs at once; private ones, of which there may be thousands, a few at a time, or when they are asked for.
        """
        self._limits, self.ledger.limit = limits, limits.history
        self._offered = offered
        for run in [run for runs in self._runs.values() for run in runs.values()]:
            if offered.get(run.enabled.name) is not run.enabled:
                self._stale[run] = None
                if run.enabled.shared:
                    self._follow(run)
        if self._stale:
            self._fanout.add(self)
        self.relieve()

    def advance(self, now: float) -> bool:  # noqa: ARG002 - as the fanout calls it
        for run in list(itertools.islice(self._stale, SLICE)):
            self._follow(run)
        return bool(self._stale)

    def _follow(self, run: Run) -> None:
        """Make of the run what is offered now under its name."""
        del self._stale[run]
        enabled = self._offered.get(run.enabled.name)
        try:
            if enabled is None or enabled.unavailable:
                self._remove(run)
            elif enabled.shared == run.enabled.shared:
                self._change(run, enabled)
            elif not run.is_kept:
                self._withdraw(run)
                for stream in run.channel.streams:
                    self._fanout.add(Farewells(stream))
        except Exception:  # what a plugin's own types raise when they are compared
            log.exception("a run of source %s could not follow a change: it is removed", run.enabled.name)
            self._remove(run)

    def _change(self, run: Run, enabled: EnabledSource) -> None:
        try:
            parameters = enabled.validate(run.given)
        except (ValidationError, PluginError):
            if not run.is_kept:  # what its client asked for is not to be had any more
                self._remove(run)
            return
        channel, before = run.channel, run.enabled.policy
        self._unfile(run)
        self._watch(run.change(enabled, parameters))
        if enabled.shared:
            self._file(run)
        if enabled.policy.history != before.history:
            channel.bound(enabled.policy.history)
        for stream in channel.streams:
            stream.hang_up(channel, on_lag=enabled.shared and enabled.policy.overflow == "disconnect")
        if run in self._expiries and enabled.policy.linger_seconds != before.linger_seconds:
            self.leave(channel)

    def _remove(self, run: Run) -> None:
        self._watch(run.remove())
        self._withdraw(run)

    def _withdraw(self, run: Run) -> None:
        """Stop the run, and let nobody find it. Its log stays until those who read it have left."""
        self._stop(run)
        self._unlist(run)
        self._withdrawn[run.channel] = run
        if not run.channel.streams:
            self.forget(run)

    def relieve(self) -> None:
        """If all histories together, or all parameters, are over the bound: let go, beginning with the longest idle."""
        if max(self.ledger.bytes, self._parameters) <= self._limits.history:
            return
        aim = int(self._limits.history * RELIEF)
        by_idleness = sorted(self.all(), key=lambda run: (bool(run.channel.streams), run.channel.touched))
        for run in by_idleness:
            if max(self.ledger.bytes, self._parameters) <= aim:
                return
            if not run.channel.streams:
                self.forget(run)
            elif self.ledger.bytes > aim:
                run.channel.history.evict_bytes(self.ledger.bytes - aim)

    def _sweep(self) -> None:
        now = self._clock.now()
        for run in self.all():
            run.channel.history.trim(now)
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    async def close(self) -> None:
        """Stop every run, and wait until their generators are closed or abandoned."""
        self.is_draining = True
        if self._sweeper:
            self._sweeper.cancel()
        for run in self.all():
            self.forget(run)
        late = asyncio.create_task(self._late.wait(), name="eventmux late")
        try:
            while self._closing and not late.done():
                closed = asyncio.ensure_future(asyncio.wait(self._closing))
                await asyncio.wait({closed, late}, return_when=asyncio.FIRST_COMPLETED)
                closed.cancel()
        finally:
            late.cancel()
            await asyncio.wait({late})
            if self._hurry:
                self._hurry.cancel()
        if self._closing:
            names = sorted({task.get_name().rpartition(" ")[2] for task in self._closing})
            log.warning("generators that did not close in time: abandoned, of %s", ", ".join(names))
            self.abandoned += len(self._closing)

    def hurry(self, seconds: float) -> None:
        """`close` waits no longer than that, from now on."""
        if self._hurry:
            self._hurry.cancel()
        self._hurry = asyncio.get_running_loop().call_later(seconds, self._late.set)


def _taken(run: Run) -> int:
    return run.inbox.taken if run.inbox else 0


def _key(enabled: EnabledSource, parameters: BaseModel) -> tuple[str, bytes]:
    # A digest, because parameters can be a mebibyte of text.
    return enabled.name, hashlib.blake2b(fingerprint(parameters), digest_size=16).digest()
