"""The runs of a process with their logs. Who reads them is known to their channels only."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .box import Box
from .changes import Changes
from .channel import Channel, Clock
from .closing import Closing
from .errors import DrainingError, FullError
from .farewells import Farewells
from .history import Ledger
from .identity import private_label
from .lifetimes import Lifetimes
from .meter import Meter
from .part import aliases_of
from .private_log import PrivateLog
from .register import Census, Register
from .remote_log import RemoteLog
from .run import Run
from .shared_log import SharedLog
from .store.contract import Address
from .tenancy import Tenancy
from .turn import Pulse

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .catalog import EnabledSource
    from .cursor import Position
    from .fanout import Fanout
    from .policy import Limits
    from .replica import Replica
    from .store.contract import Standing

log = logging.getLogger("eventmux.run")

SWEEP_SECONDS = 5.0  # how often logs are looked through for what has grown too old
COUNTED = 500  # runs that are counted in a turn of the loop
RELIEF = 0.9  # when all together are over their bound, they are cut to this part of it, so not at every event


@dataclass(frozen=True, slots=True)
class Wanted:
    """A source that a request asks for, with its validated parameters, and what they were made of."""

    enabled: EnabledSource
    parameters: BaseModel
    given: Mapping[str, Any] = field(default_factory=dict)


class Runs:
    """Finds, opens and lets go runs. A run outlives its last subscription by `linger`; the log of a shared one stays
    longer, until its memory is needed.

    Everything here is synchronous: between finding a log and joining it there is no `await`, so no event comes between.
    """

    def __init__(
        self, limits: Limits, fanout: Fanout, meter: Meter | None = None, replica: Replica | None = None
    ) -> None:
        """`replica`: of those that share a store; without one, all logs are here and nowhere else."""
        self.closing = Closing()
        self.lifetimes = Lifetimes(limits, self.closing, self.forget)
        self._replica = replica
        self.ledger = Ledger(limits.history, self.relieve)
        self._fanout = fanout
        self._meter = meter or Meter()
        self._clock = Clock()
        self._pulse = Pulse()
        self._register = Register()
        self._changes = Changes(self, self._register, fanout)
        self._withdrawn: dict[Channel, Run] = {}  # stopped, and found by nobody, but still read
        self._sweeper: asyncio.TimerHandle | None = None

    def all(self) -> list[Run]:
        return [*self._register.all(), *self._withdrawn.values()]

    def of(self, source: str) -> list[Run]:
        return self._register.of(source)

    async def census(self) -> dict[str, Census]:
        """Of every source that has runs. It gives way: 20,000 runs would hold the loop for 50 ms."""
        found: dict[str, Census] = defaultdict(Census)
        for count, run in enumerate(self.all()):
            if count % COUNTED == COUNTED - 1:
                await asyncio.sleep(0)
            found[run.enabled.name].count(run)
        return found

    def knows(self, epoch: str) -> bool:
        return self._register.knows(epoch)

    def new_epoch(self, source: str) -> str:
        """Of a shared log."""
        return self._register.new_epoch(source)

    def find(
        self, enabled: EnabledSource, parameters: BaseModel, position: Position, principal: str | None
    ) -> Run | None:
        """The run whose log `position` is in, if it has these parameters and is the client's own."""
        run = self.at(enabled, parameters, position.epoch, principal)
        return run if run and run.channel.holds(position) else None

    def at(self, enabled: EnabledSource, parameters: BaseModel, epoch: str, principal: str | None) -> Run | None:
        """The run whose log has or had this epoch, if it has these parameters and is the client's own."""
        run = self._register.at(enabled.name, epoch)
        if run and run in self._changes:
            self._changes.follow(run)
            run = self._register.at(enabled.name, epoch)
        if run is None or run.principal != (None if enabled.shared else principal):
            return None
        return run if run.parameters == parameters else None

    def current(self, enabled: EnabledSource, parameters: BaseModel, *, is_replay: bool) -> Run | None:
        """The shared run with these parameters. One that is over is good only for who wants to see what it was; it is
        not over before its log is, which may wait for the store.
        """
        found = self._register.shared(enabled, parameters)
        return next((run for run in found if is_replay or run.state != "over" or run.channel.ended is None), None)

    def open(self, want: Wanted, epoch: str, principal: str | None, trace: str | None = None) -> Run:
        """A new run, not started yet. A private one has the `epoch`, principal and trace given, a shared one its own
        epoch and no more. Raises FullError where the source has no room for it.
        """
        name, policy = want.enabled.name, want.enabled.policy
        if not policy.shared:
            run = self._new(want, epoch, principal)
            run.trace = trace
            if self._replica:
                label = private_label(want.enabled, want.parameters, principal)
                keep = policy.linger_seconds + 2 * self._replica.lease
                part = PrivateLog(self._replica, Address(name, epoch), run.channel, label, keep)
                run.log = run.seat = part
                self._replica.add(part)
            return run
        if self._replica:
            raise FullError(f"source {name!r} has just been changed")  # between its load and this
        return self._new(want, self._register.new_epoch(name), None)

    def adopt(self, want: Wanted, address: Address, standing: Standing, principal: str | None) -> Run:
        """The run of a log that is in the store: a shared one, or a private one of another replica. It is let go unless
        somebody joins it soon. Raises FullError as `open` does.
        """
        assert self._replica is not None  # noqa: S101 - else there is no store
        if self.lifetimes.is_draining:  # since the store was asked
            raise DrainingError("the service is shutting down")
        run = self._new(want, standing.epoch, None if want.enabled.shared else principal)
        channel = run.channel
        takes = want.enabled.shared and want.enabled.source.takes
        run.box = Box(self._replica, address, run) if takes else None
        tenancy = Tenancy(self, run)
        channel.history.begin_after(standing.last)
        self.rename(run, standing.epoch, aliases_of(standing.lineage))
        part: SharedLog | RemoteLog
        if want.enabled.shared:
            run.log = part = SharedLog(self._replica, address, channel, tenancy, self._clock)
        else:
            keep = want.enabled.policy.linger_seconds + 2 * self._replica.lease
            part = RemoteLog(self._replica, address, channel, tenancy, owner=standing.owner, keep=keep)
        run.seat = part
        self._replica.add(part)
        self.lifetimes.begin(run)
        if standing.ended is not None:
            part.mirror.close()
            channel.end(standing.ended)
            run.finish()
        else:
            part.mirror.follow()
            part.stand(standing, standing.last)
        return run

    def rename(self, run: Run, epoch: str, aliases: Mapping[str, int]) -> None:
        """Its log has another epoch now."""
        self._register.rename(run, epoch, aliases)

    def fork(self, run: Run) -> None:
        """The store has another log than this run's: its clients come back to that."""
        log.warning("source %s: the store has lost a part of its log, or all of it: it begins anew", run.enabled.name)
        self.move(run)

    def _new(self, want: Wanted, epoch: str, principal: str | None) -> Run:
        enabled = want.enabled
        name, policy = enabled.name, enabled.policy
        self._make_room(enabled)
        channel = Channel(
            name,
            epoch,
            bounds=policy.history,
            clock=self._clock,
            ledger=self.ledger,
            on_news=self._fanout.mark,
            on_idle=self.leave,
        )
        run = Run(
            enabled,
            want.parameters,
            channel,
            given=want.given,
            pulse=self._pulse,
            principal=principal,
            tally=self._meter.of(name),
            on_over=self._run_over,
        )
        self._register.add(run)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        return run

    def _make_room(self, enabled: EnabledSource) -> None:
        """A source at its bound lets go the log that nobody has read for the longest time."""
        if idle := self.check_room(enabled):
            self.forget(min(idle, key=lambda run: run.channel.touched))

    def check_room(self, enabled: EnabledSource) -> list[Run]:
        """Of which runs one is to go, if the source has one more. Raises FullError if none may."""
        if self._register.count(enabled.name) < enabled.policy.max_runs:
            return []
        runs = self._register.of(enabled.name)
        idle = [run for run in runs if not run.channel.streams]
        if not idle:
            raise FullError(f"source {enabled.name!r} has {len(runs)} runs, and takes no more now")
        return idle

    def leave(self, channel: Channel) -> None:
        """The last subscription has left: the run outlives it by `linger`."""
        if channel in self._withdrawn:
            self.forget(self._withdrawn[channel])
            return
        run = self._register.at(channel.source, channel.epoch)
        if run and run.channel is channel:  # its place may be another's by now, who has the same log
            self.lifetimes.leave(run)

    def publish(self, run: Run, message: BaseModel, size: int) -> None:
        """Put `message`, which came as so many bytes, in the inbox; the run is started for that. Raises FullError if
        there is no room.
        """
        assert run.inbox is not None  # noqa: S101 - the source takes something, or has no such route
        with self.lifetimes.attending(run):
            run.inbox.put(message, size)

    def _run_over(self, run: Run) -> None:
        if self.lifetimes.over(run):
            self.leave(run.channel)

    def forget(self, run: Run) -> None:
        """Stop the run, and let go its log: a cursor that points there is a gap from now on."""
        self.lifetimes.stop(run)
        if run.inbox and not run.seat:
            log.warning("source %s is gone with %d published events it had not taken", run.enabled.name, len(run.inbox))
        self._unlist(run)
        self._withdrawn.pop(run.channel, None)
        if not (run.seat and self.lifetimes.is_draining):  # which has still to be copied
            run.channel.history.clear()

    def _unlist(self, run: Run) -> None:
        """Let nobody find it any more."""
        self._register.remove(run)
        self._changes.forget(run)

    def apply(self, offered: Mapping[str, EnabledSource], limits: Limits) -> None:
        """Offer this from now on, within these limits; what has not changed is left alone."""
        self.lifetimes.limits, self.ledger.limit = limits, limits.history
        self._changes.apply(offered)
        self.relieve()

    def remove(self, run: Run) -> None:
        """End it, because its source is there no more: its streams are told so."""
        self.closing.add(run.remove())
        self.withdraw(run)

    def move(self, run: Run) -> None:
        """Its clients come back, to another run."""
        self.withdraw(run)
        for stream in run.channel.streams:
            self._fanout.add(Farewells(stream.members))

    def withdraw(self, run: Run) -> None:
        """Stop the run, and let nobody find it. Its log stays until those who read it have left."""
        self.lifetimes.stop(run)
        self._unlist(run)
        self._withdrawn[run.channel] = run
        if not run.channel.streams:
            self.forget(run)

    def relieve(self) -> None:
        """If all histories together, or all parameters, are over the bound: let go, beginning with the longest idle."""
        if max(self.ledger.bytes, self._register.parameters) <= self.ledger.limit:
            return
        aim = int(self.ledger.limit * RELIEF)
        by_idleness = sorted(self.all(), key=lambda run: (bool(run.channel.streams), run.channel.touched))
        for run in by_idleness:
            if max(self.ledger.bytes, self._register.parameters) <= aim:
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
        self.lifetimes.is_draining = True
        if self._sweeper:
            self._sweeper.cancel()
        for run in self.all():
            self.forget(run)
        await self.closing.wait()
