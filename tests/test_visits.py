"""Who may have a stream at a time, for how long, and what is said of it when it has ended."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from eventmux import Context, Event, source
from eventmux.config import LimitsConfig, ServerConfig
from eventmux.policy import Limits
from eventmux.web.outlet import Delivery
from eventmux.web.response import EventStream
from eventsource import EventSource, wait_until
from raw import Raw, running
from service import Service, enable, serving, settings_of

EVENT_STREAM = {"accept": "text/event-stream"}
FIELDS = ("principal", "address", "sources", "seconds", "events", "bytes", "reason", "lag", "trace")


class Note(Event):
    n: int


class Heavy(Event):
    text: str


@source(shared=True)
async def live() -> AsyncIterator[Note]:
    n = 0
    while True:
        n += 1
        yield Note(n=n)
        await asyncio.sleep(0.01)


@source(name="three")
async def three() -> AsyncIterator[Note]:
    for n in (1, 2, 3):
        yield Note(n=n)


@source(name="waiting")
async def waiting(room: int = 0) -> AsyncIterator[Note]:
    yield Note(n=room)
    await asyncio.Event().wait()


class Lines(list[dict[str, Any]]):
    """What the access log has said, each line as its fields."""


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    found = Lines()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append({name: vars(record)[name] for name in FIELDS if name in vars(record)})

    handler, access = Handler(), logging.getLogger("eventmux.access")
    caplog.set_level(logging.INFO, "eventmux.access")
    access.addHandler(handler)
    yield found
    access.removeHandler(handler)


@pytest.fixture
def expiring(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The right to every stream ends after half a second, until this is undone."""
    made = EventStream.__init__

    def expiring(self: EventStream, *words: Any) -> None:
        made(self, *words[:3], time.time() + 0.5)

    monkeypatch.setattr(EventStream, "__init__", expiring)
    return monkeypatch


def full(service: Service, path: str = "/sse/waiting", **headers: str) -> httpx2.Response:
    """The refusal of somebody who is no EventSource."""
    response = service.get(path, headers=headers)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    return response


def check_sent_away(stream: EventSource) -> None:
    with stream:
        assert stream.response.status_code == 200
        assert stream.rest() == []
        assert stream.parser.retry is not None
        assert stream.parser.retry >= 2000


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (LimitsConfig(streams=2), "there are 2 streams, and no more are taken now"),
        (LimitsConfig(streams_per_address=2), "2 streams are open from your address: close one"),
        (LimitsConfig(new_streams=0.4), "more than 0.4 streams begin in a second"),
        (LimitsConfig(runs=2), "there are 2 runs, and no more are started now"),
    ],
)
def test_where_a_limit_is_reached_an_eventsource_is_sent_away_and_others_are_told(
    limits: LimitsConfig, told: str
) -> None:
    with serving(settings_of(waiting, limits=limits)) as service, ExitStack() as opened:
        for _ in range(2):
            opened.enter_context(service.open("/sse/waiting")).take(1)
        check_sent_away(service.open("/sse/waiting"))
        assert full(service).json() == {"detail": told}
        assert full(service, accept="application/x-ndjson").json() == {"detail": told}


@pytest.mark.parametrize("limits", [LimitsConfig(streams=1), LimitsConfig(streams_per_address=1), LimitsConfig(runs=1)])
def test_a_place_is_free_again_when_its_stream_has_ended(limits: LimitsConfig) -> None:
    with serving(settings_of(waiting, limits=limits)) as service:
        for _ in range(3):
            with service.open("/sse/waiting") as stream:
                stream.take(1)
            wait_until(service.is_quiet)


def test_new_streams_are_taken_again_at_the_rate_of_the_limit() -> None:
    with serving(settings_of(three, limits=LimitsConfig(new_streams=4))) as service:
        began = time.monotonic()
        taken = sum(len(_read(service)) > 0 for _ in range(35))
        # 20 at once, then 4 a second; the clock was read before the first and after the last of them
        assert 20 <= taken <= 21 + 4 * (time.monotonic() - began)
        wait_until(lambda: _read(service))


def _read(service: Service) -> list[Any]:
    with service.open("/sse/three") as stream:
        return stream.rest()


def test_streams_are_counted_for_each_address_that_a_trusted_proxy_names() -> None:
    with serving(settings_of(waiting, limits=LimitsConfig(streams_per_address=1))) as service:
        one, other = {"x-forwarded-for": "192.0.2.1"}, {"x-forwarded-for": "192.0.2.2"}
        with httpx2.stream("GET", service.url + "/sse/waiting", headers=one, trust_env=False):
            full(service, **one)
            with httpx2.stream("GET", service.url + "/sse/waiting", headers=other, trust_env=False) as second:
                assert second.status_code == 200


