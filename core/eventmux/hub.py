"""Opens subscriptions. Where they begin, how long the logs stay, and the bytes, are others' work."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .beginning import Beginning
from .errors import DrainingError, FullError
from .fanout import Fanout
from .farewells import Farewells
from .loader import Loader
from .meter import Meter
from .policy import Limits
from .runs import Runs, Wanted
from .selection import Selection, Start
from .stream import Stream
from .subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from pydantic import BaseModel

    from .catalog import Catalog, EnabledSource
    from .reader import View
    from .register import Census
    from .replica import Replica
    from .run import Run


class Health(NamedTuple):
    """`unavailable | running | remote | restarting | quarantined | idle`, and why: what the configuration lacks, or
    what its clients were told of the last failure, with its incident and the seconds until it is tried again.
    `remote`: it runs on another replica, or may not run here yet.
    """

    state: str
    reason: str | None = None
    incident: str | None = None
    next_try: float | None = None


class Hub:
    """The runs of a process, and the subscriptions that are open."""

    def __init__(
        self,
        limits: Limits | None = None,
        catalog: Catalog | None = None,
        meter: Meter | None = None,
        replica: Replica | None = None,
    ) -> None:
        """`catalog`: what may be subscribed to; without one, whatever is asked for. `replica`: this process among those
        that share a store; then `open` comes first, and `load` before each `subscribe`.
        """
        self._catalog = catalog
        self.limits = limits or Limits()
        self.meter = meter or Meter()
        self._fanout = Fanout()
        self._runs = Runs(self.limits, self._fanout, self.meter, replica)
        self._replica = replica
        self._loader = Loader(replica, self._runs) if replica else None
        self._streams: dict[Hashable, Stream] = {}
        self._is_leaving = False
        self._count_from_zero(catalog)

    def _count_from_zero(self, catalog: Catalog | None) -> None:
        """A counter that begins with its first event hides that event from PromQL's rate()."""
        for name in catalog.sources if catalog else ():
            self.meter.of(name)

    async def open(self) -> None:
        """Also a second time, where nothing happens. Raises ConfigError for a store that cannot be used."""
        if self._replica:
            await self._replica.open()

    @property
    def is_shared(self) -> bool:
        """Whether what a client wants may have to be loaded."""
        return self._loader is not None

    @property
    def fault(self) -> str | None:
        """Why the store cannot be asked now; None where all is well, or where there is none."""
        return self._replica.store.fault if self._replica else None

    async def load(self, wanted: Sequence[Wanted], start: Start) -> None:
        """Have here what a subscription needs of the store; it must follow without an `await` in between. Raises
        FullError where that is not to be had now.
        """
        if self._loader and not self._runs.lifetimes.is_draining:
            await self._loader.load(wanted, start)

    def subscribe(self, wanted: Sequence[Wanted], start: Start, selection: Selection) -> Subscription:
        """Open a subscription. Raises FullError where a source has no room for a run, or the service goes down."""
        if self._runs.lifetimes.is_draining:
            raise DrainingError("the service is shutting down")
        if self._catalog:
            self._check(wanted, self._catalog)
        self._fanout.begin()
        self._runs.relieve()  # here, and not once there are runs that wait for this subscription
        beginning = Beginning(self._runs, start)
        try:
            views = beginning.views(wanted)
        except BaseException:
            beginning.undo()
            raise
        for view in views:
            view.hangs_up = view.hangs_up and selection.reconnects
        place = tuple([view.at for view in views])
        if start.cursor and (behind := beginning.behind) is not None:
            self.meter.replay.add(behind)
        return Subscription(self._stream(views, selection), place, selection.limit, self._fanout)

    def publish(self, want: Wanted, message: BaseModel, size: int = 0) -> None:
        """Give `message`, which came as so many bytes, to the run of a source that takes events. Raises FullError where
        there is no room for it.
        """
        if self.is_draining:
            raise DrainingError("the service is shutting down")
        if self._catalog:
            self._check([want], self._catalog)
        self._fanout.begin()
        self._runs.relieve()
        beginning = Beginning(self._runs, Start())
        run = beginning.current_or_new(want)
        try:
            self._runs.publish(run, message, size)
        except BaseException:
            beginning.undo()
            raise

    async def post(self, want: Wanted, body: bytes) -> None:
        """The same for a source whose run may be on another replica, with the JSON of the message as it came."""
        assert self._replica  # noqa: S101 - see `is_shared`
        if self.is_draining:
            raise DrainingError("the service is shutting down")
        await self.load([want], Start())
        if self._catalog:
            self._check([want], self._catalog)
        run = self._runs.current(want.enabled, want.parameters, is_replay=False)
        if run is None or run.box is None:
            raise FullError(f"source {want.enabled.name!r} has no log now")
        with self._runs.lifetimes.attending(run):  # first, for where there is no room for a run nothing is to be posted
            await run.box.post(body)

    @staticmethod
    def _check(wanted: Sequence[Wanted], catalog: Catalog) -> None:
        """A request that came before a change, and asks for what was, is made again by its client."""
        for want in wanted:
            if catalog.sources.get(want.enabled.name) is not want.enabled:
                raise FullError(f"source {want.enabled.name!r} has just been changed")

    def apply(self, catalog: Catalog, limits: Limits) -> None:
        """Serve this from now on. Who reads what has not changed does not notice.

        Sources that are equal to those of before must be the same objects.
        """
        before, self._catalog, self.limits = self._catalog, catalog, limits
        self._count_from_zero(catalog)
        self._runs.apply(catalog.sources, limits)
        changed = _changed_streams(before, catalog) if before else frozenset()
        for stream in self._streams.values():
            if stream.name in changed:
                self._fanout.add(Farewells(stream.members))

    def _stream(self, views: Sequence[View], selection: Selection) -> Stream:
        """The stream of all who want the same of the same logs."""
        logs = [(view.source, view.channel, view.hangs_up) for view in views]
        key = (*logs, selection.events, selection.form, selection.mark, selection.name)
        if key not in self._streams:
            self._streams[key] = Stream(views, selection, on_empty=lambda: self._forget(key), meter=self.meter)
        return self._streams[key]

    def _forget(self, key: Hashable) -> None:
        del self._streams[key]

    def health(self, enabled: EnabledSource) -> Health:
        """Of several runs the liveliest counts."""
        if enabled.unavailable:
            return Health("unavailable", enabled.unavailable)
        runs: dict[str, Run] = {run.pause or run.state: run for run in self._runs.of(enabled.name)}
        state = next((state for state in ("running", "remote", "restarting", "quarantined") if state in runs), "idle")
        if state in {"running", "remote", "idle"} or (failure := runs[state].failure) is None:
            return Health(state)
        return Health(state, failure.message, failure.incident, runs[state].next_try)

    async def census(self) -> dict[str, Census]:
        """Of every source that has runs."""
        return await self._runs.census()

    @property
    def is_draining(self) -> bool:
        """Whether the service goes down: soon, and then no new stream is welcome, or already."""
        return self._is_leaving or self._runs.lifetimes.is_draining

    @property
    def runs(self) -> int:
        return self._runs.lifetimes.active

    @property
    def abandoned(self) -> int:
        return self._runs.closing.abandoned

    @property
    def subscriptions(self) -> int:
        return sum(map(len, self._streams.values()))

    @property
    def history_bytes(self) -> int:
        return self._runs.ledger.bytes

    def announce(self) -> None:
        """The service will drain: nobody is to be sent here any more, but streams are still opened."""
        self._is_leaving = True

    def hurry(self, seconds: float) -> None:
        """From now on generators have so long to close, and are abandoned then."""
        self._runs.closing.hurry(seconds)

    def send_away(self, subscriptions: list[Subscription], reason: str) -> None:
        """End these, a few at a time. The list is used up."""
        self._fanout.add(Farewells(subscriptions, reason))

    def drain(self) -> None:
        """Begin to end every stream in an orderly way, a few at a time: 5,000 in one go held the loop for a second."""
        self._runs.lifetimes.is_draining = True
        for stream in self._streams.values():
            self._fanout.add(Farewells(stream.members, "drained"))

    async def close(self) -> None:
        """End every stream, stop every run, and wait until their generators are closed or abandoned."""
        self._runs.lifetimes.is_draining = True
        for stream in list(self._streams.values()):  # those that `drain` has not come to: their logs go now
            farewells = Farewells(stream.members, "drained")
            while farewells.advance(0.0):
                pass
        await self._runs.close()
        if self._replica:
            await self._replica.close()


def _changed_streams(before: Catalog, after: Catalog) -> frozenset[str]:
    """The named streams whose clients must come back. Where a stream has only lost sources that are gone, its clients
    have been told so, and read on.
    """
    return frozenset(
        name
        for name, members in before.streams.items()
        if [member for member in members if member in after.sources] != list(after.streams.get(name, ()))
    )
