"""Tickets: each opens one stream, once, and lets that stream come back; a URL that is found opens nothing. Where
tickets are kept makes no difference to this.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest

from credentials import DASH, LOCAL, OTHER, bearer, challenge, cookie, serving
from eventmux.access import EVERYBODY
from eventmux.config import AuthConfig
from eventmux.settings import Settings, load_settings
from eventsource import EventSource, Received, wait_until
from proxy import proxying
from raw import Running, running
from redis_server import RedisServer, program
from restart import free_port
from service import Service

CONFIG = """
sources: {open-clock: {}, secret: {}, mine: {}}
plugins: {dir: local}
server: {retry: 50}
auth:
  tokens:
    - {name: dash, token: dash-token, read: [open-clock, mine]}
    - {name: other, token: other-token, read: ["*"]}
  anonymous: {read: [open-clock]}
"""
KEY = "k" * 32
WEB_TOKENS = f"""
sources: {{open-clock: {{}}, secret: {{}}, mine: {{}}}}
plugins: {{dir: local}}
auth: {{ticket_lifetime: 60, jwt: {{algorithms: [HS256], key: {KEY}}}}}
"""


@pytest.fixture(scope="module", params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """A line of the configuration."""
    if request.param == "memory":
        yield "store: memory"
        return
    with RedisServer(program(), appendonly=False) as server:
        server.start()
        yield f"store: {server.url}"


@pytest.fixture(scope="module")
def service(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(store + CONFIG, tmp_path_factory.mktemp("tickets")) as service:
        yield service


def ticket_of(service: Service, headers: dict[str, str] | None = None) -> str:
    answer = service.post("/tickets", headers=headers or DASH)
    assert 201 == answer.status_code, answer.text
    return str(answer.json()["ticket"])


def status(service: Service, path: str, ticket: str, cursor: str | None = None) -> int:
    url = f"{service.url}{path}{'&' if '?' in path else '?'}ticket={ticket}"
    with EventSource(url, cursor=cursor) as stream:
        return int(stream.response.status_code)


@pytest.mark.parametrize("headers", [DASH, cookie("dash-token")], ids=["header", "cookie"])
def test_who_has_a_token_gets_a_ticket(service: Service, headers: dict[str, str]) -> None:
    answer = service.post("/tickets", headers=headers)
    assert (201, "no-store", 30) == (
        answer.status_code,
        answer.headers["cache-control"],
        answer.json()["expires_in"],
    )
    assert len(answer.json()["ticket"]) >= 22


def test_who_has_none_gets_no_ticket_and_none_for_a_ticket(service: Service) -> None:
    assert 'Bearer realm="eventmux"' == challenge(service.post("/tickets"))
    assert 401 == service.post("/tickets", headers=bearer("wrong")).status_code
    ticket = ticket_of(service)
    for path in ("/tickets", f"/tickets?ticket={ticket}"):
        assert 401 == service.post(path).status_code
    assert 401 == service.get(f"/sources?ticket={ticket}").status_code
    assert 200 == status(service, "/sse/mine", ticket), "and it is not used by that"


def test_a_ticket_opens_what_its_principal_may_read(service: Service) -> None:
    with EventSource(f"{service.url}/sse/mine?ticket={ticket_of(service)}") as stream:
        assert "token:dash" == stream.take(1)[0].data["principal"]
    assert 403 == status(service, "/sse/secret", ticket_of(service))
    assert 200 == status(service, "/sse?sources=secret,mine", ticket_of(service, OTHER))


def test_a_ticket_opens_one_stream_once(service: Service) -> None:
    ticket = ticket_of(service)
    assert 200 == status(service, "/sse/mine", ticket)
    for path in ("/sse/mine", "/sse/open-clock", "/sse/secret"):
        answer = service.get(f"{path}?ticket={ticket}")
        assert (401, 'Bearer realm="eventmux", error="invalid_token"') == (answer.status_code, challenge(answer))
        assert "get a new one by POST /tickets" in answer.json()["detail"]


@pytest.mark.parametrize("ticket", ["", "x", "x" * 32, "%00", "%C3%A9", "dash-token"])
def test_what_is_no_ticket_opens_nothing(service: Service, ticket: str) -> None:
    assert 401 == status(service, "/sse/open-clock", ticket)


def test_a_ticket_and_a_token_are_one_too_many(service: Service) -> None:
    for query in (f"ticket={ticket_of(service)}", "ticket="):
        answer = service.get(f"/sse/mine?{query}", headers=DASH)
        assert (400, 'Bearer realm="eventmux", error="invalid_request"') == (answer.status_code, challenge(answer))
    assert 400 == service.get("/sse/mine?ticket=a&ticket=b").status_code


def test_a_ticket_comes_before_a_cookie_that_the_browser_adds(service: Service) -> None:
    url = f"{service.url}/sse/secret?ticket={ticket_of(service, OTHER)}"
    with EventSource(url, headers=cookie("dash-token")) as stream:
        assert 200 == stream.response.status_code


def test_a_stream_that_was_not_opened_has_not_used_its_ticket(service: Service) -> None:
    ticket = ticket_of(service)
    assert 422 == status(service, "/sse/mine?limit=x", ticket)
    assert 404 == status(service, "/sse/nothing", ticket)
    assert 200 == httpx2.head(f"{service.url}/sse/mine?ticket={ticket}", trust_env=False).status_code
    assert 200 == status(service, "/sse/mine", ticket)


def test_a_client_that_is_turned_away_comes_back_with_its_ticket(store: str, tmp_path: Path) -> None:
    config = store + CONFIG.replace("mine: {}", "mine: {max_runs: 1, linger: 0}")
    with serving(config, tmp_path) as service:
        with service.open("/sse/mine", headers=DASH) as first:
            first.take(1)
            url = f"{service.url}/sse/mine?ticket={ticket_of(service)}"
            with EventSource(url) as stream:
                assert (200, []) == (stream.response.status_code, stream.rest())
        wait_until(lambda: not service.hub.subscriptions, "the first to be gone")

        def come_back() -> list[Received]:
            with EventSource(url) as stream:
                assert 200 == stream.response.status_code
                return [stream.take(1)[0]] if "content-length" not in stream.response.headers else []

        (event,) = wait_until(come_back, "its place, and its ticket, to be there again")
        assert 1 == event.data["n"]


def test_who_lets_too_many_tickets_lie_is_told_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventmux.tickets.MAX_UNUSED", 2)
    with serving(CONFIG, tmp_path) as service:
        assert [201, 201, 429] == [service.post("/tickets", headers=DASH).status_code for _ in range(3)]
        answer = service.post("/tickets", headers=DASH)
        assert 28 <= int(answer.headers["retry-after"]) <= 31
        assert 201 == service.post("/tickets", headers=OTHER).status_code


# A lost connection


def test_a_stream_by_ticket_survives_a_cut_connection(service: Service) -> None:
    with proxying(service.url) as proxy:
        ticket, cursor, numbers = ticket_of(service), None, []
        for _ in range(4):
            with EventSource(f"{proxy.url}/sse/mine?ticket={ticket}", cursor=cursor) as stream:
                numbers += [event.data["n"] for event in stream.take(3)]
                cursor = stream.cursor
                proxy.cut()
                with pytest.raises(httpx2.TransportError):
                    stream.take(1000)
    assert list(range(1, 13)) == numbers
    assert [200] * 4 == proxy.statuses


def test_only_the_proof_of_that_ticket_lets_it_in_again(service: Service) -> None:
    ticket, another = ticket_of(service), ticket_of(service)
    cursors = []
    for each in (ticket, another):
        with EventSource(f"{service.url}/sse/mine?ticket={each}") as stream:
            stream.take(1)
            cursors.append(stream.cursor)
    own, foreign = cursors
    assert ("~", "~") == (own[0], own[9])
    plain = own[10:]
    for cursor in (foreign, plain, f"~{plain}", f"~AAAAAAAA~{plain}", f"~~{plain}", "~", own[:9], "garbage"):
        assert 401 == status(service, "/sse/mine", ticket, cursor)
    assert 200 == status(service, "/sse/mine", ticket, own)
    assert 401 == service.get("/sse/open-clock", headers={"Last-Event-ID": own}).status_code, "it is no credential"


def test_the_cursor_may_stand_in_the_query_too(service: Service) -> None:
    ticket = ticket_of(service)
    with EventSource(f"{service.url}/sse/mine?ticket={ticket}") as stream:
        stream.take(1)
        cursor = stream.cursor
    assert 200 == status(service, f"/sse/mine?last_event_id={cursor}", ticket)


def test_a_finished_stream_by_ticket_is_told_not_to_come_back(service: Service) -> None:
    ticket = ticket_of(service)
    url = f"{service.url}/sse/mine?limit=2&ticket={ticket}"
    with EventSource(url) as stream:
        cursor = stream.rest()[-1].id
    with EventSource(url, cursor=cursor) as stream:
        assert 204 == stream.response.status_code


# Changes while it runs


@contextlib.contextmanager
def changing(text: str, path: Path) -> Iterator[tuple[Running, Callable[[str], None]]]:
    """A service, and what gives it other settings; from another file, so that it does not take them by itself, too."""

    def settings(text: str, name: str) -> Settings:
        (path / name).write_text(text)
        return load_settings(path / name, {})

    (path / "local").mkdir()
    (path / "local" / "own.py").write_text(LOCAL)
    with running(settings(text, "plugins.yaml"), expect_quiet=False) as service:
        yield service, lambda text: service.app.state.guard.apply(settings(text, "new.yaml"))


def test_tickets_survive_new_settings_and_end_with_their_token(store: str, tmp_path: Path) -> None:
    text = store + CONFIG
    with changing(text, tmp_path) as (service, apply):
        tickets = [ticket_of(service) for _ in range(3)]
        apply(text.replace("[open-clock, mine]", "[open-clock]"))
        assert 403 == status(service, "/sse/mine", tickets[0]), "what it may read is what its token may read now"
        assert 200 == status(service, "/sse/open-clock", tickets[0])
        apply(text.replace("dash-token", "new-token"))
        assert 401 == status(service, "/sse/open-clock", tickets[1])
        apply(text)
        assert 200 == status(service, "/sse/mine", tickets[2])


def test_a_ticket_of_a_web_token_is_good_only_under_the_rules_by_which_that_was_believed(
    store: str, tmp_path: Path
) -> None:
    text = store + WEB_TOKENS
    alice = bearer(jwt.encode({"sub": "alice", "eventmux": {"read": ["*"]}}, KEY))
    with changing(text, tmp_path) as (service, apply):
        unused, ticket = ticket_of(service, alice), ticket_of(service, alice)
        with EventSource(f"{service.url}/sse/mine?ticket={ticket}") as stream:
            stream.take(1)
            cursor = stream.cursor
        apply(text.replace("lifetime: 60", "lifetime: 50"))
        assert 200 == status(service, "/sse/mine", ticket, cursor)
        apply(text.replace(KEY, "j" * 32))  # as after a key has leaked
        assert 401 == status(service, "/sse/mine", unused)
        assert 401 == status(service, "/sse/mine", ticket, cursor)
        apply(text)
        assert 200 == status(service, "/sse/mine", ticket, cursor)


def test_a_ticket_that_is_not_used_in_time_opens_nothing(store: str, tmp_path: Path) -> None:
    with serving(f"{store}{CONFIG}  ticket_lifetime: 1\n", tmp_path) as service:
        answer = service.post("/tickets", headers=DASH).json()
        assert 1 == answer["expires_in"]
        ends = time.monotonic() + 1.05
        wait_until(lambda: time.monotonic() > ends, "the ticket to be too old")
        assert 401 == status(service, "/sse/mine", answer["ticket"])


# Logs


def test_a_ticket_is_in_no_log_of_a_plain_uvicorn(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "own.py").write_text(LOCAL)
    (tmp_path / "plugins.yaml").write_text(CONFIG)
    port, log = free_port(), tmp_path / "uvicorn.log"
    command = [sys.executable, "-m", "uvicorn", "eventmux.app:create_app", "--factory", "--log-level", "debug"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--port", str(port)], cwd=tmp_path, stdout=out, stderr=out)
    try:
        wait_until(lambda: b"Uvicorn running" in log.read_bytes(), "uvicorn to listen")
        service = Service(f"http://127.0.0.1:{port}", None)  # type: ignore[arg-type] # nobody looks at its hub
        tickets = [ticket_of(service) for _ in range(6)]
        assert 200 == status(service, "/sse/mine?events=mine&limit=1", tickets[0])
        assert 200 == status(service, "/sse?sources=mine,open-clock", tickets[1])
        assert 422 == status(service, "/sse/mine?limit=x", tickets[2])
        assert tickets[2] not in service.get(f"/sse/mine?limit=x&ticket={tickets[2]}").text
        assert 404 == status(service, "/nothing", tickets[3])
        assert 401 == status(service, "/sources", tickets[4])
        encoded = service.get(f"/sse/mine?limit=1&%74icket={tickets[5]}&events=mine")
        assert 200 == encoded.status_code
        shown = wait_until(lambda: b"GET /nothing" in (text := log.read_bytes()) and text, "the log").decode()
    finally:
        process.terminate()
        process.wait(20)
    assert "GET /sse/mine?events=mine&limit=1 HTTP/1.1" in shown
    assert 'GET /nothing HTTP/1.1" 404' in shown
    assert not [ticket for ticket in tickets if ticket in log.read_text()]


# Nothing of it is shown


def test_nothing_of_a_ticket_is_in_what_a_test_prints(service: Service) -> None:
    ticket = ticket_of(service)
    from pydantic import SecretStr

    from eventmux.web.credentials import TICKET, _take_tickets

    scope: dict[str, Any] = {"query_string": f"a=1&ticket={ticket}&b=%20".encode()}
    _take_tickets(scope)
    assert b"a=1&b=%20" == scope["query_string"]
    assert ticket not in repr(scope)
    assert [SecretStr(ticket)] == scope[TICKET]
    assert AuthConfig().ticket_lifetime == 30
    assert EVERYBODY.mark == b""
