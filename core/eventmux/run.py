"""Drives one source into its channel: events become frames here, once. Who listens is not known here."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from typing import TYPE_CHECKING, Literal

from . import sse
from .errors import SourceError
from .operators import piped
from .signature import Context

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from .catalog import EnabledSource
    from .channel import Channel

log = logging.getLogger("eventmux.run")

TURN_EVENTS = 32  # a source that never awaits gives way to the others after so many events,
TURN_SECONDS = 0.005  # or after this time, whichever comes first
CLOSE_SECONDS = 5.0  # for a generator's `finally`; then it is abandoned, with a warning

State = Literal["idle", "running", "restarting", "quarantined", "over"]


class Run:
    """A source with given parameters, and the log that it writes.

    `start` and `stop` may come again and again: a shared source that was stopped or has failed goes on in the same
    log. Each time, the generator is iterated and closed by one task, so that task groups, time-outs and context
    variables hold across its yields. A private run waits for its reader; a shared one never waits, and is started
    again when it fails. `principal`: whom a private run belongs to. `on_over`: called when nothing more will come.
    """

    def __init__(
        self,
        enabled: EnabledSource,
        parameters: BaseModel,
        channel: Channel,
        *,
        principal: str | None,
        on_over: Callable[[Run], None],
    ) -> None:
        self.enabled = enabled
        self.parameters = parameters
        self.channel = channel
        self.principal = principal
        self.state: State = "idle"
        self._on_over = on_over
        self._failures = 0
        self._quarantine_ends = 0.0
        self._task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def quarantine_left(self) -> float:
        """Seconds until somebody can start it again."""
        left = self._quarantine_ends - asyncio.get_running_loop().time()
        return max(0.0, left) if self.state == "quarantined" else 0.0

    def start(self) -> None:
        """Do nothing if it runs, is over, or is still in quarantine."""
        if self.state == "quarantined" and not self.quarantine_left:
            self.state, self._failures, self.channel.ended = "idle", 0, None
        if self.state == "idle":
            self.state = "running"
            self._task = asyncio.create_task(self._drive(self._stopping), name=f"eventmux run {self.enabled.name}")

    def stop(self) -> asyncio.Task[None] | None:
        """Close the generator: its `finally` runs. One that does not end in time is abandoned, and named in the log.

        Returns the task that does it, None if there is nothing to stop.
        """
        if self._task is None:
            return None
        task, self._task = self._task, None
        if self.state in {"running", "restarting"}:
            self.state = "idle"
        self._stopping = asyncio.create_task(self._close(task), name=f"eventmux close {self.enabled.name}")
        return self._stopping

    async def _close(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        _, pending = await asyncio.wait({task}, timeout=CLOSE_SECONDS)
        if pending:
            name, plugin = self.enabled.name, self.enabled.plugin
            log.warning(
                "source %s of plugin %s did not close within %g seconds: abandoned", name, plugin, CLOSE_SECONDS
            )
            task.cancel()

    @property
    def _is_stopped(self) -> bool:
        """Whether the task that asks has been stopped; another may have taken its place."""
        return asyncio.current_task() is not self._task

    async def _drive(self, before: asyncio.Task[None] | None) -> None:
        if before:
            await asyncio.wait({before})  # two generators of one log do not overlap
        loop = asyncio.get_running_loop()
        restart = self.enabled.policy.restart
        while True:
            begin = loop.time()
            failure = await self._attempt()
            if self._is_stopped:
                if failure:
                    name, plugin = self.enabled.name, self.enabled.plugin
                    log.error("source %s of plugin %s failed when closed", name, plugin, exc_info=failure[0])
                return
            if failure is None or not self.enabled.shared:
                if failure:
                    self._report(*failure, retryable=_is_retryable(failure[0]))
                self._over("failed" if failure else "completed", "over")
                return
            self._failures = 1 if loop.time() - begin > restart.max_backoff else self._failures + 1
            if self._failures >= restart.attempts:
                self._report(*failure, retryable=False)
                self._quarantine_ends = loop.time() + restart.quarantine
                self._over("failed", "quarantined")
                return
            self._report(*failure, retryable=True)
            self.state = "restarting"
            await asyncio.sleep(restart.wait(self._failures, random.random()))  # noqa: S311 - jitter is no secret
            self.state = "running"

    async def _attempt(self) -> tuple[BaseException, str] | None:
        """Run the generator to its end; what it failed with, and what clients may be told of it, or None."""
        try:
            await self._pump()
        except SourceError as error:
            return error, error.message
        except BaseException as error:
            # Whatever a plugin raises is its own failure, SystemExit too: logged, and reported in the stream.
            if self._is_stopped and isinstance(error, asyncio.CancelledError):
                raise
            return error, f"source {self.enabled.name} failed"
        return None

    async def _pump(self) -> None:
        source, channel, is_shared = self.enabled.source, self.channel, self.enabled.shared
        log_of_source = logging.getLogger(f"eventmux.source.{self.enabled.name}")
        context = Context(self.enabled.name, last=channel.last, principal=self.principal, log=log_of_source)
        loop = asyncio.get_running_loop()
        turn_ends, turn_left = loop.time() + TURN_SECONDS, TURN_EVENTS
        async with piped(source, source.run(self.parameters, context), self.enabled.pipe) as events:
            async for event in events:
                if self._is_stopped:
                    return
                channel.append(sse.encode(source, event))
                channel.last = event
                turn_left -= 1
                if not is_shared and channel.is_full:
                    await channel.room()
                elif turn_left and loop.time() < turn_ends:
                    continue
                else:
                    await asyncio.sleep(0)
                turn_ends, turn_left = loop.time() + TURN_SECONDS, TURN_EVENTS

    def _report(self, error: BaseException, message: str, *, retryable: bool) -> None:
        incident = secrets.token_hex(4)
        name, plugin = self.enabled.name, self.enabled.plugin
        log.error("source %s of plugin %s failed, incident %s: %s", name, plugin, incident, error, exc_info=error)
        told = sse.control("stream.error", source=name, message=message, incident=incident, retryable=retryable)
        self.channel.append(told)

    def _over(self, reason: str, state: State) -> None:
        self.state = state
        self._task = None
        self.channel.end(reason)
        self._on_over(self)


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, SourceError) and error.retryable
