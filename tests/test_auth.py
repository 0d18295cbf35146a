"""Who may read what: tokens, the answers to those who may not, what is hidden, and a plugin's own way."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from credentials import DASH, LOCAL, OTHER, bearer, challenge, cookie, serving
from eventmux import Principal
from eventmux.access import EVERYBODY, NOBODY
from eventmux.errors import ConfigError
from eventmux.settings import load_settings
from eventsource import TRUST
from service import Service

CONFIG = """
sources: {open-clock: {}, price-gold: {}, secret: {}, mine: {}}
streams:
  prices: [price-gold, open-clock]
  secrets: [price-gold, secret]
plugins: {dir: local}
auth:
  tokens:
    - {name: dash, token: dash-token, read: [open-clock, "price-*", mine, "secrets*"]}
    - {name: other, token: other-token, read: ["*"]}
  anonymous: {read: [open-clock]}
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(CONFIG, tmp_path_factory.mktemp("auth")) as service:
        yield service


@pytest.fixture(scope="module")
def hiding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(CONFIG + "  hide: true\n", tmp_path_factory.mktemp("hiding")) as service:
        yield service


def reads(service: Service, path: str, headers: dict[str, str] | None = None) -> bool:
    with service.open(path, headers=headers or {}) as stream:
        return bool(stream.response.status_code == 200 and stream.take(1))


# Tokens


def test_a_token_reads_what_it_names_and_what_its_patterns_match(service: Service) -> None:
    assert reads(service, "/sse/open-clock", DASH)
    assert reads(service, "/sse/price-gold", DASH)
    assert reads(service, "/sse/prices", DASH)
    assert reads(service, "/sse?sources=open-clock,price-gold", DASH)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_of_a_token_is_read_in_any_case(service: Service, scheme: str) -> None:
    assert reads(service, "/sse/price-gold", {"Authorization": f"{scheme} dash-token"})


def test_a_token_in_a_cookie_does_the_same(service: Service) -> None:
    assert reads(service, "/sse/price-gold", cookie("dash-token"))


def test_the_header_wins_over_the_cookie(service: Service) -> None:
    assert reads(service, "/sse/secret", {**OTHER, **cookie("dash-token")})
    assert service.get("/sse/secret", headers={**DASH, **cookie("other-token")}).status_code == 403


def test_who_brings_nothing_reads_what_anonymous_may(service: Service) -> None:
    assert reads(service, "/sse/open-clock")


@pytest.mark.parametrize("path", ["/sse/secret", "/sse?sources=open-clock,secret", "/sse/prices", "/sse/secrets"])
def test_who_brings_nothing_and_needs_it_gets_401_without_an_error_code(service: Service, path: str) -> None:
    answer = service.get(path)
    assert (401, 'Bearer realm="eventmux"') == (answer.status_code, challenge(answer))
    assert "send Authorization: Bearer" in answer.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        bearer("wrong"),
        {"Authorization": "Bearer"},
        bearer("dash-tokem"),
        bearer("DASH-TOKEN"),
        {"Authorization": "Basic ZGFzaDpkYXNo"},
        {"Authorization": "dash-token"},
        cookie("wrong"),
        cookie(""),
        {**bearer("wrong"), **cookie("dash-token")},
    ],
)
@pytest.mark.parametrize("path", ["/sse/open-clock", "/sse/nothing", "/sources"])
def test_credentials_that_are_not_valid_are_never_anonymous(
    service: Service, headers: dict[str, str], path: str
) -> None:
    answer = service.get(path, headers=headers)
    assert (401, 'Bearer realm="eventmux", error="invalid_token"') == (answer.status_code, challenge(answer))
    assert {"detail": "the token is not valid: bring one that is"} == answer.json()


def test_two_authorizations_are_one_too_many(service: Service) -> None:
    answer = httpx2.get(
        f"{service.url}/sse/open-clock",
        headers=[("Authorization", "Bearer dash-token"), ("Authorization", "Bearer other-token")],
        trust_env=False,
        verify=TRUST,
    )
    assert (400, 'Bearer realm="eventmux", error="invalid_request"') == (answer.status_code, challenge(answer))


