"""sse-starlette, as its documentation shows it: a generator for each client, and a `ServerSentEvent` for each event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, Query
from sse_starlette import EventSourceResponse, ServerSentEvent

from .broadcast import Broadcast
from .guard import check
from .mark import make_mark
from .shape import Shape

Symbol = Annotated[str, Query(max_length=12)]
Depth = Annotated[int, Query(ge=1, le=100)]
Interval = Annotated[float, Query(gt=0)]


async def typed(channel: int = 0) -> AsyncIterator[ServerSentEvent]:
    """An event with a name and an id in every turn of the loop, as an upstream's socket would give them."""
    number = 0
    while True:
        number += 1
        event = make_mark(number, channel)
        yield ServerSentEvent(data=event.model_dump_json(), event="mark", id=f"{channel}.{number}")
        await asyncio.sleep(0)


def make_app(shape: Shape) -> FastAPI:
    broadcast = Broadcast(shape)
    app = FastAPI(lifespan=broadcast.running)

    async def everything() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(comment="hello")
        async for event in broadcast.listen():
            yield ServerSentEvent(data=event)

    @app.get("/sse")
    async def stream() -> EventSourceResponse:
        return EventSourceResponse(typed() if shape.kind == "private" else everything())

    async def quotes(symbol: str, depth: int, interval: float) -> AsyncIterator[ServerSentEvent]:
        event = make_mark(depth, 0)
        event.src = symbol
        yield ServerSentEvent(data=event.model_dump_json(), event="mark", id="0.1")
        if shape.kind == "quotes-private":
            await asyncio.sleep(interval)
        async for later in broadcast.listen():
            yield ServerSentEvent(data=later)

    @app.get("/sse/quotes", dependencies=[Depends(check)])
    async def quoted(symbol: Symbol, depth: Depth = 5, interval: Interval = 60) -> EventSourceResponse:
        return EventSourceResponse(quotes(symbol, depth, interval))

    return app
