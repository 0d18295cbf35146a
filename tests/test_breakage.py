"""Ways in which the service was once broken, each as the promise that it now keeps."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from pydantic import AfterValidator, BaseModel, Field, computed_field

from eventmux import Event, SourceError, source
from eventmux.catalog import EnabledSource
from eventmux.config import ServerConfig
from eventmux.hub import Hub, Wanted
from eventmux.operators import Step
from eventmux.policy import Bounds, Limits, Policy, Restart
from eventmux.stream import KEPT_STEPS
from eventsource import PATIENCE, wait_until
from service import enable, serve_process, serving, settings_of
from taking import Taking

JSON = {"accept": "application/json"}


class Note(Event):
    n: int
    text: str = ""


class Other(Event):
    n: int


def broken(value: str) -> str:
    raise KeyError(value)


class Odd(Event):
    text: Any
    number: float


class Quote(BaseModel):
    price: float = Field(serialization_alias="cost")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> float:
        return self.price * 2


class Quoted(Event, name="a b"):
    quote: Quote


class Underscored(Event, name="a_b"):
    n: int


@source
async def endless(text: str = "") -> AsyncIterator[Note]:
    n = 0
    while True:
        n += 1
        yield Note(n=n, text=text)
        await asyncio.sleep(0.005)


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(40))
async def test_whatever_the_order_of_comings_goings_and_failures_a_run_is_never_dead_and_called_running(
    anyio_backend: str, seed: int
) -> None:
    chance = random.Random(seed)
    live = 0

    @source(shared=True)
    async def frail() -> AsyncIterator[Note]:
        nonlocal live
        live += 1
        assert live == 1, "two generators of one log at a time"
        try:
            while True:
                if chance.random() < 0.3:
                    raise RuntimeError
                yield Note(n=0)
                await asyncio.sleep(chance.choice((0, 0.0005, 0.001)))
        finally:
            try:
                await asyncio.sleep(chance.choice((0, 0.001)))
            finally:
                live -= 1

    restart = Restart(backoff=0.0005, max_backoff=0.001, attempts=10**6)
    policy = Policy(shared=True, linger=chance.choice((0, 0.0005, 0.002)), restart=restart)
    enabled = EnabledSource("frail", frail, "test", policy=policy)
    hub = Hub()
    want = Wanted(enabled, enabled.validate({}))
    for _ in range(60):
        subscription = Taking(hub, [want])
        await asyncio.sleep(chance.choice((0, 0, 0.0005, 0.001, 0.002)))
        subscription.close()
        if chance.random() < 0.7:
            await asyncio.sleep(chance.choice((0, 0.0005, 0.001, 0.003)))
        if chance.random() < 0.1:
            time.sleep(0.002)
    subscription = Taking(hub, [want])
    async with asyncio.timeout(PATIENCE):
        while not subscription.take():
            await asyncio.sleep(0.001)
    subscription.close()
    await hub.close()
    assert (live, hub.runs, hub.history_bytes) == (0, 0, 0)


class CarelessError(SourceError):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("error", [SourceError(ValueError("x")), SourceError(b"x"), CarelessError()])  # type: ignore[arg-type]
def test_a_source_error_that_is_not_quite_right_is_reported_all_the_same(error: SourceError) -> None:
    @source
    async def careless() -> AsyncIterator[Note]:
        raise error
        yield Note(n=0)

    with serving(settings_of(careless)) as service, service.open("/sse/careless") as stream:
        assert [event.event for event in stream.rest()] == ["stream.error", "stream.end"]


def test_a_client_that_is_turned_away_has_started_nothing() -> None:
    starts: list[int] = []

    @source
    async def paid() -> AsyncIterator[Note]:
        starts.append(1)
        yield Note(n=0)

    settings = settings_of(enable(paid, linger=60), enable(endless, max_runs=1, linger=60))
    with serving(settings, expect_quiet=False) as service, service.open("/sse/endless") as stream:
        stream.take(1)
        for _ in range(3):
            with service.open("/sse?sources=paid,endless") as turned_away:
                assert turned_away.rest() == []
        stream.take(1)
        wait_until(lambda: service.hub.runs == 1, "what was opened for them to be closed")
    assert starts == []


def test_a_run_found_for_a_client_that_is_turned_away_still_ends_with_its_linger() -> None:
    closed = threading.Event()

    @source
    async def mine() -> AsyncIterator[Note]:
        try:
            n = 0
            while True:
                n += 1
                yield Note(n=n)
                await asyncio.sleep(0.005)
        finally:
            closed.set()

    settings = settings_of(enable(mine, linger=0.3), enable(endless, max_runs=1, linger=60))
    with serving(settings, expect_quiet=False) as service, service.open("/sse/endless") as full:
        full.take(1)
        with service.open("/sse/mine") as stream:
            cursor = stream.take(1)[0].id
        with service.open("/sse?sources=mine,endless", cursor=cursor) as turned_away:
            assert turned_away.rest() == []
        assert closed.wait(PATIENCE)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
@pytest.mark.parametrize("step", [{"timeout": 30}, {"skip": 1}])
def test_what_a_source_raises_in_a_pipe_ends_only_itself(error: BaseException, step: dict[str, Any]) -> None:
    @source
    async def quits() -> AsyncIterator[Note]:
        yield Note(n=0)
        raise error

    enabled = EnabledSource("quits", quits, "test", pipe=[Step.model_validate(step)], policy=Policy(linger=0))
    with serving(settings_of(enabled)) as service:
        with service.open("/sse/quits") as stream:
            assert [event.event for event in stream.rest()][-2:] == ["stream.error", "stream.end"]
        assert service.get("/healthz").status_code == 200


@pytest.mark.parametrize("step", [{"skip": 10**9}, {"only": ["other"]}])
def test_a_pipe_that_leaves_everything_out_of_a_source_that_never_awaits_freezes_nobody(step: dict[str, Any]) -> None:
    @source
    async def busy() -> AsyncIterator[Note | Other]:
        while True:
            yield Note(n=0)

    enabled = EnabledSource("busy", busy, "test", pipe=[Step.model_validate(step)], policy=Policy(linger=0))
    with serving(settings_of(enabled)) as service, service.open("/sse/busy"):
        for _ in range(3):
            assert service.get("/healthz").status_code == 200


STUBBORN = """
import asyncio
from collections.abc import AsyncIterator
from eventmux import Event, source

