"""counter: whole numbers at a steady pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import AfterValidator, Field

from eventmux import Event, source
from eventmux_plugins.pace import Interval

EXACT = 2**53 - 1  # the last integer that a browser's JSON.parse keeps exactly


class Count(Event):
    value: int


def not_zero(step: int) -> int:
    if step == 0:
        raise ValueError("a step of 0 would never move: use 1 to count up, -1 to count down")
    return step


Number = Annotated[int, Field(ge=-EXACT, le=EXACT)]


@source
async def counter(
    start: Number = 0,
    step: Annotated[Number, AfterValidator(not_zero)] = 1,
    stop: Number | None = None,
    interval: Interval = 1.0,
) -> AsyncIterator[Count]:
    """`start`, `start + step`, ... up to and including `stop`, one every `interval` seconds.

    A negative `step` counts down. A `stop` that lies behind `start` is passed already: there are no events.
    """
    direction = 1 if step > 0 else -1
    last = direction * EXACT if stop is None else stop
    for turn, value in enumerate(range(start, last + direction, step)):
        if turn:
            await asyncio.sleep(interval)
        yield Count(value=value)
