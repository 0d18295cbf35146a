"""Why streams are not merged by aiostream (docs/decisions/0002): what its merge does, and what ours does instead."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from aiostream import stream

from eventmux import Event, source
from service import serving, settings_of

MANY = 2_000


class Eager(Event):
    number: int


class Patient(Event):
    number: int


@source
async def eager() -> AsyncIterator[Eager]:
    """Always ready: it never waits."""
    for number in range(10 * MANY):
        yield Eager(number=number)


@source
async def patient() -> AsyncIterator[Patient]:
    """Always ready too, but it lets the loop turn, as one that reads from a socket does."""
    for number in range(10 * MANY):
        await asyncio.sleep(0)
        yield Patient(number=number)


@source
async def failing() -> AsyncIterator[Eager]:
    yield Eager(number=0)
    raise RuntimeError("broken")


@pytest.mark.anyio
async def test_aiostream_merge_starves_whatever_stands_behind_a_source_that_is_always_ready() -> None:
    async with stream.take(stream.merge(eager(), patient()), MANY).stream() as merged:
        counted = Counter([type(event) async for event in merged])
    assert counted == {Eager: MANY}


@pytest.mark.anyio
async def test_aiostream_merge_serves_two_sources_that_are_both_ready_one_after_the_other() -> None:
    async def backlog(label: str) -> AsyncIterator[str]:
        for _ in range(5):
            await asyncio.sleep(0)
            yield label

    async with stream.merge(backlog("a"), backlog("b")).stream() as merged:
        served = "".join([label async for label in merged])
    assert served.startswith("aaaa")


@pytest.mark.anyio
async def test_aiostream_merge_ends_every_source_when_one_fails() -> None:
    flowing = asyncio.Event()
    closed = []

    async def fails() -> AsyncIterator[str]:
        await flowing.wait()
        raise RuntimeError("broken")
        yield

    async def healthy() -> AsyncIterator[str]:
        try:
            while True:
                await asyncio.sleep(0)
                yield "event"
                flowing.set()
        finally:
            closed.append("healthy")

    with pytest.raises(RuntimeError, match="broken"):
        async with stream.merge(fails(), healthy()).stream() as merged:
            async for _ in merged:
                pass
    assert closed == ["healthy"]


@pytest.mark.parametrize("order", ["eager,patient", "patient,eager"])
def test_our_merge_serves_every_source_that_is_ready_in_any_order(order: str) -> None:
    with serving(settings_of(eager, patient)) as service, service.open(f"/sse?sources={order}") as stream:
        counted = Counter(event.event for event in stream.take(MANY))
    assert counted["eager"] > 0
    assert counted["patient"] > MANY / 100


def test_our_merge_keeps_the_order_of_each_source() -> None:
    with serving(settings_of(eager, patient)) as service, service.open("/sse?sources=eager,patient") as stream:
        events = stream.take(MANY)
    for name in ("eager", "patient"):
        numbers = [event.data["number"] for event in events if event.event == name]
        assert numbers == list(range(len(numbers)))


def test_our_merge_goes_on_when_one_source_fails() -> None:
    with serving(settings_of(failing, patient)) as service, service.open("/sse?sources=failing,patient") as stream:
        events = stream.take(MANY)
    said = {event.event: event.data for event in events if event.event.startswith("stream.")}
    assert said["stream.error"]["source"] == "failing"
    assert said["stream.end"] == {"source": "failing", "reason": "failed"}
    assert events[-1].event == "patient"
