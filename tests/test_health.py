"""What the service says of itself and of each source, and when it says nothing."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator

import httpx2
import pytest
from pydantic import SecretStr

from eventmux import Context, Event, SourceError, source
from eventmux.catalog import EnabledSource
from eventmux.config import ServerConfig
from eventmux.policy import Restart
from eventmux.trace import Trace, parse_traceparent
from eventmux.web.server import bind
from eventsource import wait_until
from raw import Note
from service import Service, enable, serving, settings_of

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def ready(service: Service, name: str) -> dict[str, object]:
    found: dict[str, object] = service.get("/readyz").json()["sources"][name]
    return found


@source(shared=True)
async def ill(api_key: SecretStr = SecretStr("hunter2")) -> AsyncIterator[Note]:
    raise SourceError("upstream is away")
    yield Note(n=0)


@source(shared=True)
async def secretive(api_key: SecretStr = SecretStr("hunter2")) -> AsyncIterator[Note]:
    raise RuntimeError(api_key.get_secret_value())
    yield Note(n=0)


@source
async def endless() -> AsyncIterator[Note]:
    yield Note(n=1)
    await asyncio.Event().wait()


@pytest.mark.parametrize(("attempts", "state"), [(1, "quarantined"), (9, "restarting")])
def test_a_source_that_fails_says_what_its_clients_were_told_and_when_it_is_tried_again(
    attempts: int, state: str
) -> None:
    restart = Restart(backoff=30, max_backoff=30, attempts=attempts, quarantine=30)
    with serving(settings_of(enable(ill, restart=restart), enable(secretive, restart=restart))) as service:
        for name, reason in (("ill", "upstream is away"), ("secretive", "source secretive failed")):
            assert {"state": "idle"} == ready(service, name)
            with service.open(f"/sse/{name}") as stream:
                (error,) = stream.take(1)
                wait_until(lambda name=name: ready(service, name)["state"] == state)
                found = ready(service, name)
            assert 10 < float(str(found.pop("next_try"))) <= 30
            assert {"state": state, "reason": reason, "incident": error.data["incident"]} == found
            (row,) = [row for row in service.get("/sources").json()["sources"] if row["name"] == name]
            assert (state, reason) == (row["state"], row["reason"])
        assert "hunter2" not in service.get("/readyz").text + service.get("/sources").text


def test_a_source_that_is_well_again_has_no_reason() -> None:
    is_well = False

    @source(shared=True)
    async def patient() -> AsyncIterator[Note]:
        if not is_well:
            raise SourceError("upstream is away")
        while True:
            yield Note(n=1)
            await asyncio.sleep(0.01)

    restart = Restart(backoff=0.05, max_backoff=0.05, attempts=100)
    with serving(settings_of(enable(patient, restart=restart))) as service, service.open("/sse/patient") as stream:
        stream.take(2)
        is_well = True
        stream.until("note")
        assert {"state": "running"} == ready(service, "patient")


def test_a_source_that_cannot_run_says_what_to_do_and_does_not_make_the_service_unready() -> None:
    missing = EnabledSource("missing", endless, "test", unavailable="set sources.missing.params.key")
    with serving(settings_of(missing, endless)) as service:
        assert 200 == service.get("/readyz").status_code
        assert {"state": "unavailable", "reason": "set sources.missing.params.key"} == ready(service, "missing")
        with service.open("/sse/endless") as stream:
            stream.take(1)
            assert {"state": "running"} == ready(service, "endless")
        wait_until(service.is_quiet)
        service.hub.drain()
        assert 503 == service.get("/readyz").status_code


def test_healthz_answers_while_the_loop_turns_and_not_while_it_stands() -> None:
    stalls = 0

    @source
    async def blocking() -> AsyncIterator[Note]:
        nonlocal stalls
        yield Note(n=1)
        await asyncio.sleep(0.05)
        stalls = 1
        time.sleep(1.5)
        stalls = 2
        yield Note(n=2)
        await asyncio.Event().wait()

    with serving(settings_of(blocking, server=ServerConfig(stall=30))) as service:
        assert {"status": "ok"} == service.get("/healthz").json()
        with service.open("/sse/blocking") as stream:
            stream.take(1)
            wait_until(lambda: stalls == 1)
            with pytest.raises(httpx2.TimeoutException):
                httpx2.get(f"{service.url}/healthz", timeout=0.3, trust_env=False)
            assert 1 == stalls
            stream.take(1)
            assert 200 == service.get("/healthz").status_code


def test_an_answer_does_not_wait_for_the_acknowledgement_of_the_one_before() -> None:
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PARENT, Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)),
        (PARENT[:-2] + "00", Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")),
        (PARENT[:-2] + "02", Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")),
        (f" {PARENT}\t", Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)),
        ("cc" + PARENT[2:], Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)),
        ("cc" + PARENT[2:] + "-what", Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)),
    ],
)
def test_a_traceparent_is_read_and_is_of_version_00_when_it_is_passed_on(text: str, expected: Trace) -> None:
    found = parse_traceparent(text)
    assert expected == found
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", str(found))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "-more",
        PARENT + "x",
        "ff" + PARENT[2:],
        "cc" + PARENT[2:] + "x",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        PARENT.replace("4b", "4g"),
        PARENT + "\n",
        "\u0660" + PARENT[1:],
    ],
)
def test_a_traceparent_that_is_not_valid_is_ignored(text: str) -> None:
    assert parse_traceparent(text) is None


class Seen(Event):
    trace: str | None


@source
async def private(ctx: Context) -> AsyncIterator[Seen]:
    yield Seen(trace=ctx.trace)


@source(shared=True)
async def shared(ctx: Context) -> AsyncIterator[Seen]:
    yield Seen(trace=ctx.trace)
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("name", "headers", "expected"),
    [
        ("private", [("traceparent", PARENT)], PARENT),
        ("private", [], None),
        ("private", [("traceparent", "nonsense")], None),
        ("private", [("traceparent", PARENT), ("traceparent", PARENT)], None),
        ("shared", [("traceparent", PARENT)], None),
    ],
)
def test_a_private_run_knows_the_trace_of_its_request(
    name: str, headers: list[tuple[str, str]], expected: str | None
) -> None:
    with serving(settings_of(private, shared)) as service:
        answer = service.get(f"/sse/{name}?limit=1", headers=[*headers, ("accept", "application/json")])
        assert expected == answer.json()[0]["data"]["trace"]
