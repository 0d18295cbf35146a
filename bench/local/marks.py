"""Sources for the benchmark: every event has a mark, '@' and the monotonic time, by which the load client counts it."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import Field

from eventmux import Event, source

PAD = "0" * 56  # makes the JSON 120 bytes long

Symbol = Annotated[str, Field(max_length=12)]
Depth = Annotated[int, Field(ge=1, le=100)]
Interval = Annotated[float, Field(gt=0)]


class Mark(Event):
    t: str
    seq: int
    src: str
    value: str


def make_mark(number: int, name: str = "s00") -> Mark:
    return Mark(t=f"@{time.monotonic_ns():019d}", seq=1_000_000 + number, src=name, value=PAD)


@source(shared=True)
async def marks(
    rate: Annotated[float, Field(ge=0)] = 10.0,
    burst: Annotated[int, Field(ge=1)] = 1,
    phase: Annotated[float, Field(ge=0, le=1)] = 0.0,
) -> AsyncIterator[Mark]:
    """`burst` events at once, `rate` times a second; with rate 0 in every turn of the loop.

    `phase`: by which part of the pause between two events these are later than another source's, so that the events of
    several sources do not come all at once, which is cheaper to deliver than what happens in life.
    """
    number = 0
    if rate == 0:
        while True:
            for _ in range(burst):
                number += 1
                yield make_mark(number)
            await asyncio.sleep(0)
    pause = 1 / rate
    due = (time.monotonic() // pause + 1 + phase) * pause
    while True:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        for _ in range(burst):
            number += 1
            yield make_mark(number)
        due += pause


@source
async def tokens(rate: Annotated[float, Field(ge=0)] = 0.0) -> AsyncIterator[Mark]:
    """`rate` events a second; with rate 0 one in every turn of the loop, as an upstream's socket would give them."""
    number = 0
    due = time.monotonic()
    while True:
        number += 1
        yield make_mark(number)
        due += 1 / rate if rate else 0.0
        await asyncio.sleep(max(0.0, due - time.monotonic()) if rate else 0)


@source(shared=True)
async def quotes(symbol: Symbol, depth: Depth = 5, interval: Interval = 60.0) -> AsyncIterator[Mark]:
    """One event at once, and then one every `interval` seconds."""
    while True:
        yield make_mark(depth, symbol)
        await asyncio.sleep(interval)


@source
async def quote(symbol: Symbol, depth: Depth = 5, interval: Interval = 60.0) -> AsyncIterator[Mark]:
    """The same, for each client its own."""
    while True:
        yield make_mark(depth, symbol)
        await asyncio.sleep(interval)
