"""Behind Debian's Caddy, with the file of docs/deployment: what test_nginx.py promises, where Caddy could fail it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import Edge, caddy
from eventsource import wait_until
from follower import following
from raw import Feed, Running, numbers, running
from restart import restartable
from service import enable, settings_of
from test_nginx import CLOCK, QUICK, add_whoami, both_versions

pytestmark = pytest.mark.needs("caddy")


@pytest.fixture
def feed() -> Feed:
    return Feed(linger=60)


@pytest.fixture
def service(feed: Feed) -> Iterator[Running]:
    with running(settings_of(enable(feed.source), server=QUICK), prepare=add_whoami) as service:
        yield service


@pytest.fixture
def edge(service: Running, tmp_path: Path) -> Iterator[Edge]:
    with caddy(service.url, tmp_path) as edge:
        yield edge


@both_versions
def test_each_event_arrives_before_the_next_one_is_made_and_heartbeats_pass(
    edge: Edge, feed: Feed, http2: bool
) -> None:
    with edge.open("/sse/feed", http2=http2) as stream:
        assert stream.response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert "content-encoding" not in stream.response.headers
        for number in range(50):
            feed.note(number)
            assert [number] == numbers(stream.take(1))
        beats = len(stream.parser.comments)
        for chunk in stream.chunks:
            stream.parser.feed(chunk)
            if len(stream.parser.comments) >= beats + 3:
                break
        assert len(stream.parser.comments) >= beats + 3


@both_versions
def test_a_client_that_has_gone_is_not_served_on(service: Running, edge: Edge, http2: bool) -> None:
    for _ in range(3):
        with edge.open("/sse/feed", http2=http2):
            assert service.hub.subscriptions >= 1
    wait_until(lambda: service.hub.subscriptions == 0, "the service to hear that its clients have gone")


@both_versions
def test_a_client_that_is_cut_off_anywhere_goes_on_where_it_was(edge: Edge, feed: Feed, http2: bool) -> None:
    with following(f"{edge.url}/sse/feed", cuts=10, seed=5, verify=edge.trust, http2=http2) as follower:
        total = 0
        while follower.cuts_left or total < 100:
            feed.note(*range(total, total + 5))
            total += 5
            wait_until(lambda end=total: len(follower.numbers) >= end or follower.error, "the events to come")
            assert not follower.error
        assert list(range(total)) == follower.numbers
    assert {200} == set(follower.statuses)


def test_the_service_sees_the_address_of_the_client_and_nothing_that_it_claims(edge: Edge) -> None:
    claims = {"x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "gopher"}
    seen = edge.get("/whoami", headers=claims).json()
    host = edge.url.removeprefix("https://")
    assert {"client": "127.0.0.1", "scheme": "https", "host": host, "forwarded": ["127.0.0.1"], "size": 0} == seen


def test_what_is_for_those_inside_is_not_to_be_had(edge: Edge) -> None:
    assert [404, 404] == [edge.get(path).status_code for path in ("/metrics", "/readyz")]
    assert [200, 200] == [edge.get(path).status_code for path in ("/healthz", "/sources")]


@both_versions
def test_an_event_source_is_sent_away_to_come_back_while_the_service_is_down(tmp_path: Path, http2: bool) -> None:
    (tmp_path / "service").mkdir()
    with restartable(CLOCK, tmp_path / "service") as restarted, caddy(restarted.url, tmp_path) as edge:
        with edge.open("/sse/clock", http2=http2) as before:
            before.take(2)
            restarted.kill()
            before.rest()  # Caddy ends it in order, and EventSource comes back all the same
        waits = set()
        for _ in range(10):
            with edge.open("/sse/clock", http2=http2) as away:
                assert away.response.status_code == 200
                assert away.response.headers["content-type"] == "text/event-stream; charset=utf-8"
                assert [] == away.rest()
                waits.add(away.parser.retry)
        assert len(waits) > 1
        assert waits <= {1_000, 1_900, 2_800, 3_700}
        response = edge.get("/sources", http2=http2)
        assert (502, "3") == (response.status_code, response.headers["retry-after"])
        restarted.start()
        with edge.open("/sse/clock", http2=http2, cursor=before.cursor) as after:
            assert ["stream.gap", "tick"] == [event.event for event in after.take(2)]


def test_the_file_is_formatted_as_caddy_formats_it(tmp_path: Path) -> None:
    from edge import DEPLOYMENT

    done = subprocess.run(["caddy", "fmt", str(DEPLOYMENT / "Caddyfile")], capture_output=True, text=True, check=False)  # noqa: S607 - found by PATH
    assert (DEPLOYMENT / "Caddyfile").read_text("utf-8") == done.stdout