@pytest.mark.parametrize("path", ["/sse/secret", "/sse?sources=open-clock,secret"])
def test_a_token_that_may_not_gets_403_and_is_told_which_source(service: Service, path: str) -> None:
    answer = service.get(path, headers=DASH)
    assert (403, 'Bearer realm="eventmux", error="insufficient_scope"') == (answer.status_code, challenge(answer))
    assert {"detail": "'dash' may not read source 'secret': ask its operator, or use another token"} == answer.json()


def test_a_stream_is_read_by_who_may_read_all_its_members_and_its_name_grants_nothing(service: Service) -> None:
    answer = service.get("/sse/secrets", headers=DASH)
    assert 403 == answer.status_code
    assert "source 'secret' of stream 'secrets'" in answer.json()["detail"]
    assert reads(service, "/sse/secrets", OTHER)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_every_method_asks_for_the_token(service: Service, method: str) -> None:
    def status(headers: dict[str, str]) -> int:
        url = f"{service.url}/sse/secret"
        return httpx2.request(
            method, url, headers=headers, content=b"no json", trust_env=False, verify=TRUST
        ).status_code

    assert (401, 403) == (status({}), status(DASH))


def test_parameters_are_looked_at_after_who_asks(service: Service) -> None:
    assert 401 == service.get("/sse/price-gold?karat=x").status_code
    assert 403 == service.get("/sse/secret?limit=x", headers=DASH).status_code
    assert 422 == service.get("/sse/price-gold?karat=x", headers=DASH).status_code


def test_suggestions_name_only_what_may_be_read(service: Service) -> None:
    for headers, known in (({}, "open-clock"), (DASH, "mine, open-clock, price-gold, prices")):
        answer = service.get("/sse/secre", headers=headers)
        assert (404, f"no source or stream 'secre': known are {known}") == (answer.status_code, answer.json()["detail"])
    assert "did you mean 'secret'?" in service.get("/sse/secre", headers=OTHER).json()["detail"]


def test_the_catalog_lists_what_may_be_read(service: Service) -> None:
    def listed(headers: dict[str, str]) -> tuple[list[str], list[str]]:
        found = service.get("/sources", headers=headers).json()
        return [source["name"] for source in found["sources"]], [stream["name"] for stream in found["streams"]]

    assert (["open-clock"], []) == listed({})
    assert (["open-clock", "price-gold", "mine"], ["prices"]) == listed(DASH)
    assert (["open-clock", "price-gold", "secret", "mine"], ["prices", "secrets"]) == listed(OTHER)


