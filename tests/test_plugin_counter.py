"""counter: what it counts, and what it refuses to count."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest
from pydantic import ValidationError

from eventmux_plugins.counter import EXACT, counter

pytestmark = pytest.mark.anyio


async def values(**parameters: object) -> list[int]:
    validated = counter.parameters.model_validate({"interval": 0, **parameters})
    return [event.value async for event in counter(**dict(validated))]


async def test_it_counts_from_start_up_to_and_including_stop():
    assert [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] == await values(start=0, stop=9)


async def test_a_step_that_does_not_meet_stop_ends_before_it():
    assert [0, 4, 8] == await values(step=4, stop=9)


async def test_a_negative_step_counts_down_to_and_including_stop():
    assert [3, 1, -1, -3] == await values(start=3, step=-2, stop=-3)


async def test_a_start_that_is_the_stop_is_one_event():
    assert [5] == await values(start=5, stop=5)
    assert [5] == await values(start=5, stop=5, step=-1)


async def test_a_stop_that_is_passed_already_is_no_event():
    assert [] == await values(start=5, stop=4)


async def test_without_stop_it_ends_at_the_last_integer_that_a_browser_keeps():
    assert [EXACT - 1, EXACT] == await values(start=EXACT - 1)
    assert [1 - EXACT, -EXACT] == await values(start=1 - EXACT, step=-1)


async def test_the_first_event_comes_at_once():
    async with aclosing(counter(interval=3600)) as events, asyncio.timeout(1):
        assert 0 == (await anext(events)).value


async def test_it_sleeps_the_interval_between_events():
    loop = asyncio.get_running_loop()
    times = [loop.time() async for _ in counter(stop=2, interval=0.02)]

    assert all(later - earlier >= 0.019 for earlier, later in pairwise(times))


async def test_without_an_interval_others_still_get_their_turn():
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async with aclosing(counter(interval=0)) as events:
        async for event in events:
            if event.value == 100:
                break
    task.cancel()

    assert turns >= 100


def test_a_step_of_zero_is_refused_with_the_remedy():
    with pytest.raises(ValidationError, match="a step of 0 would never move: use 1 to count up, -1 to count down"):
        counter.parameters.model_validate({"step": 0})


@pytest.mark.parametrize("interval", [-0.1, "inf", "nan", float("inf"), float("nan"), 86_401])
def test_an_interval_that_is_no_pause_is_refused(interval):
    with pytest.raises(ValidationError, match="interval"):
        counter.parameters.model_validate({"interval": interval})


@pytest.mark.parametrize("name", ["start", "step", "stop"])
@pytest.mark.parametrize("value", [EXACT + 1, -EXACT - 1, 1.5, "1e400"])
def test_a_number_that_a_browser_would_round_is_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        counter.parameters.model_validate({name: value})


def test_it_is_private_and_its_event_is_named_count():
    assert not counter.policy.shared
    assert ["count"] == list(counter.events.values())


async def test_the_event_is_its_value():
    async with aclosing(counter(start=7)) as events:
        assert '{"value":7}' == (await anext(events)).model_dump_json()
