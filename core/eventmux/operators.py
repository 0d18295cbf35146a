"""The aiostream steps of `pipe`: they stand between a source and its run, once per run and not per subscriber."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated, Any

from aiostream import pipe, stream
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .errors import SourceError
from .source import Source
from .turn import Turn

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Step(BaseModel):
    """One step of a pipe: exactly one operator with its argument, `{take: 5}`.

    `take`: end after so many events. `skip`: leave out the first ones. `only`: leave out all but these event names.
    `spaceout`: at least so many seconds between two events. `timeout`: fail when there is none for so many seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    take: Annotated[int, Field(ge=1)] | None = None
    skip: Annotated[int, Field(ge=1)] | None = None
    only: Annotated[list[str], Field(min_length=1, max_length=64)] | None = None
    spaceout: Seconds | None = None
    timeout: Seconds | None = None

    @model_validator(mode="after")
    def _is_one_operator(self) -> Step:
        if [getattr(self, name) for name in self.model_fields_set].count(None) or len(self.model_fields_set) != 1:
            raise ValueError("a step is one operator with its argument, like {take: 5}")
        return self


@contextlib.asynccontextmanager
async def piped(
    source: Source[...], events: AsyncIterator[Any], steps: Sequence[Step]
) -> AsyncIterator[AsyncIterator[Any]]:
    """`events` through `steps`; on leaving, all of it is closed, from the outside in."""
    if not steps:
        async with contextlib.aclosing(events) as plain:  # type: ignore[type-var] # a generator
            yield plain
        return
    events = _giving_way(events)
    if any(step.timeout for step in steps):
        events = _in_one_task(events)
    chain = stream.iterate(events)
    for step in steps:
        chain |= _operator(source, step)
    timeouts = [step.timeout for step in steps if step.timeout]
    async with chain.stream() as streamer, contextlib.aclosing(_explained(streamer, timeouts)) as explained:
        yield explained


def _operator(source: Source[...], step: Step) -> Any:
    if step.take:
        return pipe.take(step.take)
    if step.skip:
        return pipe.skip(step.skip)
    if step.spaceout:
        return pipe.spaceout(step.spaceout)
    if step.timeout:
        return pipe.timeout(step.timeout)
    wanted = frozenset(step.only or ())
    return pipe.filter(lambda event: source.event_name(event) in wanted)


async def _explained(events: AsyncIterator[Any], timeouts: list[float]) -> AsyncGenerator[Any, None]:
    try:
        async for event in events:
            yield event
    except TimeoutError as error:
        if not timeouts:
            raise
        raise SourceError(f"no event within {min(timeouts):g} seconds", retryable=True) from error


async def _in_one_task(events: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """`events`, each step of them in one and the same task.

    aiostream's timeout calls `asyncio.wait_for`, which before Python 3.12 runs every `anext` in a task of its own: a
    task group or `asyncio.timeout` that the source holds across a yield would break (PEP 789).
    """
    handover: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue(maxsize=1)

    is_closing = False

    async def pump() -> None:
        end: BaseException | None = None
        try:
            async with contextlib.aclosing(events):  # type: ignore[type-var] # a generator
                async for event in events:
                    await handover.put((False, event))
        except Exception as error:  # noqa: BLE001 - handed over, and raised below
            end = error
        except BaseException as error:
            if is_closing:
                raise
            # SystemExit would leave any task that it passes through by way of the event loop, and end the service.
            end = RuntimeError(f"it raised {error!r}")
            end.__cause__ = error
        await handover.put((True, end))

    task = asyncio.create_task(pump(), name="eventmux pipe")
    try:
        while True:
            is_end, item = await handover.get()
            if is_end:
                if item:
                    raise item
                return
            yield item
    finally:
        is_closing = True
        task.cancel()
        await asyncio.wait({task})


async def _giving_way(events: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """`events`, and a turn for others every now and then: what a step leaves out never comes to the run, which sees to
    that otherwise.
    """
    turn = Turn()
    async with contextlib.aclosing(events):  # type: ignore[type-var] # a generator
        async for event in events:
            yield event
            if turn.is_over():
                await turn.give_way()