def test_a_run_that_only_lingers_gives_way_to_a_new_one_where_all_runs_are_too_many() -> None:
    closed: list[str | None] = []

    @source(name="lasting")
    async def lasting(ctx: Context, room: str = "") -> AsyncIterator[Note]:
        try:
            yield Note(n=0)
            await asyncio.Event().wait()
        finally:
            closed.append(room)

    settings = settings_of(enable(lasting, linger=60), limits=LimitsConfig(runs=2))
    with serving(settings, expect_quiet=False) as service:
        for room in ("a", "b"):
            with service.open(f"/sse/lasting?room={room}") as stream:
                stream.take(1)
        wait_until(lambda: service.hub.subscriptions == 0)
        with service.open("/sse/lasting?room=c") as stream:
            stream.take(1)
            wait_until(lambda: closed)
            assert closed == ["a"]


def test_a_shared_run_that_only_lingers_gives_way_too_and_its_log_stays() -> None:
    @source(name="lasting", shared=True)
    async def lasting(room: str = "") -> AsyncIterator[Note]:
        n = 0
        while True:
            n += 1
            yield Note(n=n)
            await asyncio.sleep(0.01)

    settings = settings_of(enable(lasting, linger=60), limits=LimitsConfig(runs=2))
    with serving(settings, expect_quiet=False) as service:
        cursors = {}
        for room in ("a", "b"):
            with service.open(f"/sse/lasting?room={room}") as stream:
                cursors[room] = stream.take(1)[0].id
        wait_until(lambda: service.hub.subscriptions == 0)
        with service.open("/sse/lasting?room=c") as stream:
            stream.take(1)
            with service.open("/sse/lasting?room=a", cursor=cursors["a"]) as back:
                assert 1 == int(back.take(1)[0].id.rpartition(".")[2]) - int(cursors["a"].rpartition(".")[2])
                full(service, "/sse/lasting?room=d")


@pytest.mark.parametrize("rate", [0.0001, 0.1])
def test_a_rate_below_one_lets_the_first_client_in(rate: float) -> None:
    with serving(settings_of(three, limits=LimitsConfig(new_streams=rate))) as service:
        assert _read(service)
        full(service, "/sse/three")


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_who_has_a_network_of_ipv6_is_one_address(one: str, other: str, is_same: bool) -> None:
    def headers(address: str) -> dict[str, str]:
        return {"x-forwarded-for": address, "accept": "application/x-ndjson"}

    with (
        serving(settings_of(waiting, limits=LimitsConfig(streams_per_address=1))) as service,
        httpx2.stream("GET", service.url + "/sse/waiting", headers=headers(one), trust_env=False),
        httpx2.stream("GET", service.url + "/sse/waiting", headers=headers(other), trust_env=False) as second,
    ):
        assert (503 if is_same else 200) == second.status_code


@pytest.mark.parametrize(
    ("limits", "path", "status", "told"),
    [
        (LimitsConfig(sources=1), "/sse?sources=three,waiting", 422, "At most 1 sources in one stream"),
        (LimitsConfig(query=256), "/sse/three?last_event_id=" + "x" * 256, 413, "the query is longer than 256 bytes"),
    ],
)
def test_a_request_over_a_limit_is_told_which(limits: LimitsConfig, path: str, status: int, told: str) -> None:
    with serving(settings_of(three, waiting, limits=limits)) as service:
        response = service.get(path)
        assert response.status_code == status
        assert told in response.text


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_told_so(is_chunked: bool) -> None:
    body = b'{"sources": {"three": {}}}' + b" " * 300
    with serving(settings_of(three, limits=LimitsConfig(body=256))) as service:
        response = service.post(
            "/sse",
            content=iter([body[:100], body[100:]]) if is_chunked else body,
            headers={"content-type": "application/json"},
        )
        assert (response.status_code, response.json()) == (413, {"detail": "the body is larger than 256 bytes"})


def test_the_limits_can_be_other_ones_while_streams_are_open() -> None:
    with running(settings_of(waiting, limits=LimitsConfig(streams=1))) as service:
        with service.open("/sse/waiting") as stream:
            stream.take(1)
            full(service)
            service.app.state.visits.limits = Limits(streams=2)
            with service.open("/sse/waiting") as second:
                second.take(1)


@pytest.mark.parametrize("direct", [True, False])
def test_an_old_stream_ends_and_its_client_goes_on_where_it_was(direct: bool, lines: Lines) -> None:
    server = ServerConfig(max_lifetime=1, retry=0, spread=0, direct=direct)
    with serving(settings_of(enable(live, linger=60), server=server), expect_quiet=False) as service:
        began = time.monotonic()
        with service.open("/sse/live") as stream:
            first = stream.rest()
            # from four fifths of a second to all of it, and what the wheel takes to see it
            assert 0.79 < time.monotonic() - began < 1.6
            assert stream.parser.retry is not None
        with service.open("/sse/live", cursor=stream.parser.last_event_id) as again:
            following = again.take(5)
        numbers = [event.data["n"] for event in first + following]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        wait_until(lambda: len(lines) == 2)
        assert [line["reason"] for line in lines] == ["lifetime", "left"]