def test_a_token_is_in_no_answer_and_no_log(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [
        service.get("/sse/secret", headers=DASH).text,
        service.get("/sse/secret", headers=bearer("dash-tokem")).text,
        service.get("/sse/price-gold?karat=x", headers=DASH).text,
        service.get("/readyz", headers=DASH).text,
    ]
    assert "dash-tok" not in "".join(answers) + caplog.text


# Reconnects


def test_a_reconnect_without_the_token_is_refused_and_never_anonymous(service: Service) -> None:
    with service.open("/sse/open-clock", headers=DASH) as stream:
        stream.take(2)
        cursor = stream.cursor
    assert cursor.startswith("~")
    for options in ({"headers": {"Last-Event-ID": cursor}}, {"params": {"last_event_id": cursor}}):
        answer = service.get("/sse/open-clock", **options)
        assert (401, 'Bearer realm="eventmux"') == (answer.status_code, challenge(answer))
        assert "opened with a token" in answer.json()["detail"]
    with service.open("/sse/open-clock", cursor=cursor, headers=DASH) as stream:
        assert "tick" == stream.take(1)[0].event


@pytest.mark.parametrize("rest", ["", "9fQ2", "9fQ2.x", "=.", "9fQ2.1,", "\xff.1", "x" * 5_000])
def test_a_cursor_of_which_only_the_mark_can_be_read_is_never_anonymous(service: Service, rest: str) -> None:
    cursor = f"~{rest}".encode("latin-1")
    headers = [(b"accept", b"text/event-stream"), (b"last-event-id", cursor)]
    answer = httpx2.get(f"{service.url}/sse/open-clock?limit=1", headers=headers, trust_env=False)
    assert 401 == answer.status_code
    assert 401 == service.get("/sse/open-clock", params={"limit": 1, "last_event_id": f"~{rest}"}).status_code


def test_an_anonymous_stream_has_a_cursor_without_a_mark_and_goes_on(service: Service) -> None:
    with service.open("/sse/open-clock") as stream:
        first = stream.take(2)
    assert not first[-1].id.startswith("~")
    with service.open("/sse/open-clock", cursor=first[-1].id) as stream:
        assert first[-1].data["n"] + 1 == stream.take(1)[0].data["n"]


def test_clients_of_one_log_have_each_a_cursor_of_its_own_kind(service: Service) -> None:
    with service.open("/sse/open-clock", headers=DASH) as known, service.open("/sse/open-clock") as unknown:
        ids = {event.id for _ in range(5) for event in known.take(1)}, {event.id for event in unknown.take(5)}
    assert [{True}, {False}] == [{text.startswith("~") for text in found} for found in ids]


@pytest.mark.parametrize("path", ["/sse/price-gold", "/sse/price-gold?events=tick", "/sse?sources=price-gold,mine"])
@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
def test_every_cursor_of_a_principal_is_marked(service: Service, path: str, accept: str) -> None:
    answer = service.get(f"{path}{'&' if '?' in path else '?'}limit=3", headers={**DASH, "Accept": accept})
    found = re.findall(r'^(?:id: |\{"id":")(.)', answer.text, re.MULTILINE)
    assert len(found) >= 3
    assert {"~"} == set(found)


def test_a_private_run_is_its_principals_and_the_source_knows_whose(service: Service) -> None:
    with service.open("/sse/mine", headers=DASH) as stream:
        first = stream.take(3)
    assert {"token:dash"} == {event.data["principal"] for event in first}
    with service.open("/sse/mine", cursor=first[-1].id, headers=DASH) as stream:
        assert 4 == stream.take(1)[0].data["n"]


def test_the_private_run_of_another_is_answered_like_one_that_there_never_was(service: Service) -> None:
    with service.open("/sse/mine", headers=DASH) as stream:
        theirs = stream.take(3)[-1].id
        unknown = f"~{'x' * 22}.3"
        answers = []
        for cursor in (theirs, unknown):
            with service.open("/sse/mine", cursor=cursor, headers=OTHER) as other:
                answers.append([(event.event, event.data) for event in other.take(2)])
    gap = ("stream.gap", {"source": "mine", "reason": "unknown", "missed": None})
    assert [gap, ("mine", {"n": 1, "principal": "token:other"})] == answers[0] == answers[1]


# What is hidden


FORBIDDEN = [
    ("GET", "/sse/{}", None),
    ("HEAD", "/sse/{}", None),
    ("POST", "/sse/{}", b"no json"),
    ("POST", "/sse/{}", b"{}"),
    ("PUT", "/sse/{}", None),
    ("OPTIONS", "/sse/{}", None),
    ("GET", "/sse/{}?limit=x&unknown=1", None),
    ("GET", "/sse?sources={}", None),
    ("GET", "/sse?sources=open-clock,{}", None),
    ("GET", "/sse?sources={0},{0}", None),
    ("GET", "/sse?sources=open-clock,{}&limit=x", None),
    ("GET", "/sse?sources=open-clock&{}.karat=1", None),
    ("POST", "/sse", b'{"sources": {"NAME": {"karat": "x"}}}'),
    ("POST", "/sse/prices", b'{"sources": {"NAME": {}}}'),
]


@pytest.mark.parametrize("name", ["secret", "secrets"])
@pytest.mark.parametrize("headers", [{}, DASH], ids=["anonymous", "token"])
@pytest.mark.parametrize(("method", "path", "body"), FORBIDDEN)
def test_what_is_hidden_is_answered_byte_for_byte_as_what_does_not_exist(
    hiding: Service, name: str, headers: dict[str, str], method: str, path: str, body: bytes | None
) -> None:
    def asked(name: str) -> tuple[int, bytes, bytes]:
        answer = hiding.request(
            method,
            path.format(name),
            headers={**headers, "Content-Type": "application/json"},
            content=body and body.replace(b"NAME", name.encode()),
        )
        head = b"\n".join(b": ".join(pair) for pair in answer.headers.raw if pair[0].lower() != b"date")
        return answer.status_code, head, answer.content.replace(name.encode(), b"NAME")

    absent = "zecret" if name == "secret" else "zecrets"
    assert asked(absent) == asked(name)
    if "{}" in path and method == "GET" and "karat" not in path:
        assert 404 == asked(name)[0] or "limit" in path


def test_what_is_hidden_is_in_no_list(hiding: Service) -> None:
    for path in ("/sources", "/readyz", "/openapi.json"):
        for headers in ({}, DASH):
            assert "secret" not in hiding.get(path, headers=headers).text
        assert "secret" in hiding.get(path, headers=OTHER).text
    assert {"open-clock"} == set(hiding.get("/readyz").json()["sources"])
    assert "/sse/prices" in hiding.get("/openapi.json", headers=DASH).json()["paths"]
    merged = hiding.get("/openapi.json").json()["paths"]["/sse"]["get"]
    assert ["open-clock"] == merged["parameters"][0]["schema"]["items"]["enum"]
    assert {"401", "403"} <= merged["responses"].keys()


PUBLISHING = """
sources: {open-clock: {}, board: {}, secret-board: {}}
plugins: {dir: local}
auth:
  hide: true
  tokens:
    - {name: dash, token: dash-token, read: [open-clock], publish: [board]}
    - {name: other, token: other-token, read: ["*"], publish: ["*"]}
"""

BOARDS = """
from eventmux import Inbox

class Note(Event):
    n: int

@source(shared=True)
async def board(inbox: Inbox[Note]) -> AsyncIterator[Tick]:
    async for note in inbox:
        yield Tick(n=note.n)

@source(shared=True)
async def secret_board(inbox: Inbox[Note]) -> AsyncIterator[Tick]:
    async for note in inbox:
        yield Tick(n=note.n)
"""


def test_what_may_not_be_published_to_is_in_no_list_and_what_may_is_whole(tmp_path: Path) -> None:
    with serving(PUBLISHING, tmp_path, LOCAL + BOARDS) as service:
        assert "secret-board" in service.get("/openapi.json", headers=OTHER).text
        shown = service.get("/openapi.json", headers=DASH)
        assert "secret-board" not in shown.text
        assert {"/sse/open-clock", "/publish/board"} == {
            path for path in shown.json()["paths"] if path.startswith(("/sse/", "/publish/"))
        }
        assert {"board.takes"} == {name for name in shown.json()["components"]["schemas"] if "board" in name}


def test_metrics_tell_of_what_is_hidden_only_those_who_may_read_it(hiding: Service) -> None:
    assert reads(hiding, "/sse/secret", OTHER)
    assert "secret" in hiding.get("/metrics", headers=OTHER).text
    shown = hiding.get("/metrics", headers=DASH).text
    assert "secret" not in shown
    assert 'eventmux_source_streams_opened_total{source="price-gold"}' in shown


def test_readiness_is_told_to_who_brings_nothing_but_not_to_a_wrong_token(hiding: Service) -> None:
    assert 200 == hiding.get("/readyz").status_code
    assert 401 == hiding.get("/readyz", headers=bearer("wrong")).status_code


# The document


def test_openapi_says_how_to_come_in_where_one_must(service: Service, tmp_path: Path) -> None:
    document = service.get("/openapi.json").json()
    assert {"bearer", "cookie", "ticket"} == document["components"]["securitySchemes"].keys()
    operation = document["paths"]["/sse/secret"]["get"]
    nothing: dict[str, list[str]] = {}  # as the anonymous may
    assert [{"bearer": []}, {"cookie": []}, {"ticket": []}, nothing] == operation["security"]
    assert {"401", "403"} <= operation["responses"].keys()
    assert [{"bearer": []}, {"cookie": []}, nothing] == document["paths"]["/sources"]["get"]["security"]
    for path, method in (("/metrics", "get"), ("/tickets", "post")):
        assert [{"bearer": []}, {"cookie": []}] == document["paths"][path][method]["security"]
    config = 'sources: {open-clock: {}}\nplugins: {dir: local}\nauth: {tokens: [{name: a, token: abc, read: ["*"]}]}'
    (tmp_path / "closed").mkdir()
    with serving(config, tmp_path / "closed") as closed:
        operation = closed.get("/openapi.json").json()["paths"]["/sse/open-clock"]["get"]
        assert [{"bearer": []}, {"cookie": []}, {"ticket": []}] == operation["security"]
    with serving("sources: {open-clock: {}}\nplugins: {dir: local}", tmp_path) as unguarded:
        document = unguarded.get("/openapi.json").json()
        assert "securitySchemes" not in document["components"]
        assert "/tickets" not in document["paths"]
        assert 404 == unguarded.post("/tickets").status_code
        with unguarded.open("/sse/open-clock", headers=bearer("anything")) as stream:
            assert not stream.take(1)[0].id.startswith("~")


# A plugin's own way

HOOK = (
    LOCAL
    + """
import time
from eventmux import AuthenticationError, Principal, hookimpl

@hookimpl
{async_}def authenticate(connection):
    key = connection.headers.get("x-key", "")
    if key == "alice":
        return Principal("alice", read=["mine"])
    if key == "old":
        return Principal("old", read=["*"], expires=time.time() - 1)
    if key == "refused":
        raise AuthenticationError("this key is locked: ask for another")
    if key == "broken":
        raise RuntimeError("the database is away: password hunter2")
    if key == "odd":
        return "alice"
    return None
"""
)

HOOKED = "sources: {open-clock: {}, mine: {}}\nplugins: {dir: local}\n"


@pytest.fixture(scope="module", params=["", "async "], ids=["sync", "async"])
def hooked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    auth = "auth: {tokens: [{name: dash, token: dash-token, read: [open-clock]}]}\n"
    path = tmp_path_factory.mktemp("hooked")
    with serving(HOOKED + auth, path, HOOK.replace("{async_}", request.param)) as service:
        yield service


def test_a_plugin_says_who_asks(hooked: Service) -> None:
    with hooked.open("/sse/mine", headers={"x-key": "alice"}) as stream:
        first = stream.take(1)[0]
    assert ("hook:alice", "~") == (first.data["principal"], first.id[0])
    assert 403 == hooked.get("/sse/open-clock", headers={"x-key": "alice"}).status_code


def test_what_is_not_a_plugins_is_the_services(hooked: Service) -> None:
    assert reads(hooked, "/sse/open-clock", DASH)
    assert 401 == hooked.get("/sse/open-clock").status_code
    assert 401 == hooked.get("/sse/open-clock", headers=bearer("wrong")).status_code


def test_a_plugin_refuses_with_its_own_words(hooked: Service) -> None:
    answer = hooked.get("/sse/mine", headers={"x-key": "refused"})
    assert (401, {"detail": "this key is locked: ask for another"}) == (answer.status_code, answer.json())
    assert 'error="invalid_token"' in challenge(answer)
    assert 401 == hooked.get("/sse/mine", headers={"x-key": "old"}).status_code


@pytest.mark.parametrize("key", ["broken", "odd"])
def test_a_plugin_that_fails_lets_nobody_in(hooked: Service, key: str, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/sse/open-clock", "/sources", "/sse/nothing"):
        answer = hooked.get(path, headers={"x-key": key, **DASH})
        assert 500 == answer.status_code
        incident = answer.json()["detail"].rpartition(" ")[2]
        assert "hunter2" not in answer.text
        assert f"could not say who asks, incident {incident}" in caplog.text


def test_a_plugin_guards_a_service_without_auth(tmp_path: Path) -> None:
    with serving(HOOKED, tmp_path, HOOK.replace("{async_}", "async ")) as service:
        assert reads(service, "/sse/mine", {"x-key": "alice"})
        assert 'Bearer realm="eventmux"' == challenge(service.get("/sse/mine"))
        assert 401 == service.get("/sse/mine", headers=bearer("anything")).status_code


def test_a_plugin_may_offer_nothing_but_its_way(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "way.py").write_text(
        "from eventmux import hookimpl\n\n@hookimpl\ndef authenticate():\n    return None\n"
    )
    (tmp_path / "plugins.yaml").write_text("sources: {clock: {}}\nplugins: {dir: local}\nauth: {}\n")
    settings = load_settings(tmp_path / "plugins.yaml", {})
    (way,) = settings.plugins.guards
    assert ("way", "loaded", True) == (way.name, way.state, settings.is_guarded)


def test_a_hook_without_its_mark_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "own.py").write_text(LOCAL + "\ndef authenticate(connection):\n    return None\n")
    (tmp_path / "plugins.yaml").write_text("sources: {mine: {}}\nplugins: {dir: local}\n")
    (broken,) = load_settings(tmp_path / "plugins.yaml", {}).plugins.broken
    assert "authenticate is not marked: put @hookimpl above it" == broken.error


# Principals


def test_patterns_are_whole_names_in_their_own_case() -> None:
    principal = Principal("a", read=["price-*", "clock", "x?"])
    assert all(map(principal.may_read, ["price-", "price-gold", "clock", "xy"]))
    assert not any(map(principal.may_read, ["my-price-a", "clocks", "x", "xyz", "Clock", ""]))
    assert not principal.may_publish("clock")
    assert EVERYBODY.may_read("anything")
    assert not NOBODY.may_read("anything")


def test_ids_of_principals_are_told_apart() -> None:
    names = [Principal("b", "token").id, Principal("b", "jwt").id, Principal("b").id, Principal("token:b").id]
    assert ["token:b", "jwt:b", "hook:b", "hook:token:b"] == names
    assert (None, None) == (EVERYBODY.id, NOBODY.id)


@pytest.mark.parametrize(
    "words",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"name": "a" * 129},
        {"name": "a", "read": "clock"},
        {"name": "a", "read": ["[a-z]"]},
        {"name": "a", "publish": [1]},
        {"name": "a", "expires": float("nan")},
        {"name": "a", "expires": "tomorrow"},
    ],
)
def test_a_principal_that_makes_no_sense_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Principal(**words)


