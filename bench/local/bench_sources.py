"""Sources for the measurements: numbered events, by which a client can tell a hole, and what the service holds."""

import asyncio
import ctypes
import gc
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import Field

from eventmux import Context, Event, SourceError, source

Rate = Annotated[float, Field(gt=0, le=100_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Size = Annotated[int, Field(ge=0, le=100_000)]

TICK = 0.005  # seconds; what falls into one is yielded together
COUNTED = ("Subscription", "Run", "Channel", "Frame", "RequestResponseCycle")  # classes whose objects must not pile up


class Item(Event):
    """`log`: the log that `n` counts in, from 1; a run that continues a log goes on counting. `by`: which run of which
    process has made it; `made`: when, by a clock that all processes of a machine have.
    """

    source: str
    log: str
    n: int
    by: str = ""
    made: float = 0.0
    pad: str = ""


class Third(Item):
    """Every third one has another name, for clients that filter."""


class Held(Event):
    """What the process holds. `history`: bytes of all histories, as the service itself accounts them."""

    tasks: int
    objects: int
    history: int
    counts: dict[str, int]


class Numbers:
    """Numbers the events of one log: goes on where the run before has ended."""

    def __init__(self, ctx: Context, size: int) -> None:
        last = ctx.last
        self._source, self._pad = ctx.source, "x" * size
        self._log, self._n = (last.log, last.n) if isinstance(last, Item) else (secrets.token_hex(4), 0)
        self._by = f"{os.getpid()}.{secrets.token_hex(3)}"

    def next(self) -> Item | Third:
        self._n += 1
        kind = Item if self._n % 3 else Third
        return kind(source=self._source, log=self._log, n=self._n, by=self._by, made=time.monotonic(), pad=self._pad)


async def _paced(numbers: Numbers, rate: float, count: int | None = None) -> AsyncIterator[Item | Third]:
    """`rate` events a second on average; what the loop was too late for is made up."""
    loop = asyncio.get_running_loop()
    begin, done = loop.time(), 0
    while count is None or done < count:
        while done < (loop.time() - begin) * rate and (count is None or done < count):
            done += 1
            yield numbers.next()
        await asyncio.sleep(max(TICK, begin + done / rate - loop.time()))


@source(shared=True)
async def steady(ctx: Context, rate: Rate = 50, size: Size = 100) -> AsyncIterator[Item | Third]:
    """`rate` events a second, for ever."""
    async for event in _paced(Numbers(ctx, size), rate):
        yield event


@source(shared=True)
async def bursty(ctx: Context, every: Rate = 2, count: Count = 200, size: Size = 100) -> AsyncIterator[Item | Third]:
    """`count` events at once, every `every` seconds."""
    numbers = Numbers(ctx, size)
    while True:
        for _ in range(count):
            yield numbers.next()
        await asyncio.sleep(every)


@source(shared=True)
async def failing(ctx: Context, rate: Rate = 20, count: Count = 40) -> AsyncIterator[Item | Third]:
    """Fails after every `count` events."""
    async for event in _paced(Numbers(ctx, 0), rate, count):
        yield event
    raise SourceError("this is what it does", retryable=True)


@source(shared=True)
async def quiet() -> AsyncIterator[Item]:
    """Never says anything."""
    await asyncio.Event().wait()
    yield Item(source="quiet", log="", n=0)


@source
async def answer(ctx: Context, rate: Rate = 40, count: Count = 200) -> AsyncIterator[Item | Third]:
    """`count` events, like an answer that is being written."""
    async for event in _paced(Numbers(ctx, 20), rate, count):
        yield event


@source(once=True)
async def paid(ctx: Context, rate: Rate = 40, count: Count = 200) -> AsyncIterator[Item | Third]:
    """An answer that is not bought again."""
    async for event in _paced(Numbers(ctx, 20), rate, count):
        yield event


@source
async def flood(ctx: Context, count: Count = 3_000) -> AsyncIterator[Item | Third]:
    """`count` events without an await: only back-pressure slows it."""
    numbers = Numbers(ctx, 100)
    for _ in range(count):
        yield numbers.next()


@source
async def endless(ctx: Context, rate: Rate = 10) -> AsyncIterator[Item | Third]:
    """A private run that never ends by itself."""
    async for event in _paced(Numbers(ctx, 50), rate):
        yield event


@source(linger=0)
async def held(*, trim: bool = False) -> AsyncIterator[Held]:
    """What the process holds now. `trim`: after what Python and the C library have kept for later is given back."""
    if trim:
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
    objects = gc.get_objects()
    kinds = Counter(type(one).__name__ for one in objects)
    yield Held(
        tasks=len(asyncio.all_tasks()),
        objects=len(objects),
        history=sum(one.bytes for one in objects if type(one).__name__ == "Ledger"),
        counts={name: kinds[name] for name in COUNTED},
    )
