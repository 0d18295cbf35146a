"""Drives one source into its channel: events become frames here, once. Who listens is not known here."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from . import sse
from .errors import SourceError
from .inbox import Inbox
from .meter import Tally
from .operators import piped
from .reader import REMOVED
from .signature import Context
from .turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel

    from .box import Box
    from .catalog import EnabledSource
    from .channel import Channel
    from .part import Log, Seat
    from .turn import Pulse

log = logging.getLogger("eventmux.run")

SHORTEST_PAUSE = 0.001  # seconds between a failure and the next try, whatever is configured: others must have a turn
RUN_TASK = "eventmux run "  # and the source's name: the name of the task that iterates it
CLOSE_SECONDS = 5.0  # for a generator's `finally`; then it is abandoned, with a warning

State = Literal["idle", "remote", "running", "restarting", "quarantined", "over"]


class Failure(NamedTuple):
    """What a run has failed with, as its clients were told."""

    message: str
    incident: str


class Run:
    """A source with given parameters, and the log that it writes.

    `start` and `stop` may come again and again: a shared source that was stopped or has failed goes on in the same
    log. Each time, the generator is iterated and closed by one task, so that task groups, time-outs and context
    variables hold across its yields. A private run waits for its reader; a shared one waits for the store, if any, and
    is started again when it fails. `given`: what the client gave, of which the parameters were made. `principal`: whom
    a private run belongs to; `trace`: the `traceparent` of the request that has begun it. `on_over`: called when
    nothing more will come. `failure`: the last one.

    `log`: where its events go; it is the channel where there is no store. `seat`: what says whether it may run here;
    while it may not, or runs on another replica, its state is `remote`. `box`: what fills its inbox from the store.
    """

    def __init__(
        self,
        enabled: EnabledSource,
        parameters: BaseModel,
        channel: Channel,
        *,
        given: Mapping[str, Any],
        pulse: Pulse,
        principal: str | None,
        tally: Tally | None = None,
        on_over: Callable[[Run], None],
    ) -> None:
        self.log: Log = channel
        self.seat: Seat | None = None
        self.enabled = enabled
        self.parameters = parameters
        self.given = given
        self.channel = channel
        self._pulse = pulse
        self.principal = principal
        self.trace: str | None = None
        self.failure: Failure | None = None
        self._tally = tally or Tally()
        self.size = len(fingerprint(parameters))  # bytes that a client has sent
        self.inbox: Inbox[BaseModel] | None = Inbox() if enabled.source.takes else None
        self.box: Box | None = None
        self.state: State = "idle"
        self._on_over = on_over
        self._failures = 0
        self._began: float | None = None  # the attempt under way
        self._may_begin = 0.0  # not before: after a failure, whoever comes or goes meanwhile
        self._task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[bool] | None = None

    @property
    def pause(self) -> State | None:
        """`restarting` or `quarantined` while it must not begin again, whether somebody waits for it or not."""
        if not self._failures or self.state == "over" or self._may_begin <= asyncio.get_running_loop().time():
            return None
        return "quarantined" if self._failures >= self.enabled.policy.restart.attempts else "restarting"

    @property
    def is_kept(self) -> bool:
        """Whether no change may begin it again: it is over, or each run costs."""
        return self.state == "over" or self.enabled.policy.once

    @property
    def next_try(self) -> float:
        """Seconds until it may begin again."""
        return max(0.0, self._may_begin - asyncio.get_running_loop().time())

    def start(self) -> None:
        """Do nothing if it runs or is over."""
        if self.state == "idle":
            self.state = "remote"
            if self.seat is None or self.seat.seek():
                self.begin()

    def begin(self) -> None:
        """Run here, from where the log ends."""
        if self.state == "remote":
            self.state = "running"
            self._task = asyncio.create_task(self._drive(self._stopping), name=RUN_TASK + self.enabled.name)

    def stop(self, *, is_leaving: bool = False) -> asyncio.Task[bool] | None:
        """Cancel the generator: its `finally` runs. One that does not end in time is abandoned, and named in the log.
        `is_leaving`: because the process ends.

        Returns the task that waits for it, and says whether it was abandoned; None if there is nothing to stop.
        """
        closing = self.halt()
        if self.seat:
            self.seat.rest(closing, is_leaving=is_leaving)
        if self.state == "remote":
            self.state = "idle"
        return closing

    def halt(self) -> asyncio.Task[bool] | None:
        """As `stop`, but the right to run here stays."""
        if self._task is None:
            return None
        task, self._task = self._task, None
        self._count_as_lasting()
        if self.state != "over":
            self.state = "idle"
        task.cancel()
        self._stopping = asyncio.create_task(
            self._close(task, self._stopping), name=f"eventmux close {self.enabled.name}"
        )
        return self._stopping

    def change(self, enabled: EnabledSource, parameters: BaseModel) -> asyncio.Task[bool] | None:
        """Be a run of this from now on. Where that makes it another one, what runs is stopped, as by `stop`, and begins
        again in the same log; how often it has failed is forgotten. Otherwise nothing stops.
        """
        before, is_kept = self.enabled, self.is_kept
        is_another = (enabled.source, enabled.pipe, parameters) != (before.source, before.pipe, self.parameters)
        is_hastened = self.pause is not None and enabled.policy.restart != before.policy.restart
        self.enabled, self.parameters = enabled, parameters
        if enabled.source.takes and self.inbox is None:
            self.inbox = Inbox()
        if is_kept or enabled.policy.once or not (is_another or is_hastened):
            return None
        self._failures, self._may_begin = 0, 0.0
        closing = self.halt()
        if closing:
            self.state = "remote"
            self.begin()
        return closing

    def yield_up(self) -> asyncio.Task[bool] | None:
        """Stop here, because another replica may begin. One that was over is not, if its log has not been told."""
        closing = self.halt()
        if self.state == "idle" or (self.state == "over" and self.channel.ended is None):
            self.state = "remote"
        return closing

    def finish(self) -> None:
        """It is over, wherever it ran."""
        if self.state != "over":
            self._over_here()

    def remove(self) -> asyncio.Task[bool] | None:
        """End it, because the service has its source no more; as `stop`."""
        if self.state != "over":
            self.state = "over"
            self.channel.end(REMOVED)
        return self.stop()

    async def _close(self, task: asyncio.Task[None], before: asyncio.Task[bool] | None) -> bool:
        _, pending = await asyncio.wait({task}, timeout=CLOSE_SECONDS)
        if pending:
            name, plugin = self.enabled.name, self.enabled.plugin
            log.warning(
                "source %s of plugin %s did not close within %g seconds: abandoned", name, plugin, CLOSE_SECONDS
            )
            task.cancel()
            await asyncio.sleep(0)
        if before:
            await asyncio.wait({before})
        return not task.done()

    @property
    def _is_stopped(self) -> bool:
        """Whether the task that asks has been stopped; another may have taken its place."""
        return asyncio.current_task() is not self._task

    def _count_as_lasting(self) -> None:
        """A run that has lasted begins a new row of failures, however it ends."""
        began, self._began = self._began, None
        if began is not None and asyncio.get_running_loop().time() - began > self.enabled.policy.restart.max_backoff:
            self._failures = 0

    async def _drive(self, before: asyncio.Task[bool] | None) -> None:
        if before:
            await asyncio.wait({before})  # two generators of one log do not overlap
        loop = asyncio.get_running_loop()
        while True:
            if self._failures:
                self.state = self.pause or "running"
                await asyncio.sleep(max(self._may_begin - loop.time(), SHORTEST_PAUSE))
                if self._is_stopped:
                    return
                self._tally.restarts += 1
            self.state, self._began = "running", loop.time()
            failure = await self._attempt()
            if self._is_stopped:
                if failure:
                    name, plugin = self.enabled.name, self.enabled.plugin
                    log.error("source %s of plugin %s failed when closed", name, plugin, exc_info=failure[0])
                return
            if failure is None or not self._is_restarted:
                if failure:
                    self._report(*failure, retryable=_is_retryable(failure[0]))
                self._over("failed" if failure else "completed")
                return
            self._report(*failure, retryable=True)
            self._count_as_lasting()
            self._failures += 1
            self._may_begin = loop.time() + self._pause()

    @property
    def _is_restarted(self) -> bool:
        return self.enabled.shared and not self.enabled.policy.once

    def _pause(self) -> float:
        restart = self.enabled.policy.restart
        if self._failures >= restart.attempts:
            return restart.quarantine
        return restart.wait(self._failures, random.random())  # noqa: S311 - jitter is no secret

    async def _attempt(self) -> tuple[BaseException, str] | None:
        """Run the generator to its end; what it failed with, and what clients may be told of it, or None."""
        try:
            await self._pump()
        except SourceError as error:
            return error, str(getattr(error, "message", error))  # a subclass may not have called ours
        except BaseException as error:
            # Whatever a plugin raises is its own failure, SystemExit too: logged, and reported in the stream.
            if self._is_stopped and isinstance(error, asyncio.CancelledError):
                raise
            return error, f"source {self.enabled.name} failed"
        return None

    async def _pump(self) -> None:
        source, channel, log_of_run = self.enabled.source, self.channel, self.log
        waits = not self.enabled.shared or log_of_run is not channel
        log_of_source = logging.getLogger(f"eventmux.source.{self.enabled.name}")
        context = Context(
            self.enabled.name, last=channel.last, principal=self.principal, log=log_of_source, trace=self.trace
        )
        turn, task, tally = Turn(self._pulse), self._task, self._tally
        async with piped(source, source.run(self.parameters, context, self.inbox), self.enabled.pipe) as events:
            async for event in events:
                if self._task is not task:
                    return  # it has been stopped
                log_of_run.append(sse.encode(source, event))
                channel.last = event
                tally.appended += 1
                if waits and log_of_run.is_full:
                    await log_of_run.room()
                elif turn.is_over():
                    await turn.give_way()

    def _report(self, error: BaseException, message: str, *, retryable: bool) -> None:
        incident = secrets.token_hex(4)
        name, plugin = self.enabled.name, self.enabled.plugin
        self.failure = Failure(message, incident)
        self._tally.failures += 1
        extra = {"trace": self.trace} if self.trace else None
        log.error(
            "source %s of plugin %s failed, incident %s: %s", name, plugin, incident, error, exc_info=error, extra=extra
        )
        told = sse.control("stream.error", source=name, message=message, incident=incident, retryable=retryable)
        self.log.append(told)

    def _over(self, reason: str) -> None:
        self.log.end(reason)
        if self.state != "over":
            self._over_here()

    def _over_here(self) -> None:
        self.state = "over"
        self._task = None
        self._on_over(self)


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, SourceError) and bool(getattr(error, "retryable", False))


def fingerprint(parameters: BaseModel) -> bytes:
    """The parameters as text: equal ones have the same. Secrets are asterisks in it."""
    try:
        return parameters.model_dump_json().encode()
    except Exception:  # noqa: BLE001 - what has no JSON, or a serializer of the plugin's that fails
        return repr(parameters).encode(errors="backslashreplace")
