"""Brings here what a client asks for, where the logs are in a store. What it does with that is the hub's to say."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import StoreAwayError
from .identity import private_address, private_label, shared_address
from .remote_log import RemoteLog
from .runs import Runs, Wanted
from .shared_log import SharedLog
from .store.contract import Address, Claim

if TYPE_CHECKING:
    from .cursor import Position
    from .replica import Replica
    from .run import Run
    from .selection import Start
    from .store.contract import Standing

PAUSES = (0.05, 0.15, 0.3)  # seconds between looks for a private run that may just have begun
SECONDS = 5.0  # that a client waits for what it asks for; then it is to come back


class Loader:
    """After `load` the runs that a client needs are known here, and their channels have what it lacks, as far as the
    store has it.
    """

    def __init__(self, replica: Replica, runs: Runs) -> None:
        self._replica = replica
        self._runs = runs
        self._locks: weakref.WeakValueDictionary[Address, asyncio.Lock] = weakref.WeakValueDictionary()

    async def load(self, wanted: Sequence[Wanted], start: Start) -> None:
        """Raises StoreAwayError, and FullError where there is no room."""
        wanted = [want for want in wanted if not (start.cursor and start.cursor.has_ended(want.enabled.name))]
        if all(self._is_here(want, start) for want in wanted):
            return
        try:
            async with asyncio.timeout(SECONDS):
                await self._load(wanted, start)
        except TimeoutError:
            raise StoreAwayError("the store is slow") from None

    async def _load(self, wanted: Sequence[Wanted], start: Start) -> None:
        """All at once: what has to be waited for may be in each of them."""
        loads = [(self._load_shared if want.enabled.shared else self._load_private)(want, start) for want in wanted]
        if len(loads) == 1:
            await loads[0]
            return
        try:
            async with asyncio.TaskGroup() as group:
                for load in loads:
                    group.create_task(load, name="eventmux load")
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _is_here(self, want: Wanted, start: Start) -> bool:
        position = _position(want, start)
        if position is None and start.since is None:
            return not want.enabled.shared or self._current(want, start) is not None
        run = self._found(want, position, start)
        return (
            run is not None
            and start.since is None
            and position is not None
            and run.channel.holds(position)
            and position.offset >= run.channel.history.first - 1
        )

    def _current(self, want: Wanted, start: Start) -> Run | None:
        return self._runs.current(want.enabled, want.parameters, is_replay=start.since is not None)

    def _found(self, want: Wanted, position: Position | None, start: Start) -> Run | None:
        if position is None:
            return None
        return self._runs.at(want.enabled, want.parameters, position.epoch, start.principal)

    async def _load_shared(self, want: Wanted, start: Start) -> None:
        address = shared_address(want.enabled, want.parameters)
        async with self._locks.setdefault(address, asyncio.Lock()):
            await self._settle(address)
            position = _position(want, start)
            run = self._found(want, position, start)
            if run is None and position and isinstance(part := self._replica.at(address), SharedLog):
                await self._review(part)
                run = self._found(want, position, start)
            if run is None and position:
                run = await self._adopt_shared(want, address, position)
            if run and position:
                self._runs.lifetimes.expect(run)
                await self._bring(run, position)
                if run.channel.holds(position) or run.channel.ended is None:
                    return
            run = self._current(want, start) or await self._adopt_shared(
                want, address, None, replay=start.since is not None
            )
            if run and isinstance(run.seat, SharedLog):
                self._runs.lifetimes.expect(run)
                await run.seat.mirror.fill(0 if start.since is not None else run.channel.history.last - 1)

    async def _adopt_shared(
        self, want: Wanted, address: Address, position: Position | None, *, replay: bool = False
    ) -> Run | None:
        """The log that there is, if `position` is in it; without one, the log that there is now, or a new one."""
        part = self._replica.at(address)
        if position is not None and part is not None:
            return None  # the log that there is, is here, and does not know this epoch
        self._runs.check_room(want.enabled)  # before the store has a log that nobody could read here
        claim = Claim(
            address,
            self._replica.id,
            self._replica.lease,
            self._replica.keep,
            epoch=self._runs.new_epoch(want.enabled.name),
            reads=True,
            opens="never" if position else "none" if replay else "over",
        )
        standing = await self._claim(claim)
        if standing is None and claim.opens != "never":
            raise StoreAwayError(self._replica.store.fault or "the store has no room for a log")
        if standing is None:
            return None
        if position and position.epoch not in dict(standing.lineage):
            return None
        return self._runs.adopt(want, address, standing, None)

    async def _review(self, part: SharedLog) -> None:
        """Have it know what its log is now: another replica may have given that another epoch, and told a client."""
        last = part.last
        part.stand(await self._claim(part.claim() or self._look(part.address)), last)
        await part.rested()  # where the store has another log by now

    async def _settle(self, address: Address) -> None:
        """Wait until a run that rests has let go its lease."""
        if isinstance(part := self._replica.at(address), SharedLog):
            await part.rested()

    async def _bring(self, run: Run, position: Position) -> None:
        part, channel = run.seat, run.channel
        if not isinstance(part, SharedLog | RemoteLog):
            return
        if position.offset > channel.history.last and channel.ended is None:
            standing = await self._claim(self._look(part.address))
            if standing and standing.last >= position.offset and position.epoch in dict(standing.lineage):
                await part.mirror.catch_up(position.offset)
        if channel.holds(position):
            await part.mirror.fill(position.offset)

    async def _load_private(self, want: Wanted, start: Start) -> None:
        position = _position(want, start)
        if position is None:
            return
        address = private_address(want.enabled.name, position.epoch)
        async with self._locks.setdefault(address, asyncio.Lock()):
            run = self._found(want, position, start)
            if run is None and self._replica.at(address) is None:
                standing = await self._copied(address)
                if standing and standing.label == private_label(want.enabled, want.parameters, start.principal):
                    run = self._runs.adopt(want, address, standing, start.principal)
            if run:
                self._runs.lifetimes.expect(run)
            if run and isinstance(run.seat, RemoteLog):
                # The client may be faster than the copy: it waits for that, or until the run is known to be lost.
                await run.seat.mirror.reach(position.offset)
            if run:
                await self._bring(run, position)

    async def _copied(self, address: Address) -> Standing | None:
        """Of a private run on another replica, which has no copy before the replica has had the time to make one."""
        for pause in PAUSES:
            if standing := await self._claim(Claim(address, self._replica.id, self._replica.lease, 0.0)):
                return standing
            await asyncio.sleep(pause)
        if not self._replica.is_steady:
            raise StoreAwayError("the store has just come back")
        return None

    def _look(self, address: Address) -> Claim:
        """One that wants nothing but to know."""
        return Claim(address, self._replica.id, self._replica.lease, self._replica.keep)

    async def _claim(self, claim: Claim) -> Standing | None:
        (standing,) = await self._replica.store.claim([claim])
        return standing


def _position(want: Wanted, start: Start) -> Position | None:
    return start.cursor.position(want.enabled.name) if start.cursor else None
