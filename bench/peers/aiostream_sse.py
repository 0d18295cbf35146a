"""aiostream's `merge` of several generators for each client, through sse-starlette."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiostream import stream
from fastapi import FastAPI
from sse_starlette import EventSourceResponse, ServerSentEvent

from .broadcast import Broadcast
from .shape import Shape
from .starlette_sse import typed


def make_app(shape: Shape) -> FastAPI:
    broadcast = Broadcast(shape)
    app = FastAPI(lifespan=broadcast.running)

    async def shared(channel: int) -> AsyncIterator[ServerSentEvent]:
        async for event in broadcast.listen(channel):
            yield ServerSentEvent(data=event)

    async def merged() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(comment="hello")
        make = typed if shape.kind == "private" else shared
        sources = [make(channel) for channel in range(shape.channels)]
        async with stream.merge(*sources).stream() as streamer:
            async for event in streamer:
                yield event

    @app.get("/sse")
    async def answer() -> EventSourceResponse:
        return EventSourceResponse(merged())

    return app
