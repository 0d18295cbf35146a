"""Drives one source into its channel: events become frames here, once. Who listens is not known here."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING

from . import sse
from .errors import SourceError
from .operators import piped
from .source import Context

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from .catalog import EnabledSource
    from .channel import Channel

log = logging.getLogger("eventmux.run")

TURN_EVENTS = 32  # a source that never awaits gives way to the others after so many events,
TURN_SECONDS = 0.005  # or after this time, whichever comes first
CLOSE_SECONDS = 5.0  # for a generator's `finally`; then it is abandoned, with a warning


class Run:
    """One execution of a source with given parameters.

    The generator is iterated and closed by one task, so that task groups, time-outs and context variables hold across
    its yields. A private run waits for its reader; a shared one never waits.
    """

    def __init__(
        self, enabled: EnabledSource, parameters: BaseModel, channel: Channel, *, on_over: Callable[[Run], None]
    ) -> None:
        self.enabled = enabled
        self.channel = channel
        self.parameters = parameters
        self._on_over = on_over
        self._is_stopping = False
        self._task = asyncio.create_task(self._drive(), name=f"eventmux run {enabled.name}")

    async def _drive(self) -> None:
        reason = "failed"
        try:
            await self._pump()
            reason = "completed"
        except SourceError as error:
            self._fail(error, error.message, retryable=error.retryable)
        except BaseException as error:
            # Whatever a plugin raises is its own failure, SystemExit too: logged, and reported in the stream.
            if self._is_stopping and isinstance(error, asyncio.CancelledError):
                raise
            self._fail(error, f"source {self.enabled.name} failed", retryable=False)
        finally:
            self.channel.end(reason)
            self._on_over(self)

    async def _pump(self) -> None:
        source = self.enabled.source
        context = Context(self.enabled.name, log=logging.getLogger(f"eventmux.source.{self.enabled.name}"))
        loop = asyncio.get_running_loop()
        turn_ends, turn_left = loop.time() + TURN_SECONDS, TURN_EVENTS
        async with piped(source, source.run(self.parameters, context), self.enabled.pipe) as events:
            async for event in events:
                if self._is_stopping:
                    return
                self.channel.append(sse.encode(source, event))
                turn_left -= 1
                if not self.enabled.shared and self.channel.is_full:
                    await self.channel.room()
                elif turn_left and loop.time() < turn_ends:
                    continue
                else:
                    await asyncio.sleep(0)
                turn_ends, turn_left = loop.time() + TURN_SECONDS, TURN_EVENTS

    def _fail(self, error: BaseException, message: str, *, retryable: bool) -> None:
        incident = secrets.token_hex(4)
        log.error(
            "source %s of plugin %s failed, incident %s: %s",
            self.enabled.name,
            self.enabled.plugin,
            incident,
            error,
            exc_info=error,
        )
        self.channel.append(
            sse.control(
                "stream.error", source=self.enabled.name, message=message, incident=incident, retryable=retryable
            )
        )

    async def stop(self) -> None:
        """Close the generator: its `finally` runs. One that does not end in time is abandoned, and named in the log."""
        self._is_stopping = True
        self._task.cancel()
        _, pending = await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)
        if pending:
            log.warning(
                "source %s of plugin %s did not close within %g seconds: abandoned",
                self.enabled.name,
                self.enabled.plugin,
                CLOSE_SECONDS,
            )
            self._task.cancel()
