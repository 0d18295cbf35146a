"""echo: says what it is told, at a steady pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from eventmux import Event, source
from eventmux_plugins.pace import Interval, Times, turns

Message = Annotated[str, Field(max_length=10_000)]


class Echo(Event):
    message: str
    created_at: datetime


@source
async def echo(message: Message, interval: Interval = 1.0, count: Times | None = None) -> AsyncIterator[Echo]:
    """`message`, every `interval` seconds, `count` times or without end."""
    for turn in turns(count):
        if turn:
            await asyncio.sleep(interval)
        yield Echo(message=message, created_at=datetime.now(UTC))