def test_streams_that_begin_together_do_not_end_together() -> None:
    delivery = Delivery(ServerConfig(max_lifetime=100))
    ends = [delivery.deadline(1000.0) for _ in range(200)]
    assert min(ends) >= 1080
    assert max(ends) <= 1100
    assert max(ends) - min(ends) > 10
    assert Delivery(ServerConfig()).deadline(1000.0) == float("inf")


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("path", ["/sse/live", "/sse?sources=live,waiting"])
def test_a_stream_ends_when_its_clients_right_to_it_does(
    direct: bool, path: str, lines: Lines, expiring: pytest.MonkeyPatch
) -> None:
    server = ServerConfig(direct=direct)
    with serving(settings_of(enable(live, linger=60), waiting, server=server), expect_quiet=False) as service:
        with service.open(path) as stream:
            events = stream.rest()
            ends = [event for event in events if event.event == "stream.end"]
            expected = {"/sse/live": ["live"]}.get(path, ["live", "waiting"])
            assert [event.data for event in ends] == [{"source": name, "reason": "expired"} for name in expected]
            assert events[-len(ends) :] == ends
            assert stream.parser.retry is not None  # whoever has a new right comes back
            assert len({event.id for event in ends} | {events[-len(ends) - 1].id}) == 1
        expiring.undo()
        with service.open(path, cursor=ends[-1].id) as again:
            # the note 0 is of the other source, whose run is a new one
            live_events = [event for event in again.take(10) if event.event == "note" and event.data["n"]]
            last = max(event.data["n"] for event in events if event.event == "note" and event.data.get("n"))
            assert live_events[0].data["n"] == last + 1
        wait_until(lambda: len(lines) == 2)
        assert [line["reason"] for line in lines] == ["expired", "left"]


def test_every_stream_leaves_one_line_when_it_ends(lines: Lines) -> None:
    with serving(settings_of(three, waiting), expect_quiet=False) as service:
        with service.open("/sse/three") as stream:
            size = sum(len(chunk) for chunk in stream.chunks) - len(b"retry: 2000\nid: .0\n\n") - 22
        wait_until(lambda: len(lines) == 1)
        (line,) = lines
        assert line.pop("seconds") < 5
        assert line == {
            "address": "127.0.0.1",
            "sources": "three",
            "events": 3,
            "bytes": size,
            "reason": "over",
            "lag": 0,
        }
        with service.open("/sse?sources=three,waiting") as stream:
            stream.take(4)
        wait_until(lambda: len(lines) == 2)
        assert {key: lines[1][key] for key in ("sources", "events", "reason")} == {
            "sources": "three,waiting",
            "events": 4,
            "reason": "left",
        }


def test_no_line_is_left_by_what_was_no_stream(lines: Lines) -> None:
    with serving(settings_of(three, limits=LimitsConfig(new_streams=0.2))) as service:
        _read(service)
        wait_until(lambda: len(lines) == 1)
        assert _read(service) == []
        assert service.get("/sse/unknown").status_code == 404
        assert httpx2.head(service.url + "/sse/three", trust_env=False).status_code == 200
        assert service.get("/healthz").status_code == 200
    assert len(lines) == 1


@pytest.mark.parametrize("direct", [True, False])
def test_the_line_says_that_a_client_took_nothing_and_how_far_it_was_behind(direct: bool, lines: Lines) -> None:
    @source(shared=True)
    async def heavy() -> AsyncIterator[Heavy]:
        while True:
            yield Heavy(text="x" * 10_000)
            await asyncio.sleep(0.001)

    server = ServerConfig(send_timeout=0.5, direct=direct)
    with running(settings_of(heavy, server=server)) as service:
        with Raw(service, buffer=4096) as client:
            client.ask("/sse/heavy")
            wait_until(lambda: lines)
        (line,) = lines
        assert line["reason"] == "slow"
        assert line["lag"] > 10
        assert line["bytes"] > 10_000 * line["events"]


def test_the_line_says_that_the_service_has_sent_its_client_away(lines: Lines) -> None:
    with running(settings_of(live), expect_quiet=False) as service:
        with service.open("/sse/live") as stream:
            stream.take(1)
            service.server.should_exit = True
            stream.rest()
        wait_until(lambda: lines)
    assert [line["reason"] for line in lines] == ["drained"]


@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson"])
def test_that_a_right_has_ended_is_json_where_the_events_are(media_type: str, expiring: None) -> None:
    with serving(settings_of(waiting)) as service:
        response = service.get("/sse/waiting", headers={"accept": media_type})
        lines = response.json() if media_type == "application/json" else map(json.loads, response.text.split())
        assert [(line["event"], line["data"]) for line in lines] == [
            ("note", {"n": 0}),
            ("stream.end", {"source": "waiting", "reason": "expired"}),
        ]
