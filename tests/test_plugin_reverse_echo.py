"""reverse-echo: it says what it is told, backwards, and tears no character apart."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from pydantic import ValidationError

from eventmux_plugins import reverse_echo as plugin
from eventmux_plugins.echo import echo
from eventmux_plugins.reverse_echo import reverse_echo

pytestmark = pytest.mark.anyio

READER_CHARACTERS = {
    "letters": ("abc", "cba"),
    "nothing": ("", ""),
    "an accent of its own": ("ne\u0301e", "ee\u0301n"),
    "flags": ("🇩🇪🇫🇷!", "!🇫🇷🇩🇪"),
    "a family and a skin tone": ("a👩‍👩‍👧👋🏽", "👋🏽👩‍👩‍👧a"),
    "Hangul syllables of parts": ("\u1112\u1161\u11ab\u1100", "\u1100\u1112\u1161\u11ab"),
    "a Windows line break": ("a\r\nb", "b\r\na"),
    "a keycap": ("1️⃣2", "21️⃣"),
}


@pytest.mark.parametrize(("message", "reversed_message"), READER_CHARACTERS.values(), ids=READER_CHARACTERS)
async def test_what_a_reader_sees_as_one_character_stays_whole(message, reversed_message):
    [event] = [event async for event in reverse_echo(message=message, count=1)]

    assert reversed_message == event.message


async def test_it_says_the_message_count_times():
    events = [event async for event in reverse_echo(message="hi", interval=0, count=3)]

    assert ["ih", "ih", "ih"] == [event.message for event in events]


async def test_without_a_count_it_goes_on_and_the_first_event_comes_at_once():
    async with aclosing(reverse_echo(message="hi", interval=3600)) as events, asyncio.timeout(1):
        await anext(events)
    async with aclosing(reverse_echo(message="hi", interval=0)) as events:
        for _ in range(100):
            await anext(events)


async def test_the_longest_message_is_reversed_in_no_time():
    loop = asyncio.get_running_loop()
    before = loop.time()
    [event] = [event async for event in reverse_echo(message="👩‍👩‍👧x" * 1600, count=1)]

    assert event.message.startswith("x👩‍👩‍👧")
    assert loop.time() - before < 0.2


def test_it_takes_the_parameters_of_echo():
    expected, actual = (source.parameters.model_json_schema()["properties"] for source in (echo, reverse_echo))

    assert expected == actual
    with pytest.raises(ValidationError, match="message"):
        reverse_echo.parameters.model_validate({"message": "x" * 10_001})


def test_it_is_private_and_its_event_is_named_reverse_echo():
    assert ("reverse-echo", False) == (reverse_echo.name, reverse_echo.policy.shared)
    assert ["reverse_echo"] == list(reverse_echo.events.values())


def test_its_module_offers_no_source_but_its_own():
    assert [reverse_echo] == [value for value in vars(plugin).values() if isinstance(value, type(reverse_echo))]