class Note(Event):
    n: int

@source
async def stubborn() -> AsyncIterator[Note]:
    while True:
        try:
            yield Note(n=1)
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass
        finally:
            pass
"""


def test_a_generator_that_swallows_its_cancellation_does_not_keep_the_process(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "stubborn.py").write_text(STUBBORN)
    (tmp_path / "plugins.yaml").write_text("plugins: {dir: local}\nsources: {stubborn: {}}\nserver: {grace: 1}\n")
    with serve_process(cwd=tmp_path) as process:
        url = process.wait_for_url()
        with httpx2.stream("GET", f"{url}/sse/stubborn", trust_env=False, timeout=PATIENCE) as response:
            next(response.iter_raw())
            process.process.send_signal(signal.SIGTERM)
            assert process.process.wait(20) == 0
    assert "generators that did not close in time: abandoned, of stubborn" in process.log.read_text()


def test_failures_long_ago_are_not_in_the_row() -> None:
    runs = 0
    fails = True

    @source(shared=True)
    async def frail() -> AsyncIterator[Note]:
        nonlocal runs
        runs += 1
        if fails:
            raise RuntimeError
        yield Note(n=runs)
        await asyncio.Event().wait()

    restart = Restart(backoff=0.001, max_backoff=0.01, attempts=4, quarantine=60)
    with serving(settings_of(enable(frail, restart=restart))) as service:
        with service.open("/sse/frail") as stream:
            stream.take(2)
            fails = False
            stream.until("note")
            started = time.monotonic()
            wait_until(lambda: time.monotonic() - started > 0.05)
        wait_until(service.is_quiet)
        fails = True
        with service.open("/sse/frail") as stream:
            stream.take(3)
            fails = False
            assert stream.take(1)[0].event == "note"


def test_a_paid_source_is_not_started_again_because_it_is_shared() -> None:
    runs = 0

    @source(once=True, shared=True)
    async def paid() -> AsyncIterator[Note]:
        nonlocal runs
        runs += 1
        yield Note(n=runs)
        raise RuntimeError

    with serving(settings_of(paid)) as service, service.open("/sse/paid") as stream:
        assert [event.event for event in stream.rest()] == ["note", "stream.error", "stream.end"]
    assert runs == 1


def test_a_json_reader_that_lags_is_told_and_not_cut_short() -> None:
    """It would not come back: `overflow: disconnect` is for who does."""

    @source(shared=True)
    async def bursts() -> AsyncIterator[Note]:
        n = 0
        while True:
            for _ in range(50):
                n += 1
                yield Note(n=n)
            await asyncio.sleep(0.001)

    settings = settings_of(enable(bursts, overflow="disconnect", history=Bounds(events=5)))
    with serving(settings) as service:
        found = service.get("/sse/bursts?limit=20", headers=JSON).json()
    assert [line["event"] for line in found].count("note") == 20
    assert "stream.gap" in [line["event"] for line in found]


def test_a_large_event_reaches_a_client_that_takes_it_slowly() -> None:
    @source
    async def large() -> AsyncIterator[Note]:
        yield Note(n=1, text="x" * 12_000_000)

    with serving(settings_of(large, server=ServerConfig(send_timeout=0.3))) as service:
        with httpx2.stream("GET", f"{service.url}/sse/large", trust_env=False, timeout=PATIENCE) as response:
            size, started = 0, time.monotonic()
            for chunk in response.iter_raw(65_536):
                size += len(chunk)
                behind = started + size / 10_000_000 - time.monotonic()
                wait_until(lambda behind=behind, now=time.monotonic(): time.monotonic() - now >= behind)
        assert size > 12_000_000


@pytest.mark.anyio
async def test_parameters_that_clients_send_are_bounded_in_memory(anyio_backend: str) -> None:
    hub = Hub(Limits(history=1_000_000))

    @source(shared=True)
    async def common(text: str) -> AsyncIterator[Note]:
        yield Note(n=0)
        await asyncio.Event().wait()

    enabled = EnabledSource("common", common, "test", policy=Policy(shared=True, linger=0))
    for number in range(40):
        want = Wanted(enabled, enabled.validate({"text": str(number) * 50_000}))
        subscription = Taking(hub, [want])
        await asyncio.sleep(0.001)
        subscription.close()
    kept = sum(len(run.parameters.model_dump_json()) for run in hub._runs.all())
    assert kept <= 1_200_000
    await hub.close()


@pytest.mark.anyio
async def test_finished_runs_do_not_push_out_running_ones(anyio_backend: str) -> None:
    hub = Hub(Limits(detached=2))

    @source
    async def short() -> AsyncIterator[Note]:
        yield Note(n=1)

    policy = Policy(linger=60)
    long_one = EnabledSource("endless", endless, "test", policy=policy)
    short_one = EnabledSource("short", short, "test", policy=policy)
    first = Taking(hub, [Wanted(long_one, long_one.validate({}))])
    await asyncio.sleep(0.01)
    cursor = first.messages()[0].id
    first.close()
    for _ in range(10):
        subscription = Taking(hub, [Wanted(short_one, short_one.validate({}))])
        await asyncio.sleep(0.002)
        subscription.close()
    again = Taking(hub, [Wanted(long_one, long_one.validate({}))], cursor)
    await asyncio.sleep(0.01)
    assert "stream.gap" not in again.events()
    await hub.close()


def test_while_it_shuts_down_the_service_sends_clients_away_and_starts_nothing() -> None:
    with serving(settings_of(endless)) as service:
        service.hub.drain()
        with service.open("/sse/endless") as stream:
            assert stream.rest() == []
            assert stream.parser.retry is not None
        assert service.get("/sse/endless", headers=JSON).status_code == 503
        assert service.get("/readyz").status_code == 503
        assert service.hub.runs == 0


def test_a_cursor_of_another_source_is_unknown_and_replays_nothing() -> None:
    @source(shared=True)
    async def one() -> AsyncIterator[Note]:
        n = 0
        while True:
            n += 1
            yield Note(n=n)
            await asyncio.sleep(0.002)

    other = EnabledSource("other", one, "test", policy=Policy(shared=True, linger=60))
    with serving(settings_of(enable(one, linger=60), other), expect_quiet=False) as service:
        with service.open("/sse/one") as a, service.open("/sse/other") as b:
            a.take(20)
            b.take(1)
            with service.open("/sse/one", cursor=b.cursor) as stranger:
                gap, first = stranger.take(2)
            assert gap.data["reason"] == "unknown"
            assert first.data["n"] > 20


def test_a_cursor_of_one_shared_source_does_not_lose_a_paid_one_that_is_newly_added() -> None:
    @source(once=True)
    async def paid() -> AsyncIterator[Note]:
        yield Note(n=1)

    shared = EnabledSource("shared", endless, "test", policy=Policy(shared=True, linger=0))
    with serving(settings_of(paid, shared)) as service:
        with service.open("/sse?sources=shared,paid", cursor="AbCd.7") as stream:
            events = stream.until("stream.end")
    assert ("stream.gap", "shared") in [(event.event, event.data.get("source")) for event in events]
    assert events[-1].data == {"source": "paid", "reason": "completed"}


def test_a_validator_that_breaks_is_the_plugins_fault_and_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    @source
    async def odd(word: Annotated[str, AfterValidator(broken)]) -> AsyncIterator[Note]:
        yield Note(n=0)

    with serving(settings_of(odd)) as service:
        response = service.get("/sse/odd?word=hunter2")
    assert response.status_code == 500
    incident = re.fullmatch(r"source 'odd' could not check its parameters: incident (\w+)", response.json()["detail"])
    assert incident is not None
    assert f"source odd of plugin test could not check its parameters, incident {incident[1]}" in caplog.text


def test_a_refusal_costs_less_than_what_it_refuses() -> None:
    body = {str(number): number for number in range(50_000)}
    with serving(settings_of(endless)) as service:
        for path, content in (("/sse/endless", body), ("/sse", {"sources": {"endless": body}})):
            response = service.post(path, json=content)
            assert response.status_code == 422
            assert len(response.text) < 5_000
        query = "&".join(f"x{number}=1" for number in range(3_000))
        assert len(service.get(f"/sse/endless?{query}").text) < 5_000


def test_what_is_not_accepted_is_not_sent() -> None:
    @source
    async def short() -> AsyncIterator[Note]:
        yield Note(n=1)

    with serving(settings_of(short)) as service:
        response = service.get("/sse/short", headers={"accept": "application/json;q=0"})
    assert response.headers["content-type"].startswith("text/event-stream")


def test_numbers_that_json_lacks_never_break_it() -> None:
    @source
    async def odd() -> AsyncIterator[Odd]:
        yield Odd(text="plain", number=float("inf"))
        yield Odd(text="\ud800", number=float("inf"))

    with serving(settings_of(odd)) as service:
        found = service.get("/sse/odd", headers=JSON).json()
    assert found[0]["data"] == {"text": "plain", "number": None}
    assert found[1]["event"] == "stream.error"


def test_models_of_parameters_and_of_events_stand_side_by_side_in_openapi() -> None:
    @source
    async def quotes(quote: Quote) -> AsyncIterator[Quoted | Underscored]:
        yield Quoted(quote=quote)

    with serving(settings_of(quotes)) as service:
        schemas = service.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["quotes.Quote"]["properties"].keys() == {"price"}
    assert schemas["quotes.model.Quote"]["properties"].keys() == {"cost", "twice"}
    assert schemas["quotes.event.a_20_b"] != schemas["quotes.event.a_b"]


def test_the_connection_header_is_left_to_the_server() -> None:
    with serving(settings_of(endless)) as service:
        assert "connection" not in httpx2.head(f"{service.url}/sse/endless", trust_env=False).headers


@pytest.mark.parametrize("linger", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_client_with_a_request_queued_behind_its_stream_is_let_go_when_it_leaves(linger: int) -> None:
    with serving(settings_of(endless)) as service:
        port = int(service.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"GET /sse/endless HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1 << 16)
            wait_until(lambda: service.hub.subscriptions == 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", linger != socket.SHUT_WR, 0))
        wait_until(lambda: service.hub.subscriptions == 0, "the stream to end with its connection")


def test_one_that_fails_at_once_and_may_begin_again_at_once_freezes_nobody() -> None:
    @source(shared=True)
    async def hopeless() -> AsyncIterator[Note]:
        raise RuntimeError
        yield Note(n=0)

    restart = Restart(backoff=0, max_backoff=0, attempts=1, quarantine=0)
    with serving(settings_of(enable(hopeless, restart=restart))) as service, service.open("/sse/hopeless") as stream:
        stream.take(3)
        for _ in range(3):
            assert service.get("/healthz").status_code == 200


@pytest.mark.anyio
async def test_nothing_that_subscribing_raises_leaves_a_run_behind(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    shared = EnabledSource("endless", endless, "test", policy=Policy(shared=True, linger=60))
    odd = EnabledSource("odd", endless, "test", policy=Policy(linger=60))
    wanted = [Wanted(enabled, enabled.validate({})) for enabled in (shared, odd)]
    opened = hub._runs.open

    def fails(want: Wanted, *rest: Any) -> Any:
        if want.enabled is odd:
            raise ZeroDivisionError
        return opened(want, *rest)

    monkeypatch.setattr(hub._runs, "open", fails)
    with pytest.raises(ZeroDivisionError):
        Taking(hub, wanted)
    await asyncio.sleep(0.01)
    assert hub.runs == 0
    await hub.close()


@pytest.mark.anyio
async def test_bytes_made_for_many_are_let_go_with_the_many(anyio_backend: str) -> None:
    hub = Hub()

    @source(shared=True)
    async def large() -> AsyncIterator[Note]:
        for n in range(20):
            yield Note(n=n, text="x" * 50_000)
        await asyncio.Event().wait()

    enabled = EnabledSource("large", large, "test", policy=Policy(shared=True, linger=60))
    want = Wanted(enabled, enabled.validate({}))
    first = Taking(hub, [want])
    await asyncio.sleep(0.05)
    (run,) = hub._runs.all()
    others = []
    for offset in range(20):
        others.append(Taking(hub, [want], f"{run.channel.epoch}.{offset}"))
        others[-1].take()
    (stream,) = run.channel.streams
    kept = sum(len(step.body) for step in stream._steps.values())
    assert 0 < kept <= KEPT_STEPS * 2 * 65_536
    for subscription in others:
        subscription.close()
    assert stream._steps == {}
    first.close()
    await hub.close()


@pytest.mark.anyio
async def test_what_has_ended_says_so_even_if_the_service_goes_down_at_that_moment(anyio_backend: str) -> None:
    hub = Hub()

    @source
    async def short() -> AsyncIterator[Note]:
        yield Note(n=1)

    enabled = EnabledSource("short", short, "test", policy=Policy(linger=60))
    subscription = Taking(hub, [Wanted(enabled, enabled.validate({}))])
    await asyncio.sleep(0.01)
    subscription.subscription.is_held = False
    hub.drain()
    assert subscription.events() == ["note", "stream.end"]
    assert subscription.subscription.is_over
    await hub.close()


def test_who_comes_to_a_source_in_quarantine_is_told_why_though_nobody_was_there_before() -> None:
    @source(shared=True)
    async def ill() -> AsyncIterator[Note]:
        raise SourceError("no upstream")
        yield Note(n=0)

    restart = Restart(backoff=0.001, max_backoff=0.01, attempts=2, quarantine=60)
    full = enable(endless, max_runs=1)
    with serving(settings_of(enable(ill, restart=restart), full)) as service:
        with service.open("/sse/ill") as stream:
            stream.take(2)
        wait_until(service.is_quiet)
        assert service.get("/readyz").json()["sources"]["ill"]["state"] == "quarantined"
        with service.open("/sse/endless"), service.open("/sse?sources=ill,endless") as refused:
            assert refused.rest() == []  # and this does not end the quarantine
        with service.open("/sse/ill") as newcomer:
            assert newcomer.take(1)[0].data["message"] == "no upstream"
            assert service.get("/readyz").json()["sources"]["ill"]["state"] == "quarantined"


@pytest.mark.anyio
async def test_a_generator_that_is_abandoned_is_counted_once(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventmux.run.CLOSE_SECONDS", 0.02)
    stuck = True

    @source(shared=True)
    async def clingy() -> AsyncIterator[Note]:
        nonlocal stuck
        is_first, stuck = stuck, False
        while True:
            try:
                yield Note(n=0)
                await asyncio.sleep(3600 if is_first else 0.001)
            except asyncio.CancelledError:
                if not is_first or released.is_set():
                    raise

    released = asyncio.Event()
    hub = Hub()
    enabled = EnabledSource("clingy", clingy, "test", policy=Policy(shared=True, linger=0))
    want = Wanted(enabled, enabled.validate({}))
    for _ in range(3):
        subscription = Taking(hub, [want])
        await asyncio.sleep(0.01)
        subscription.close()
        async with asyncio.timeout(PATIENCE):
            while hub.runs:
                await asyncio.sleep(0.005)
    assert hub.abandoned <= 1
    released.set()
    await hub.close()