# plugins.yaml


@pytest.mark.parametrize(
    ("auth", "fault"),
    [
        ("auth:", "2:1: auth: it is empty: say who may read, or leave the key out"),
        ("auth: {}", "2:7: auth: it lets nobody in: add tokens, jwt or anonymous"),
        (
            "auth: {tokens: [{name: a, token: x}, {name: a, token: y}]}",
            "2:45: auth.tokens[1].name: the name of tokens[0], too",
        ),
        (
            "auth: {tokens: [{name: a, token: hidden}, {name: b, token: hidden}]}",
            "2:60: auth.tokens[1].token: the same as that of 'a': give each its own",
        ),
        (
            'auth: {tokens: [{name: "a\\nb", token: x}]}',
            "2:24: auth.tokens[0].name: it has letters that cannot be shown",
        ),
        ("auth: {anonymous: {read: [both]}}", "auth.anonymous.read[0]: 'both' is a stream: name its sources"),
        ("auth: {anonymous: {read: [clok]}}", "2:27: auth.anonymous.read[0]: no source 'clok': did you mean 'clock'?"),
        (
            "auth: {tokens: [{name: a, token: x, publish: [clok]}]}",
            "2:47: auth.tokens[0].publish[0]: no source 'clok'",
        ),
    ],
)
def test_what_is_wrong_with_auth_is_told_with_its_place(tmp_path: Path, auth: str, fault: str) -> None:
    (text,) = faults_of(auth, tmp_path)
    assert fault in text
    assert "hidden" not in text


def test_a_pattern_may_match_nothing_yet(tmp_path: Path) -> None:
    assert [] == faults_of('auth: {anonymous: {read: ["price-*", "cl?ck", clock]}}', tmp_path)


def faults_of(auth: str, path: Path) -> list[str]:
    (path / "plugins.yaml").write_text(f"sources: {{clock: {{}}}}\n{auth}\nstreams: {{both: [clock]}}\n")
    try:
        load_settings(path / "plugins.yaml", {})
    except ConfigError as error:
        return list(error.problems)
    return []
