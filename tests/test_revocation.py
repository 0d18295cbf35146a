"""A token, or a right of it, that is taken away while streams are open: they end, and those of others go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from credentials import DASH, OTHER, bearer, serving
from eventsource import EventSource, wait_until

KEY = "k" * 32
TOKENS = """
    - {name: dash, token: dash-token, read: [open-clock, "price-*"]}
    - {name: other, token: other-token, read: ["*"]}
"""
ALL = f"""
  tokens: {TOKENS}
  anonymous: {{read: [open-clock]}}
  jwt: {{algorithms: [HS256], key: {KEY}}}
"""
ALICE = bearer(jwt.encode({"sub": "alice", "eventmux": {"read": ["open-clock"]}}, KEY))


def config(auth: str, sources: str = "open-clock: {}, price-gold: {}, secret: {}", direct: bool = True) -> str:
    section = f"auth: {auth}" if auth else ""
    return f"sources: {{{sources}}}\nplugins: {{dir: local}}\nserver: {{direct: {str(direct).lower()}}}\n{section}\n"


def end_of(stream: EventSource) -> list[Any]:
    return [event.data for event in stream.rest() if event.event == "stream.end"]


EXPIRED = {"source": "open-clock", "reason": "expired"}


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    ("after", "headers", "path", "status"),
    [
        (ALL.replace("dash-token", "dash-2"), DASH, "/sse/open-clock", 401),
        (ALL.replace('[open-clock, "price-*"]', '["price-*"]'), DASH, "/sse/open-clock", 403),
        (ALL.replace('[open-clock, "price-*"]', "[open-clock]"), DASH, "/sse?sources=open-clock,price-gold", 403),
        (ALL.replace("  anonymous: {read: [open-clock]}\n", ""), {}, "/sse/open-clock", 401),
        (ALL.replace(KEY, "j" * 32), ALICE, "/sse/open-clock", 401),
        (f"\n  tokens: {TOKENS}", ALICE, "/sse/open-clock", 401),
    ],
    ids=["token", "grant", "one of two", "anonymous", "key", "jwt"],
)
def test_a_stream_ends_when_the_right_to_it_is_taken_away_and_others_go_on(
    tmp_path: Path, direct: bool, after: str, headers: dict[str, str], path: str, status: int
) -> None:
    with serving(config(ALL, direct=direct), tmp_path) as service:
        with service.open(path, headers=headers) as stream, service.open("/sse/open-clock", headers=OTHER) as other:
            stream.take(2)
            other.take(2)
            (tmp_path / "plugins.yaml").write_text(config(after, direct=direct), "utf-8")
            assert "expired" in {end["reason"] for end in end_of(stream)}
            assert status == service.get(path, headers=headers).status_code
            assert ["tick"] * 50 == [event.event for event in other.take(50)]


def test_where_auth_comes_to_an_open_service_its_streams_end(tmp_path: Path) -> None:
    with serving(config(""), tmp_path) as service, service.open("/sse/open-clock") as stream:
        stream.take(2)
        (tmp_path / "plugins.yaml").write_text(config(f"\n  tokens: {TOKENS}"), "utf-8")
        assert [EXPIRED] == end_of(stream)
        assert 401 == service.get("/sse/open-clock").status_code


@pytest.mark.parametrize(
    "after",
    [
        "",
        ALL.replace("dash, token", "dash-2, token"),
        ALL.replace("other-token", "other-2"),
        ALL.replace('[open-clock, "price-*"]', '["*"]'),
    ],
    ids=["open", "renamed", "another", "more"],
)
def test_a_stream_goes_on_whose_right_is_still_there(tmp_path: Path, after: str) -> None:
    with serving(config(ALL), tmp_path) as service, service.open("/sse/open-clock", headers=DASH) as stream:
        stream.take(2)
        applied = service.get("/readyz")
        assert 200 == applied.status_code
        (tmp_path / "plugins.yaml").write_text(config(after, "open-clock: {}, price-gold: {}, mine: {}"), "utf-8")
        wait_until(lambda: "mine" in service.get("/readyz").text)
        assert ["tick"] * 50 == [event.event for event in stream.take(50)]


def test_a_source_that_goes_with_the_right_to_it_ends_alone(tmp_path: Path) -> None:
    before, after = ALL.replace('"price-*"', "price-gold"), ALL.replace(', "price-*"', "")
    with serving(config(before), tmp_path) as service:
        with service.open("/sse?sources=open-clock,price-gold", headers=DASH) as stream:
            stream.take(2)
            (tmp_path / "plugins.yaml").write_text(config(after, "open-clock: {}, secret: {}"), "utf-8")
            found = next(event for event in stream._events if event.event == "stream.end")
            assert {"source": "price-gold", "reason": "removed"} == found.data
            assert ["tick"] * 50 == [event.event for event in stream.take(50)]


def test_who_began_to_ask_before_the_right_was_taken_away_gets_no_stream_after_it(tmp_path: Path) -> None:
    with serving(config(ALL), tmp_path) as service:
        has_begun, go_on = threading.Event(), threading.Event()
        found: list[int] = []

        def body() -> Iterator[bytes]:
            yield b"{"
            has_begun.set()
            go_on.wait(5)
            yield b"}"

        def ask() -> None:
            headers = {**DASH, "content-type": "application/json"}
            found.append(service.post("/sse/open-clock", content=body(), headers=headers).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        assert has_begun.wait(5)
        wait_until(lambda: service.get("/sse/open-clock?limit=1", headers=DASH).status_code == 200)
        (tmp_path / "plugins.yaml").write_text(config(ALL.replace("dash-token", "dash-2")), "utf-8")
        wait_until(lambda: service.get("/sse/open-clock?limit=1", headers=DASH).status_code == 401)
        go_on.set()
        asking.join()
        assert [503] == found
