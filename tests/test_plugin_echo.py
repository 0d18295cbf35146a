"""echo: it says what it is told, as often as it is told."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from eventmux_plugins.echo import echo

pytestmark = pytest.mark.anyio


async def test_it_says_the_message_count_times():
    events = [event async for event in echo(message="hi", interval=0, count=3)]

    assert ["hi", "hi", "hi"] == [event.message for event in events]


async def test_without_a_count_it_goes_on():
    async with aclosing(echo(message="hi", interval=0)) as events:
        for _ in range(100):
            assert "hi" == (await anext(events)).message


async def test_the_first_event_comes_at_once():
    async with aclosing(echo(message="hi", interval=3600)) as events, asyncio.timeout(1):
        await anext(events)


async def test_after_its_last_event_it_does_not_sleep():
    async with asyncio.timeout(1):
        assert 1 == len([event async for event in echo(message="hi", interval=3600, count=1)])


async def test_created_at_is_the_moment_in_utc_and_iso_in_json():
    before = datetime.now(UTC)
    [event] = [event async for event in echo(message="hi", count=1)]

    assert before <= event.created_at <= datetime.now(UTC)
    sent = datetime.fromisoformat(json.loads(event.model_dump_json())["created_at"])
    assert (event.created_at, timedelta(0)) == (sent, sent.utcoffset())


async def test_line_breaks_and_any_script_come_back_as_they_went_in():
    message = 'a\r\nb\0c\u2028"d" 🇩🇪 नमस्ते'
    [event] = [event async for event in echo(message=message, count=1)]

    assert message == json.loads(event.model_dump_json())["message"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("message", {}),
        ("message", {"message": "x" * 10_001}),
        ("count", {"message": "hi", "count": 0}),
        ("interval", {"message": "hi", "interval": -1}),
        ("interval", {"message": "hi", "interval": "inf"}),
        ("interval", {"message": "hi", "interval": "nan"}),
    ],
)
def test_what_cannot_be_echoed_is_refused(name, parameters):
    with pytest.raises(ValidationError, match=name):
        echo.parameters.model_validate(parameters)


def test_the_longest_message_is_accepted():
    assert "x" * 10_000 == echo.parameters.model_validate({"message": "x" * 10_000}).message


def test_it_is_private_and_its_event_is_named_echo():
    assert not echo.policy.shared
    assert ["echo"] == list(echo.events.values())
