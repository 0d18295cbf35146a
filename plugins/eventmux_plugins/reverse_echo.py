"""reverse-echo: says what it is told, backwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import regex  # type: ignore[import-untyped] # it has no stubs

from eventmux import Event, source
from eventmux_plugins.echo import Message
from eventmux_plugins.pace import Interval, Times, turns


class ReverseEcho(Event):
    message: str
    created_at: datetime


def backwards(text: str) -> str:
    """`text` from its end, by what a reader sees as one character: an accent stays on its letter."""
    return "".join(reversed(regex.findall(r"\X", text)))  # \X is a grapheme cluster of Unicode's UAX 29


@source
async def reverse_echo(
    message: Message, interval: Interval = 1.0, count: Times | None = None
) -> AsyncIterator[ReverseEcho]:
    """`message` reversed, every `interval` seconds, `count` times or without end."""
    reply = backwards(message)
    for turn in turns(count):
        if turn:
            await asyncio.sleep(interval)
        yield ReverseEcho(message=reply, created_at=datetime.now(UTC))
