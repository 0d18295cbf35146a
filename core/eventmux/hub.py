"""Finds or opens the channel for a source and its parameters. The bytes of a stream are not made here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .channel import Channel, Clock
from .cursor import Cursor, Position, private_epoch, shared_epoch
from .run import Run
from .subscription import Selection, Subscription, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from .catalog import EnabledSource

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A source that a request asks for, with its validated parameters."""

    enabled: EnabledSource
    parameters: BaseModel


class Hub:
    """All channels and runs of a process, and the subscriptions that are open."""

    def __init__(self) -> None:
        self._clock = Clock()
        self._runs: set[Run] = set()
        self._shared: dict[Key, list[Run]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._subscriptions: set[Subscription] = set()
        self.is_draining = False

    def subscribe(self, wanted: Sequence[Wanted], cursor: Cursor | None, selection: Selection) -> Subscription:
        """Open a subscription. There is no `await` between finding a channel and joining it, so no event is missed."""
        epoch = private_epoch()
        subscription = Subscription([self._view(want, cursor, epoch) for want in wanted], selection)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        subscription.close()

    def state(self, enabled: EnabledSource) -> str:
        if enabled.unavailable:
            return "unavailable"
        return "running" if any(run.enabled is enabled for run in self._runs) else "idle"

    @property
    def runs(self) -> int:
        """How many runs there are, those included that are being closed."""
        return len(self._runs) + len(self._closing)

    @property
    def subscriptions(self) -> int:
        return len(self._subscriptions)

    def drain(self) -> None:
        """End every stream in an orderly way."""
        self.is_draining = True
        for subscription in self._subscriptions:
            subscription.drain()

    async def close(self) -> None:
        """Stop every run, and wait until their generators are closed or abandoned."""
        self.drain()
        for run in list(self._runs):
            self._stop(run)
        while self._closing:
            await asyncio.wait(self._closing)

    def _view(self, want: Wanted, cursor: Cursor | None, epoch: str) -> View:
        name = want.enabled.name
        if cursor is not None and cursor.has_ended(name):
            return View(None, name, 0, is_over=True)
        position = cursor.position(name) if cursor else None
        run = self._shared_run(want) if want.enabled.shared else self._open(want, epoch)
        channel = run.channel
        if position is None:
            return View(channel, name, channel.history.last)
        if position.epoch == channel.epoch and position.offset <= channel.history.last:
            return View(channel, name, position.offset)
        return View(channel, name, channel.history.last, gap=_reason(position, want.enabled))

    def _shared_run(self, want: Wanted) -> Run:
        # JSON finds them fast; equality decides, because JSON shows a secret as asterisks.
        runs = self._shared.setdefault((want.enabled.name, want.parameters.model_dump_json()), [])
        for run in runs:
            if run.parameters == want.parameters:
                return run
        run = self._open(want, shared_epoch())
        runs.append(run)
        return run

    def _open(self, want: Wanted, epoch: str) -> Run:
        channel = Channel(
            want.enabled.name, epoch, bounds=want.enabled.bounds, clock=self._clock, on_idle=lambda: self._stop(run)
        )
        run = Run(want.enabled, want.parameters, channel, on_over=self._forget)
        self._runs.add(run)
        return run

    def _stop(self, run: Run) -> None:
        if run in self._runs:
            self._forget(run)
            task = asyncio.create_task(run.stop(), name=f"eventmux close {run.enabled.name}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _forget(self, run: Run) -> None:
        """No new subscription joins this run; those that it has read on."""
        self._runs.discard(run)
        key = (run.enabled.name, run.parameters.model_dump_json())
        if run in self._shared.get(key, ()):
            self._shared[key].remove(run)
            if not self._shared[key]:
                del self._shared[key]


def _reason(position: Position, enabled: EnabledSource) -> str:
    """Why a position is not in the log: a shared log starts anew with its run, a private one may never have been."""
    return "restarted" if enabled.shared and len(position.epoch) == len(shared_epoch()) else "unknown"
