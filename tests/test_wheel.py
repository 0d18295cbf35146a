"""One timer for all: who is rung, when, and what is left of those who are not."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import tracemalloc
import weakref
from collections.abc import Callable

import pytest
import uvloop

import virtual_time
from eventmux.web.wheel import TURN_SECONDS, Wheel
from virtual_time import Turns, loop

RESOLUTION = 0.25


class Bell:
    """Notes when it was rung. `then`: what ringing it does, and when it is the next time."""

    def __init__(self, rung: list[Bell], then: Callable[[float], float | None] = lambda _: None) -> None:
        self.tick = 0
        self.times: list[float] = []
        self._rung = rung
        self._then = then

    def ring(self, now: float) -> float | None:
        self.times.append(now)
        self._rung.append(self)
        return self._then(now)


def test_everyone_is_rung_once_at_its_time_or_up_to_a_resolution_later_and_earlier_ones_first() -> None:
    async def main() -> None:
        wheel, rung, chance = Wheel(RESOLUTION), [], random.Random(1)
        start = loop().time()
        whens = {Bell(rung): start + chance.uniform(0, 60) for _ in range(2_000)}
        for bell, when in whens.items():
            wheel.add(bell, when)
        await asyncio.sleep(61)
        assert len(rung) == len(whens)
        for bell, when in whens.items():
            (at,) = bell.times
            assert when <= at <= when + RESOLUTION
        ticks = [bell.times[0] for bell in rung]
        assert ticks == sorted(ticks)
        for one, other in itertools.pairwise(rung):
            assert whens[one] < whens[other] + RESOLUTION

    virtual_time.run(main())


def test_one_added_later_for_an_earlier_time_is_rung_first() -> None:
    async def main() -> None:
        wheel, rung = Wheel(RESOLUTION), []
        late, early = Bell(rung), Bell(rung)
        wheel.add(late, loop().time() + 10)
        await asyncio.sleep(1)
        wheel.add(early, loop().time() + 1)
        await asyncio.sleep(2)
        assert rung == [early]
        await asyncio.sleep(9)
        assert rung == [early, late]

    virtual_time.run(main())


def test_after_a_time_in_which_the_loop_stood_still_earlier_ones_are_rung_first_all_the_same() -> None:
    async def main() -> None:
        wheel, rung = Wheel(RESOLUTION), []
        bells = [Bell(rung) for _ in range(10)]
        for number, bell in enumerate(bells):
            wheel.add(bell, loop().time() + 10 - number)
        loop().now += 20
        await asyncio.sleep(1)
        assert rung == bells[::-1]

    virtual_time.run(main())


def test_who_says_a_next_time_is_rung_then_and_who_says_none_never_again() -> None:
    async def main() -> None:
        wheel, rung = Wheel(RESOLUTION), []
        again, once = Bell(rung, lambda now: now + 5), Bell(rung)
        wheel.add(again, loop().time() + 5)
        wheel.add(once, loop().time() + 5)
        await asyncio.sleep(60)
        assert len(once.times) == 1
        assert len(again.times) >= 60 // (5 + RESOLUTION)
        for before, after in itertools.pairwise(again.times):
            assert before + 5 <= after <= before + 5 + RESOLUTION

    virtual_time.run(main())


def test_a_time_that_is_over_is_rung_in_a_later_turn_and_within_the_resolution() -> None:
    async def main() -> None:
        wheel, rung = Wheel(RESOLUTION), []
        start = loop().time()
        bell = Bell(rung)
        wheel.add(bell, start)
        assert rung == []
        await asyncio.sleep(RESOLUTION)
        assert [start <= at <= start + RESOLUTION for at in bell.times] == [True]

    virtual_time.run(main())


def test_nobody_is_rung_after_it_was_discarded() -> None:
    async def main() -> None:
        wheel, rung = Wheel(RESOLUTION), []
        bells = [Bell(rung) for _ in range(100)]
        for bell in bells:
            wheel.add(bell, loop().time() + 1)
        for bell in bells[::2]:
            wheel.discard(bell)
        for bell in bells[::4]:
            wheel.discard(bell)  # a second time
        await asyncio.sleep(2)
        assert rung == bells[1::2]

    virtual_time.run(main())


def test_one_that_another_discards_while_both_are_due_is_not_rung() -> None:
    async def main() -> None:
        wheel: Wheel = Wheel(RESOLUTION)
        rung: list[Bell] = []
        victim = Bell(rung)
        wheel.add(Bell(rung, lambda _: wheel.discard(victim)), loop().time() + 1)
        wheel.add(victim, loop().time() + 1)
        await asyncio.sleep(2)
        assert len(rung) == 1
        assert victim.times == []

    virtual_time.run(main())


def test_one_that_is_discarded_while_it_is_rung_is_not_rung_again_whatever_it_says() -> None:
    """A stream that ends in its own heartbeat would stay for ever."""

    async def main() -> None:
        wheel: Wheel = Wheel(RESOLUTION)
        rung: list[Bell] = []

        def leaves(now: float) -> float:
            wheel.discard(bell)
            return now + 1

        bell = Bell(rung, leaves)
        wheel.add(bell, loop().time() + 1)
        await asyncio.sleep(10)
        assert len(rung) == 1

    virtual_time.run(main())


def test_thousands_that_are_due_at_one_time_leave_turns_to_others() -> None:
    cost = 0.000_02

    async def main() -> None:
        wheel: Wheel = Wheel(RESOLUTION)
        rung: list[Bell] = []

        def takes_time(now: float) -> None:
            loop().now += cost

        when = loop().time() + 1
        bells = [Bell(rung, takes_time) for _ in range(5_000)]
        for bell in bells:
            wheel.add(bell, when)
        newcomer = Bell(rung)
        await asyncio.sleep(when + RESOLUTION - loop().time())
        turns = Turns()
        while len(rung) < 2_500:
            await asyncio.sleep(0)
        wheel.add(newcomer, loop().time())  # while others are still due
        wheel.discard(bells[-1])
        while len(rung) < 4_999:
            await asyncio.sleep(0)
        turns.stop()
        await asyncio.sleep(1)
        assert turns.count >= 5_000 * cost / TURN_SECONDS - 3  # there were some before, and there was one between
        assert turns.longest <= 2 * TURN_SECONDS
        assert [bell for bell in rung if bell is not newcomer] == bells[:-1]
        assert len(newcomer.times) == 1

    virtual_time.run(main())


def test_discarding_many_leaves_nothing_behind() -> None:
    async def main() -> None:
        wheel = Wheel(RESOLUTION)

        def round_of(count: int) -> list[weakref.ref[Bell]]:
            bells = [Bell([]) for _ in range(count)]
            for number, bell in enumerate(bells):
                wheel.add(bell, loop().time() + 15 + number % 10)
            for bell in bells:
                wheel.discard(bell)
            return [weakref.ref(bell) for bell in bells]

        assert all(ref() is None for ref in round_of(10_000))
        await asyncio.sleep(30)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(10):
                round_of(2_000)
                await asyncio.sleep(30)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before < 20_000
        finally:
            tracemalloc.stop()
        assert wheel._ticks == {}

    virtual_time.run(main())


@pytest.mark.parametrize("is_ringing", [False, True])
def test_after_its_stop_nobody_is_rung_and_no_timer_is_left(is_ringing: bool) -> None:
    async def main() -> None:
        wheel, rung = Wheel(RESOLUTION), []

        def takes_time(now: float) -> None:
            loop().now += 1

        for _ in range(10):
            wheel.add(Bell(rung, takes_time), loop().time() + 1)
        if is_ringing:
            while not rung:
                await asyncio.sleep(0.01)
        wheel.stop()
        before = len(rung)
        assert before < 10
        assert [timer for timer in loop()._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]
        await asyncio.sleep(10)
        assert len(rung) == before

    virtual_time.run(main())


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_on_a_real_loop_it_is_the_same(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        wheel, rung = Wheel(0.01), []
        real = asyncio.get_running_loop()
        start = real.time()
        whens = {Bell(rung): start + number / 1_000 for number in range(300)}
        for bell, when in whens.items():
            wheel.add(bell, when)
        gone = [Bell(rung) for _ in range(10)]
        for bell in gone:
            wheel.add(bell, start + 0.1)
            wheel.discard(bell)
        async with asyncio.timeout(10):
            while len(rung) < len(whens):
                await asyncio.sleep(0.01)
        assert all(len(bell.times) == 1 and bell.times[0] >= when for bell, when in whens.items())
        assert not set(gone) & set(rung)
        wheel.stop()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
