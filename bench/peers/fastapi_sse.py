"""FastAPI's own Server-Sent Events: a path operation that yields."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

from .broadcast import Broadcast
from .mark import make_mark
from .shape import Shape


def make_app(shape: Shape) -> FastAPI:
    broadcast = Broadcast(shape)
    app = FastAPI(lifespan=broadcast.running)

    async def shared() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(comment="hello")
        async for event in broadcast.listen():
            yield ServerSentEvent(raw_data=event)  # JSON already: FastAPI is spared that

    async def private() -> AsyncIterator[ServerSentEvent]:
        number = 0
        while True:
            number += 1
            yield ServerSentEvent(data=make_mark(number, 0), event="mark", id=f"0.{number}")
            await asyncio.sleep(0)

    app.get("/sse", response_class=EventSourceResponse)(private if shape.kind == "private" else shared)
    return app
