"""What a source does is its own affair: failing, ending, hanging, never awaiting. On a real server."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel
from sse_starlette import ServerSentEvent

from eventmux import Context, Event, EventOf, SourceError, source
from eventmux import run as run_module
from service import serving, settings_of


class Note(Event):
    text: str = ""
    number: int = 0


class Other(Event):
    text: str = ""


@source
async def ticker(interval: float = 0.005) -> AsyncIterator[Other]:
    while True:
        yield Other(text="tick")
        await asyncio.sleep(interval)


@source
async def fails_at(count: int = 0, message: str = "", retryable: bool = False) -> AsyncIterator[Note]:
    for number in range(count):
        yield Note(number=number)
    if message:
        raise SourceError(message, retryable=retryable)
    raise RuntimeError("password=hunter2")


@pytest.mark.parametrize("count", [0, 99])
def test_a_failure_is_reported_by_an_incident_and_tells_nothing_else(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(settings_of(fails_at)) as service, service.open(f"/sse/fails-at?count={count}") as stream:
        events = stream.rest()
    assert [event.event for event in events] == ["note"] * count + ["stream.error", "stream.end"]
    error = events[-2].data
    assert error == {
        "source": "fails-at",
        "message": "source fails-at failed",
        "incident": error["incident"],
        "retryable": False,
    }
    assert events[-1].data == {"source": "fails-at", "reason": "failed"}
    (record,) = [record for record in caplog.records if error["incident"] in record.getMessage()]
    assert record.exc_info is not None
    assert "plugin test" in record.getMessage()


@pytest.mark.parametrize("retryable", [True, False])
def test_a_source_error_reaches_the_client_with_its_message(retryable: bool) -> None:
    with (
        serving(settings_of(fails_at)) as service,
        service.open(f"/sse/fails-at?message=no+quota&retryable={retryable}") as stream,
    ):
        error = stream.rest()[0].data
    assert (error["message"], error["retryable"]) == ("no quota", retryable)


def test_one_that_fails_leaves_the_others_flowing() -> None:
    with serving(settings_of(fails_at, ticker)) as service, service.open("/sse?sources=fails-at,ticker") as stream:
        stream.until("stream.end")
        assert [event.event for event in stream.take(5)] == ["other"] * 5


def test_one_that_ends_leaves_the_others_flowing_until_all_have_ended() -> None:
    @source
    async def short() -> AsyncIterator[Note]:
        yield Note()

    @source
    async def longer() -> AsyncIterator[Other]:
        for _ in range(20):
            await asyncio.sleep(0.005)
            yield Other()

    with serving(settings_of(short, longer)) as service, service.open("/sse?sources=short,longer") as stream:
        events = stream.rest()
    ends = [event.data for event in events if event.event == "stream.end"]
    assert ends == [{"source": "short", "reason": "completed"}, {"source": "longer", "reason": "completed"}]
    assert [event.event for event in events].count("other") == 20
    assert events[-1].id == "short!,longer!"


def test_every_generator_is_closed_when_the_client_goes() -> None:
    closed = threading.Semaphore(0)

    @source
    async def first() -> AsyncIterator[Note]:
        try:
            while True:
                yield Note()
                await asyncio.sleep(0.001)
        finally:
            closed.release()

    @source
    async def silent() -> AsyncIterator[Note]:
        try:
            await asyncio.Event().wait()
            yield Note()
        finally:
            await asyncio.sleep(0)  # a clean-up may await
            closed.release()

    with serving(settings_of(first, silent)) as service:
        with service.open("/sse?sources=first,silent") as stream:
            stream.take(3)
        assert closed.acquire(timeout=5)
        assert closed.acquire(timeout=5)


def test_a_generator_is_driven_and_closed_by_one_task() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="lost")

    @source
    async def scoped() -> AsyncIterator[Note]:
        variable.set("kept")
        async with asyncio.timeout(5):
            for _ in range(3):
                yield Note(text=variable.get())
                await asyncio.sleep(0)

    with serving(settings_of(scoped)) as service, service.open("/sse/scoped") as stream:
        assert [event.data["text"] for event in stream.take(3)] == ["kept"] * 3
        assert stream.rest()[-1].data["reason"] == "completed"


def test_a_generator_that_never_awaits_freezes_nobody() -> None:
    @source
    async def busy() -> AsyncIterator[Note]:
        number = 0
        while True:
            number += 1
            yield Note(number=number)

    @source(shared=True)
    async def busy_shared() -> AsyncIterator[Note]:
        while True:
            yield Note()

    with serving(settings_of(busy, busy_shared, ticker)) as service:
        with service.open("/sse?sources=busy,busy-shared,ticker") as stream:
            events = stream.take(3000)
            assert [event.event for event in events].count("other") > 0
            assert service.get("/healthz").status_code == 200
        numbers = [event.data["number"] for event in events if event.event == "note" and event.data["number"]]
        assert numbers == list(range(1, len(numbers) + 1))


def test_a_private_run_waits_for_its_reader() -> None:
    produced = 0

    @source
    async def eager() -> AsyncIterator[Note]:
        nonlocal produced
        while True:
            produced += 1
            yield Note(text="x" * 10_000)

    with serving(settings_of(eager, ticker)) as service:
        with service.open("/sse/eager") as stream, service.open("/sse/ticker") as pulse:
            stream.take(1)
            before = -1
            while before != produced:  # until it stands still for fifty ticks, since nobody reads
                before = produced
                pulse.take(50)
            bound = produced
        assert bound < 5_000  # what the kernel buffers of both ends hold, and a window; a second of it would be 50,000


def test_a_shared_source_runs_once_for_equal_parameters_and_again_for_others() -> None:
    starts: list[str] = []

    @source(shared=True)
    async def common(room: str = "a") -> AsyncIterator[Note]:
        starts.append(room)
        while True:
            yield Note(text=room)
            await asyncio.sleep(0.005)

    with (
        serving(settings_of(common)) as service,
        service.open("/sse/common") as one,
        service.open("/sse/common?room=a") as two,
        service.open("/sse/common?room=b") as three,
    ):
        assert [stream.take(1)[0].data["text"] for stream in (one, two, three)] == ["a", "a", "b"]
        # Each is at its own place of one log.
        assert one.cursor.partition(".")[0] == two.cursor.partition(".")[0] != three.cursor.partition(".")[0]
    assert sorted(starts) == ["a", "b"]


def test_a_generator_that_hangs_when_closed_is_abandoned_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_module, "CLOSE_SECONDS", 0.05)

    @source
    async def clingy() -> AsyncIterator[Note]:
        try:
            while True:
                yield Note()
                await asyncio.sleep(0.001)
        finally:
            await asyncio.sleep(3600)

    with serving(settings_of(clingy)) as service, service.open("/sse/clingy") as stream:
        stream.take(1)
    assert "source clingy of plugin test did not close within 0.05 seconds: abandoned" in caplog.text


def test_one_that_ignores_its_cancellation_is_closed_at_its_next_event(caplog: pytest.LogCaptureFixture) -> None:
    @source
    async def stubborn() -> AsyncIterator[Note]:
        while True:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                pass
            yield Note()

    with serving(settings_of(stubborn)) as service, service.open("/sse/stubborn") as stream:
        stream.take(1)
    assert "ignored" not in caplog.text


def test_what_a_source_raises_on_purpose_to_stop_the_process_stops_only_itself() -> None:
    @source
    async def quits(kind: str) -> AsyncIterator[Note]:
        yield Note()
        raise {"exit": SystemExit(3), "cancel": asyncio.CancelledError()}[kind]

    with serving(settings_of(quits)) as service:
        for kind in ("exit", "cancel"):
            with service.open(f"/sse/quits?kind={kind}") as stream:
                assert [event.event for event in stream.rest()] == ["note", "stream.error", "stream.end"]


@pytest.mark.parametrize(
    ("event", "named"),
    [
        (Other(), "Other"),
        (ServerSentEvent("x"), "ServerSentEvent"),
        ("text", "str"),
        (None, "NoneType"),
        (EventOf(3), "EventOf"),
    ],
)
def test_an_event_that_was_not_declared_is_the_runs_error_named_in_the_log(
    event: object, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    @source
    async def liar() -> AsyncIterator[Note]:
        yield event  # type: ignore[misc]

    with serving(settings_of(liar)) as service, service.open("/sse/liar") as stream:
        assert [found.event for found in stream.rest()] == ["stream.error", "stream.end"]
    assert f"it yielded {named}" in caplog.text
    assert "its annotation allows Note" in caplog.text


class Quote(BaseModel):
    price: float


def test_an_existing_model_is_an_event_by_event_of() -> None:
    @source
    async def quotes() -> AsyncIterator[EventOf[Quote] | Note]:
        yield EventOf(Quote(price=1.5))
        yield EventOf[Quote](Quote(price=2.5))
        yield Note(number=3)

    with serving(settings_of(quotes)) as service, service.open("/sse/quotes") as stream:
        events = stream.take(3)
    assert [(event.event, event.data) for event in events] == [
        ("quote", {"price": 1.5}),
        ("quote", {"price": 2.5}),
        ("note", {"text": "", "number": 3}),
    ]


def test_a_relay_passes_server_sent_events_through() -> None:
    @source
    async def relay() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent("one\ntwo\r\nthree\rfour", event="any.name", id="7", retry=5)
        yield ServerSentEvent("plain")
        yield ServerSentEvent("", event="empty", comment="why\nnot")

    with serving(settings_of(relay)) as service, service.open("/sse/relay") as stream:
        events = stream.rest()
        assert stream.parser.retry == 2000  # the service's own
        assert stream.parser.comments == [" why", " not"]
    assert [(event.event, event.data) for event in events[:3]] == [
        ("any.name", "one\ntwo\nthree\nfour"),
        ("message", "plain"),
        ("empty", ""),
    ]
    assert events[0].id.endswith(".1")


@pytest.mark.parametrize(
    "event",
    [
        ServerSentEvent("x", event="a\nb"),
        ServerSentEvent("x", event="a\rdata: forged"),
        ServerSentEvent("x", event="a\0b"),
        ServerSentEvent("x", event="stream.end"),
        ServerSentEvent("x", event="error"),
        ServerSentEvent("x", event="open"),
        ServerSentEvent("x", event="n" * 129),
        ServerSentEvent("x", event="\ud800"),
        ServerSentEvent("x", id="a\nb"),
        ServerSentEvent("x", id="a\0b"),
        ServerSentEvent("\ud800"),
        ServerSentEvent("x", comment="\udfff"),
    ],
)
def test_a_relay_cannot_break_the_framing(event: ServerSentEvent, caplog: pytest.LogCaptureFixture) -> None:
    @source
    async def relay() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent("before")
        yield event

    with serving(settings_of(relay)) as service, service.open("/sse/relay") as stream:
        assert [found.event for found in stream.rest()] == ["message", "stream.error", "stream.end"]
    assert "source relay of plugin test failed" in caplog.text


def test_a_source_is_told_its_name_and_has_a_log_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    @source
    async def curious(ctx: Context) -> AsyncIterator[Note]:
        ctx.log.info("at work")
        yield Note(text=ctx.source)

    with serving(settings_of(curious)) as service:
        with service.open("/sse/curious") as stream:
            assert stream.rest()[0].data["text"] == "curious"
        assert service.get("/sse/curious?ctx=1").status_code == 422
    assert ("eventmux.source.curious", logging.INFO, "at work") in caplog.record_tuples
