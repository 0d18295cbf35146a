"""Sources of a service that asks who comes, and what a client brings to it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import httpx2

from service import Service, serving_file

LOCAL = """
import asyncio
from collections.abc import AsyncIterator
from eventmux import Context, Event, source

class Tick(Event):
    n: int

class Mine(Event):
    n: int
    principal: str | None

async def ticks():
    n = 0
    while True:
        n += 1
        yield Tick(n=n)
        await asyncio.sleep(0.01)

@source(shared=True)
async def open_clock() -> AsyncIterator[Tick]:
    async for tick in ticks():
        yield tick

@source(shared=True)
async def price_gold(karat: int = 24) -> AsyncIterator[Tick]:
    async for tick in ticks():
        yield tick

@source(shared=True)
async def secret() -> AsyncIterator[Tick]:
    async for tick in ticks():
        yield tick

@source
async def mine(ctx: Context) -> AsyncIterator[Mine]:
    async for tick in ticks():
        yield Mine(n=tick.n, principal=ctx.principal)
"""


def serving(config: str, path: Path, local: str = LOCAL) -> AbstractContextManager[Service]:
    (path / "local").mkdir()
    (path / "local" / "own.py").write_text(local, "utf-8")
    return serving_file(config, path)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def cookie(token: str) -> dict[str, str]:
    return {"Cookie": f"a=b; eventmux_token={token}"}


DASH, OTHER = bearer("dash-token"), bearer("other-token")


def challenge(answer: httpx2.Response) -> str:
    return str(answer.headers["www-authenticate"])
