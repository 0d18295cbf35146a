"""The aiostream steps of `pipe`: once per run, in order, closing what they wrap."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from eventmux import Event, source
from eventmux.catalog import EnabledSource
from eventmux.operators import Step
from service import Service, enable, serving, serving_file, settings_of

JSON = {"accept": "application/json"}


class Even(Event):
    n: int


class Odd(Event):
    n: int


def numbers_into(closed: threading.Semaphore) -> Any:
    @source
    async def numbers(stop: int = 10) -> AsyncIterator[Even | Odd]:
        try:
            for n in range(stop):
                yield Odd(n=n) if n % 2 else Even(n=n)
                await asyncio.sleep(0)
        finally:
            closed.release()

    return numbers


def piped(source_: Any, *steps: dict[str, Any], shared: bool = False) -> EnabledSource:
    return replace(enable(source_, shared=shared), pipe=[Step.model_validate(step) for step in steps])


def found(service: Service, path: str) -> list[int]:
    return [line["data"]["n"] for line in service.get(path, headers=JSON).json() if "n" in line["data"]]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([{"take": 3}], [0, 1, 2]),
        ([{"skip": 7}], [7, 8, 9]),
        ([{"only": ["odd"]}], [1, 3, 5, 7, 9]),
        ([{"only": ["odd"]}, {"skip": 1}, {"take": 2}], [3, 5]),
        ([{"take": 4}, {"only": ["even"]}], [0, 2]),
        ([{"spaceout": 0.001}, {"timeout": 5}, {"take": 2}], [0, 1]),
    ],
)
def test_steps_work_in_order_and_close_what_they_wrap(steps: list[dict[str, Any]], expected: list[int]) -> None:
    closed = threading.Semaphore(0)
    with serving(settings_of(piped(numbers_into(closed), *steps))) as service:
        assert found(service, "/sse/numbers") == expected
        assert closed.acquire(timeout=5)


@pytest.mark.parametrize("steps", [[{"spaceout": 60}], [{"timeout": 60}], [{"skip": 1}, {"only": ["odd"]}]])
def test_a_pipe_is_closed_when_the_client_goes(steps: list[dict[str, Any]]) -> None:
    closed = threading.Semaphore(0)

    @source
    async def numbers() -> AsyncIterator[Even | Odd]:
        try:
            n = 0
            while True:
                yield Odd(n=n) if n % 2 else Even(n=n)
                n += 1
                await asyncio.sleep(0.001)
        finally:
            await asyncio.sleep(0)
            closed.release()

    with serving(settings_of(piped(numbers, *steps))) as service:
        with service.open("/sse/numbers") as stream:
            stream.take(1)
        assert closed.acquire(timeout=5)


def test_spaceout_keeps_events_apart() -> None:
    closed = threading.Semaphore(0)
    with serving(settings_of(piped(numbers_into(closed), {"spaceout": 0.05}))) as service:
        start = time.monotonic()
        assert found(service, "/sse/numbers?stop=4") == [0, 1, 2, 3]
        assert time.monotonic() - start >= 0.15


def test_timeout_fails_a_silent_source_with_a_message_that_helps() -> None:
    closed = threading.Semaphore(0)

    @source
    async def falls_silent() -> AsyncIterator[Even]:
        try:
            yield Even(n=0)
            await asyncio.Event().wait()
        finally:
            closed.release()

    with (
        serving(settings_of(piped(falls_silent, {"timeout": 0.05}))) as service,
        service.open("/sse/falls-silent") as stream,
    ):
        events = stream.rest()
    assert [event.event for event in events] == ["even", "stream.error", "stream.end"]
    assert events[1].data["message"] == "no event within 0.05 seconds"
    assert events[1].data["retryable"] is True
    assert closed.acquire(timeout=5)


def test_a_failure_passes_through_a_pipe() -> None:
    @source
    async def fails() -> AsyncIterator[Even]:
        yield Even(n=0)
        raise RuntimeError

    steps = ({"timeout": 5}, {"spaceout": 0.001}, {"only": ["even"]}, {"take": 9})
    with serving(settings_of(piped(fails, *steps))) as service, service.open("/sse/fails") as stream:
        assert [event.event for event in stream.rest()] == ["even", "stream.error", "stream.end"]


def test_a_pipe_runs_once_per_run_and_not_per_subscriber() -> None:
    go = threading.Event()

    @source
    async def numbers() -> AsyncIterator[Even]:
        while not go.is_set():
            await asyncio.sleep(0.001)
        for n in range(10):
            yield Even(n=n)

    with serving(settings_of(piped(numbers, {"skip": 2}, {"take": 3}, shared=True))) as service:
        with service.open("/sse/numbers") as one, service.open("/sse/numbers") as two:
            go.set()
            seen = [[event.data["n"] for event in stream.rest()[:-1]] for stream in (one, two)]
    assert seen == [[2, 3, 4], [2, 3, 4]]


def test_scopes_and_variables_hold_across_the_yields_of_a_source_in_a_pipe() -> None:
    """aiostream's timeout runs each step in a task of its own before Python 3.12; the source must not notice."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=-1)

    @source
    async def scoped() -> AsyncIterator[Even]:
        variable.set(7)
        async with asyncio.timeout(0.2):
            for _ in range(3):
                yield Even(n=variable.get())
                await asyncio.sleep(0)
            await asyncio.Event().wait()  # the scope's own time-out must still fire

    with serving(settings_of(piped(scoped, {"timeout": 30}))) as service, service.open("/sse/scoped") as stream:
        events = stream.rest()
    assert [event.data["n"] for event in events[:3]] == [7, 7, 7]
    assert events[3].event == "stream.error"


@pytest.mark.parametrize(
    "step",
    [
        {},
        {"take": 1, "skip": 1},
        {"take": 0},
        {"take": -1},
        {"take": None},
        {"skip": "many"},
        {"only": []},
        {"only": "odd"},
        {"spaceout": 0},
        {"spaceout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": 90_000},
        {"map": 1},
    ],
)
def test_what_is_no_step_is_refused(step: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Step.model_validate(step)


def test_a_pipe_stands_in_plugins_yaml(tmp_path: Path) -> None:
    text = "sources: {counter: {pipe: [{skip: 1}, {take: 2}]}}"
    with serving_file(text, tmp_path) as service:
        lines = service.get("/sse/counter?interval=0", headers=JSON).json()
    assert [line["data"].get("value") for line in lines] == [1, 2, None]
