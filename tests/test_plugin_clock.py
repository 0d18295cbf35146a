"""clock: on the beat, in the zone, whatever happens to the wall clock. Times here are nanoseconds."""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eventmux_plugins.clock import SECOND, clock, next_beat

pytestmark = pytest.mark.anyio

NOON = 1_763_640_000 * SECOND


class Clocks:
    """A wall clock that moves by sleeping only. `jumps`: what happens to it in the n-th sleep."""

    def __init__(self, now: int, *, jumps: dict[int, int] | None = None, late: int = 0) -> None:
        self.now = now
        self.jumps = jumps or {}
        self.late = late
        self.slept: list[float] = []

    def wall(self) -> int:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += round(seconds * SECOND) + self.late + self.jumps.get(len(self.slept), 0)
        self.slept.append(seconds)

    async def beats(self, step: int, count: int) -> list[int]:
        beats = [self.now]
        for _ in range(count):
            beats.append(await next_beat(beats[-1], step, wall=self.wall, sleep=self.sleep))
        return beats[1:]


async def test_it_ticks_on_multiples_of_the_interval():
    clocks = Clocks(NOON + SECOND // 3)

    assert [NOON + SECOND, NOON + 2 * SECOND, NOON + 3 * SECOND] == await clocks.beats(SECOND, 3)


async def test_being_late_does_not_add_up():
    clocks = Clocks(NOON, late=SECOND // 100)
    beats = await clocks.beats(SECOND // 10, 50)

    assert [NOON + SECOND // 10 * turn + SECOND // 100 for turn in range(1, 51)] == beats


async def test_waking_too_early_is_no_tick():
    clocks = Clocks(NOON, jumps={0: -3_000_000})

    assert [NOON + SECOND] == await clocks.beats(SECOND, 1)
    assert [1.0, 0.003] == clocks.slept


async def test_beats_that_nobody_had_time_for_are_skipped():
    clocks = Clocks(NOON)
    [first] = await clocks.beats(SECOND, 1)
    clocks.now += 5 * SECOND + SECOND // 2
    late = await next_beat(first, SECOND, wall=clocks.wall, sleep=clocks.sleep)

    assert NOON + 6 * SECOND + SECOND // 2 == late
    assert NOON + 7 * SECOND == await next_beat(late, SECOND, wall=clocks.wall, sleep=clocks.sleep)


@pytest.mark.parametrize("step", [SECOND // 10, SECOND, 10 * SECOND])
@pytest.mark.parametrize("share", [0.001, 0.5, 1])
async def test_a_wall_clock_set_back_by_up_to_a_beat_repeats_no_beat(step, share):
    clocks = Clocks(NOON)
    beats = await clocks.beats(step, 3)
    clocks.now -= round(share * step)
    beats.append(await next_beat(beats[-1], step, wall=clocks.wall, sleep=clocks.sleep))

    assert [NOON + turn * step for turn in (1, 2, 3, 4)] == beats


async def test_a_wall_clock_set_back_by_hours_goes_on_within_three_beats_and_busies_nobody():
    clocks = Clocks(NOON + SECOND // 2, jumps={0: -3 * 3600 * SECOND})
    beats = await clocks.beats(SECOND, 3)

    back = NOON - 3 * 3600 * SECOND
    assert [back + 2 * SECOND, back + 3 * SECOND, back + 4 * SECOND] == beats
    assert sum(clocks.slept) <= 5
    assert len(clocks.slept) <= 5


async def test_a_wall_clock_set_forward_is_noticed_within_a_second():
    hour = 3600 * SECOND
    clocks = Clocks(NOON, jumps={2: 2 * hour})
    [beat] = await clocks.beats(hour, 1)

    assert NOON + 2 * hour + 3 * SECOND == beat
    assert sum(clocks.slept) == 3


async def test_it_gives_way_even_when_it_is_always_late():
    clocks = Clocks(NOON)
    clocks.now += 10 * SECOND
    await next_beat(NOON, SECOND, wall=clocks.wall, sleep=clocks.sleep)

    assert [0] == clocks.slept


@given(
    step=st.integers(SECOND // 100, 10 * SECOND),
    sleeps=st.lists(st.integers(-30 * SECOND, 30 * SECOND), max_size=8),
    start=st.integers(0, 2 * NOON),
)
async def test_no_jump_of_the_wall_clock_makes_two_ticks_without_a_pause_or_a_long_silence(step, sleeps, start):
    clocks = Clocks(start + 3600 * SECOND, jumps=dict(enumerate(sleeps)))
    after = clocks.now
    for _ in range(12):
        quiet = len(clocks.slept)
        beat = await next_beat(after, step, wall=clocks.wall, sleep=clocks.sleep)
        undisturbed = quiet >= len(sleeps)
        if undisturbed:
            assert sum(clocks.slept[quiet:]) <= 2 * step / SECOND + 1e-6
            assert beat // step > after // step
        after = beat


async def test_the_real_clock_ticks_on_the_beat_and_never_early():
    async with aclosing(clock(interval=0.02)) as ticks:
        times = [(await anext(ticks)).now for _ in range(5)]

    beats = [round(now.timestamp() * 1e6) // 20_000 for now in times]
    assert sorted(set(beats)) == beats
    assert abs(times[-1].timestamp() - time.time()) < 1


async def test_a_tick_carries_the_offset_of_its_zone():
    async with aclosing(clock(interval=0.01, timezone="Asia/Kathmandu")) as ticks:
        tick = await anext(ticks)

    sent = datetime.fromisoformat(json.loads(tick.model_dump_json())["now"])
    assert (tick.now, timedelta(hours=5, minutes=45)) == (sent, sent.utcoffset())


ODD = ["Nope/Nope", "", ".", "../x", "a/../UTC", "/etc/passwd", "Europe", "Europe/", "europe/berlin", "UTC\n", "UTC\0"]
ODD += ["zone.tab", "__init__.py", "right/UTC", "é", " ", "x" * 100_000]


@pytest.mark.parametrize("name", ODD, ids=lambda name: repr(name[:20]))
def test_an_unknown_time_zone_is_refused_with_the_remedy(name):
    with pytest.raises(ValidationError) as refused:
        clock.parameters.model_validate({"timezone": name})

    [error] = refused.value.errors()
    assert ("timezone",) == error["loc"]
    assert error["msg"].startswith("Value error, unknown time zone '")
    assert error["msg"].endswith("': use an IANA name like Europe/Berlin")
    assert len(error["msg"]) < 400


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"])
def test_an_iana_name_is_accepted(name):
    assert name == clock.parameters.model_validate({"timezone": name}).timezone


@pytest.mark.parametrize("interval", [0, -1, 0.009, "inf", "nan", 86_401])
def test_an_interval_that_is_no_beat_is_refused(interval):
    with pytest.raises(ValidationError, match="interval"):
        clock.parameters.model_validate({"interval": interval})


def test_it_is_shared_and_its_event_is_named_tick():
    assert clock.policy.shared
    assert ["tick"] == list(clock.events.values())
