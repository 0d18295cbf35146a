"""What /metrics says is what has happened, in words that the configuration bounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
import yaml
from fastapi import Depends, HTTPException
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pydantic import AfterValidator

from eventmux import SourceError, source
from eventmux.app import create_app
from eventmux.catalog import EnabledSource
from eventmux.config import LimitsConfig, ServerConfig
from eventmux.history import FRAME_OVERHEAD
from eventmux.hub import Hub, Start, Wanted
from eventmux.meter import Histogram
from eventmux.policy import Bounds, Restart
from eventmux.selection import Selection
from eventmux.step import Piece
from eventmux.web.formats import SSE, format_of
from eventmux.web.gathering import WorkersCollector
from eventmux.web.server import bind, make_server
from eventsource import PATIENCE, wait_until
from raw import Feed, Note
from service import Client, enable, serving, settings_of
from taking import Taking

DOCS = Path(__file__).parents[1] / "docs"
OWN = re.compile(r"eventmux_[a-z_]+")


def families(service: Client) -> list[Any]:
    answer = service.get("/metrics")
    assert answer.status_code == 200
    return list(parse_text(answer.text))


def metrics(service: Client) -> dict[str, float]:
    """Every sample by its name and the values of its labels: `eventmux_runs clock running`."""
    return {
        " ".join([sample.name, *(sample.labels[label] for label in sorted(sample.labels, key=_order))]): sample.value
        for family in families(service)
        for sample in family.samples
    }


def _order(label: str) -> tuple[bool, str]:
    return label != "source", label


def value(service: Client, name: str) -> float:
    return metrics(service)[f"eventmux_{name}"]


def wait_for(service: Client, name: str, expected: float) -> None:
    wait_until(lambda: value(service, name) == expected, f"{name} to be {expected}")


@source
async def endless() -> AsyncIterator[Note]:
    yield Note(n=1)
    await asyncio.Event().wait()


@source
async def three() -> AsyncIterator[Note]:
    for n in range(3):
        yield Note(n=n)


def fussy(text: str) -> str:
    if text:
        raise KeyError(text)
    return text


@source
async def odd(text: Annotated[str, AfterValidator(fussy)] = "") -> AsyncIterator[Note]:
    yield Note(n=0)


def test_each_event_is_counted_once_for_its_source_and_once_for_each_client() -> None:
    feed = Feed(history=Bounds(events=1_000))
    with serving(settings_of(feed.source)) as service, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(service.open("/sse/feed")) for _ in range(7)]
        for n in range(20):
            feed.say(Note(n=n))
        opening = {len(b"retry: 2000\nid: %b\n\n" % stream.parser.last_event_id.encode()) for stream in streams}
        assert len(opening) == 1
        for stream in streams:
            assert [got.data["n"] for got in stream.take(20)] == list(range(20))
        found = metrics(service)
        assert 20 == found["eventmux_events_appended_total feed"]
        assert 140 == found["eventmux_events_delivered_total feed"]
        assert 140 == found["eventmux_delivery_lag_seconds_count"]
        assert 0 < found["eventmux_delivery_lag_seconds_sum"] < 140
        assert 7 == found["eventmux_streams_open"] == found["eventmux_source_streams_open feed"]
        assert 7 == found["eventmux_streams_opened_total"] == found["eventmux_source_streams_opened_total feed"]
        stack.close()
        wait_for(service, "streams_open", 0)
        assert 0 == value(service, "source_streams_open feed")
        assert 7 == value(service, "source_streams_opened_total feed")


def test_bytes_are_those_of_the_body_without_its_beginning() -> None:
    with serving(settings_of(three)) as service:
        text = service.get("/sse/three").content
        opening = text.index(b"\n\n") + 2
        assert len(text) - opening == value(service, "delivered_bytes_total")
        assert 3 == value(service, "events_delivered_total three")


def test_a_merged_stream_counts_each_event_for_its_own_source() -> None:
    one, two = Feed("one"), Feed("two")
    with serving(settings_of(one.source, two.source)) as service:
        with service.open("/sse?sources=one,two") as a, service.open("/sse?sources=one,two&limit=10") as b:
            for n in range(6):
                one.say(Note(n=n))
            for n in range(3):
                two.say(Note(n=n))
            a.take(9)
            b.take(9)
            found = metrics(service)
        assert (12, 6) == tuple(found[f"eventmux_events_delivered_total {name}"] for name in ("one", "two"))
        assert (2, 2) == tuple(found[f"eventmux_source_streams_open {name}"] for name in ("one", "two"))
        assert 2 == found["eventmux_streams_open"]
        assert 18 == found["eventmux_delivery_lag_seconds_count"]


def test_what_a_client_did_not_ask_for_is_not_delivered() -> None:
    feed = Feed()
    with serving(settings_of(feed.source)) as service, service.open("/sse/feed?events=other"):
        feed.say(Note(n=1))
        wait_for(service, "events_appended_total feed", 1)
        assert 0 == value(service, "events_delivered_total feed")


def test_what_is_replayed_has_no_lag_and_its_size_is_seen() -> None:
    feed = Feed(history=Bounds(events=1_000))
    with serving(settings_of(enable(feed.source, linger=60)), expect_quiet=False) as service:
        with service.open("/sse/feed") as stream:
            feed.say(Note(n=0))
            cursor = stream.take(1)[0].id
        for n in range(1, 41):
            feed.say(Note(n=n, text="x" * 1_000))  # more than one write of the replay
        wait_for(service, "events_appended_total feed", 41)
        with service.open("/sse/feed", cursor=cursor) as stream:
            assert [got.data["n"] for got in stream.take(40)] == list(range(1, 41))
            feed.say(Note(n=41))
            stream.take(1)
            found = metrics(service)
        assert 42 == found["eventmux_events_delivered_total feed"]
        assert 2 == found["eventmux_delivery_lag_seconds_count"]
        assert (1, 40) == tuple(found[f"eventmux_resume_replay_events_{part}"] for part in ("count", "sum"))
        assert (0, 1) == tuple(found[f"eventmux_resume_replay_events_bucket {bound}"] for bound in ("30.0", "100.0"))


def test_gaps_are_counted_by_source_and_reason() -> None:
    feed = Feed(history=Bounds(events=5))
    with serving(settings_of(enable(feed.source, linger=60), three), expect_quiet=False) as service:
        with service.open("/sse/feed") as stream:
            feed.say(Note(n=0))
            cursor = stream.take(1)[0].id
        for n in range(1, 41):
            feed.say(Note(n=n))
        wait_for(service, "events_appended_total feed", 41)
        for brought, reason in ((cursor, "evicted"), ("AAAA.7", "restarted"), ("nonsense", "unknown")):
            with service.open("/sse/feed", cursor=brought) as stream:
                assert reason == stream.take(1)[0].data["reason"]
            assert 1 == value(service, f"gaps_total feed {reason}")
        assert 0 == value(service, "gaps_total feed lagged")
        assert 0 == value(service, "gaps_total three evicted")


@contextlib.contextmanager
def stalled(service: Client, path: str) -> Iterator[socket.socket]:
    """A client that takes nothing."""
    client = socket.socket()
    with client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode())
        yield client


@source(shared=True)
async def hot() -> AsyncIterator[Note]:
    n = 0
    while True:
        n += 1
        yield Note(n=n, text="x" * 4_000)
        await asyncio.sleep(0.0005)


def test_a_client_that_takes_nothing_is_counted_where_it_is_cut_off() -> None:
    with serving(settings_of(hot, server=ServerConfig(send_timeout=0.2))) as service, stalled(service, "/sse/hot"):
        wait_for(service, "slow_disconnects_total send_timeout", 1)
        assert 0 == value(service, "slow_disconnects_total overflow")


@pytest.mark.anyio
@pytest.mark.parametrize(("overflow", "expected"), [("disconnect", (1, 0)), ("skip", (0, 1))])
async def test_one_that_lags_too_far_is_counted_as_cut_off_or_as_a_gap(
    anyio_backend: str, overflow: str, expected: tuple[int, int]
) -> None:
    many = 50

    @source(shared=True)
    async def burst() -> AsyncIterator[Note]:
        for n in range(many):
            yield Note(n=n)
        await asyncio.Event().wait()

    hub = Hub()
    enabled = enable(burst, history=Bounds(events=5), overflow=overflow)
    wanted = [Wanted(enabled, enabled.validate({}))]
    client = Taking(hub, wanted)
    tally = hub.meter.of("burst")
    while tally.appended < many:
        await asyncio.sleep(0)
    client.subscription.is_held = False
    client.subscription.advance(0.0)
    assert expected == (hub.meter.slow["overflow"], tally.gaps["lagged"])
    await hub.close()


def test_runs_are_counted_by_their_state_with_failures_and_restarts() -> None:
    @source(shared=True)
    async def ill() -> AsyncIterator[Note]:
        raise SourceError("no upstream")
        yield Note(n=0)

    restart = Restart(backoff=0.01, max_backoff=60, attempts=3, quarantine=60)
    with serving(settings_of(enable(ill, restart=restart), endless, enable(three, linger=60)), expect_quiet=False) as (
        service
    ):
        with service.open("/sse/ill") as stream, service.open("/sse/endless") as other:
            stream.take(3)
            other.take(1)
            assert b"stream.end" in service.get("/sse/three").content
            wait_for(service, "runs ill quarantined", 1)
            found = metrics(service)
        states = {
            name: {
                state: found[f"eventmux_runs {name} {state}"]
                for state in ("idle", "running", "restarting", "quarantined", "over")
            }
            for name in ("ill", "endless", "three")
        }
        none = dict.fromkeys(states["ill"], 0)
        assert {
            "ill": none | {"quarantined": 1},
            "endless": none | {"running": 1},
            "three": none | {"over": 1},
        } == states
        assert 3 == found["eventmux_run_failures_total ill"]
        assert 2 == found["eventmux_run_restarts_total ill"]
        assert 0 == found["eventmux_run_failures_total endless"] == found["eventmux_run_restarts_total endless"]


def test_the_history_is_measured_by_source() -> None:
    feed = Feed(history=Bounds(events=10))
    with serving(settings_of(feed.source, limits=LimitsConfig(streams=77, runs=33, history=5_000_000))) as service:
        with service.open("/sse/feed") as stream:
            for n in range(10, 40):
                feed.say(Note(n=n))
                stream.take(1)
            found = metrics(service)
        size = len(b'event: note\ndata: {"n":10,"text":""}\n\n') + FRAME_OVERHEAD
        assert (10, 10 * size) == tuple(found[f"eventmux_history_{unit} feed"] for unit in ("events", "bytes"))
        limits = [found[f"eventmux_{name}"] for name in ("streams_limit", "runs_limit", "history_limit_bytes")]
        assert [77, 33, 5_000_000] == limits


@pytest.mark.parametrize(
    ("path", "post", "reason"),
    [
        ("/sse/nothing", None, "not_found"),
        ("/sse?sources=three,nothing", None, "not_found"),
        ("/sse", None, "invalid"),
        ("/sse/three?surplus=1", None, "invalid"),
        ("/sse/three?since=never", None, "invalid"),
        ("/sse/three", {"content": b"x" * 2_000_000, "headers": {"content-type": "application/json"}}, "too_large"),
        ("/sse/three", {"content": b"x", "headers": {"content-type": "text/plain"}}, "invalid"),
        ("/sse/missing", None, "unavailable"),
        ("/sse/odd?text=a", None, "failed"),
        ("/sse/full", None, "full"),
    ],
)
def test_who_gets_no_stream_is_counted_by_the_reason(path: str, post: Mapping[str, Any] | None, reason: str) -> None:
    missing = EnabledSource("missing", three, "test", unavailable="no key")
    full = EnabledSource("full", endless, "test", policy=enable(endless, max_runs=1).policy)
    with serving(settings_of(three, missing, odd, full)) as service, service.open("/sse/full") as first:
        first.take(1)
        service.post(path, **post) if post else service.get(path)
        assert {reason: 1} == refused(service)


def refused(service: Client) -> dict[str, float]:
    begin = "eventmux_refused_total "
    return {
        name.removeprefix(begin): count for name, count in metrics(service).items() if name.startswith(begin) and count
    }


def test_who_comes_while_the_service_goes_down_is_counted_and_sent_away() -> None:
    with serving(settings_of(three)) as service:
        assert 0 == value(service, "draining")
        service.hub.drain()
        assert 200 == service.get("/sse/three", headers={"accept": "text/event-stream"}).status_code
        assert 503 == service.get("/sse/three", headers={"accept": "application/json"}).status_code
        assert {"draining": 2} == refused(service)
        assert 1 == value(service, "draining")


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "invalid"), (401, "unauthorized"), (403, "forbidden"), (429, "rate"), (500, "failed"), (503, "unavailable")],
)
def test_what_a_dependency_refuses_is_counted_by_its_status(status: int, reason: str) -> None:
    def guard() -> None:
        raise HTTPException(status)

    with serving_app(dependencies=[Depends(guard)]) as service:
        assert status == service.get("/sse/three").status_code
        assert {reason: 1} == refused(service)


@contextlib.contextmanager
def serving_app(**options: Any) -> Iterator[Client]:
    settings = settings_of(three)
    app, sock = create_app(settings, **options), bind("127.0.0.1", 0)
    server = make_server(app, settings.config.server)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[sock]),))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Client(f"http://127.0.0.1:{sock.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def test_what_is_no_stream_is_not_refused_one() -> None:
    with serving(settings_of(three)) as service:
        assert 404 == service.get("/favicon.ico").status_code
        assert {} == refused(service)


def test_two_apps_in_one_process_share_no_number() -> None:
    before = {family.name for family in REGISTRY.collect()}
    with serving(settings_of(three)) as one, serving(settings_of(three)) as two:
        one.get("/sse/three")
        assert (1, 0) == (value(one, "streams_opened_total"), value(two, "streams_opened_total"))
        assert before == {family.name for family in REGISTRY.collect()}
    assert not [name for name in before if name.startswith("eventmux")]


def test_metrics_come_in_the_format_that_is_asked_for() -> None:
    with serving(settings_of(three)) as service:
        text = service.get("/metrics")
        assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
        openmetrics = service.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")
        names = {family.name for family in parse_openmetrics(openmetrics.text)}
        assert names == {family.name for family in parse_text(text.text)}


def test_names_follow_the_conventions_of_prometheus() -> None:
    with serving(settings_of(three)) as service:
        found = families(service)
        assert len(found) == len({family.name for family in found})
        own = [family for family in found if family.name.startswith("eventmux_")]
        assert {family.name for family in found} - {family.name for family in own} >= {
            "process_open_fds",
            "python_info",
        }
        for family in own:
            assert family.documentation.endswith(".")
            assert OWN.fullmatch(family.name)
            is_counter = any(sample.name.endswith("_total") for sample in family.samples)
            assert is_counter == (family.type == "counter")
            assert not re.search(r"_(ms|milliseconds|kb|count|sum|bucket)$", family.name)


def test_buckets_rise_and_the_last_is_the_count() -> None:
    histogram = Histogram([1, 10])
    for value_, weight in ((0, 1), (1, 2), (2, 4), (10, 8), (11, 16)):
        histogram.add(value_, weight)
    assert ([3, 12, 16], 2 + 8 + 80 + 176) == (histogram.counts, histogram.sum)
    with serving(settings_of(three)) as service:
        service.get("/sse/three")
        found = metrics(service)
        buckets = [count for name, count in found.items() if name.startswith("eventmux_delivery_lag_seconds_bucket")]
        assert sorted(buckets) == buckets
        assert buckets[-1] == found["eventmux_delivery_lag_seconds_count"]


def test_ten_thousand_different_clients_add_no_series() -> None:
    """Parameters, cursors, unknown sources, filters, headers and paths: none of them becomes a name."""
    with serving(settings_of(enable(echo, max_runs=50)), expect_quiet=False) as service:
        service.get("/sse/echo")
        before = set(metrics(service))
        with httpx2.Client(base_url=service.url, timeout=PATIENCE, trust_env=False) as client:
            for n in range(200):
                client.get(f"/sse/echo?text=t{n}", headers={"accept": "application/json"})
                client.get(f"/sse/echo?events=e{n}&limit=1", headers={"last-event-id": f"A{n}.{n}"})
                client.get(f"/sse/unknown-{n}")
                client.get(f"/sse?sources=echo,s{n}")
                client.get(f"/sse/echo?p{n}={n}", headers={"traceparent": f"00-{n:032x}-{n:016x}-01"})
                client.get(f"/{n}", headers={"user-agent": f"u{n}", "x-forwarded-for": f"10.0.{n % 250}.1"})
        meter = service.hub.meter
        enabled = enable(echo)

        class Nobody:
            def write(self, piece: Piece, now: float) -> bool:
                return True

            def end(self) -> None: ...

            def fail(self) -> None: ...

        async def subscribe() -> None:
            hub = Hub(meter=meter)
            for n in range(8_800):
                wanted = [Wanted(enabled, enabled.validate({"text": str(n)}))]
                selection = Selection(format_of(SSE, qualify=False), frozenset({f"e{n}"}), n + 1)
                subscription = hub.subscribe(wanted, Start(since=0, principal=f"p{n}"), selection)
                subscription.start(Nobody())
                subscription.close()
            await hub.close()

        asyncio.run(subscribe())
        assert before == set(metrics(service))
        assert ["echo"] == list(meter.tallies)


@source
async def echo(text: str = "") -> AsyncIterator[Note]:
    yield Note(n=0, text=text)


def documented() -> dict[str, set[str]]:
    """The metrics of the table in operations.md, with their labels."""
    text = (DOCS / "operations.md").read_text("utf-8")
    rows = re.findall(r"^\| `(eventmux_\w+)` \| (.*?) \|", text, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def all_families() -> list[Any]:
    """Also those that only a service of several workers has."""
    with serving(settings_of(three)) as service:
        return [*families(service), *WorkersCollector(0, [], [1], {}, bool).collect()]


def exported() -> dict[str, set[str]]:
    return {
        family.name + ("_total" if family.type == "counter" else ""): {
            label for sample in family.samples for label in sample.labels if label != "le"
        }
        for family in all_families()
        if family.name.startswith("eventmux_")
    }


def test_every_metric_is_documented_with_its_labels_and_no_other() -> None:
    assert exported() == documented()


def known_names() -> set[str]:
    return {sample.name for family in all_families() for sample in family.samples} | {"up"}


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:eventmux|process|python)_\w+|\bup\b", expression))


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    board = json.loads((DOCS / "grafana.json").read_text("utf-8"))
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(expressions) >= len(panels) >= 10
    assert all(metrics_in(expression) for expression in expressions)
    assert set() == set().union(*map(metrics_in, expressions)) - known_names()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in board["panels"]]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert all(0 <= x < 24 for x, _ in cells)


def test_the_alerts_are_rules_about_metrics_that_there_are() -> None:
    rules = yaml.safe_load((DOCS / "alerts.yaml").read_text("utf-8"))
    assert ["groups"] == list(rules)
    found = [rule for group in rules["groups"] for rule in group["rules"]]
    assert all(group.keys() <= {"name", "interval", "rules"} and group["name"] for group in rules["groups"])
    names = known_names()
    for rule in found:
        assert rule.keys() == {"alert", "expr", "labels", "annotations"} | (rule.keys() & {"for"})
        assert re.fullmatch(r"Eventmux[A-Za-z]+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert {"summary", "description"} == rule["annotations"].keys()
        assert metrics_in(rule["expr"])
        assert metrics_in(rule["expr"]) <= names
        assert rule["expr"].count("(") == rule["expr"].count(")")
    assert len(found) == len({rule["alert"] for rule in found})
