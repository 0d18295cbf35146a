"""Bad input gets a clear answer before the first byte: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

import httpx2
import pytest
from pydantic import BaseModel, Field

from eventmux import ConfigOnly, Event, source
from eventmux.catalog import EnabledSource
from service import Service, serving, settings_of


class Said(Event):
    text: str


class Turn(BaseModel):
    role: Literal["user", "system"]
    text: str


@source
async def speak(
    text: Annotated[str, Field(max_length=10)],
    times: int = 1,
    tags: list[str] | None = None,
    turns: list[Turn] | None = None,
    key: Annotated[str, ConfigOnly] = "configured",
) -> AsyncIterator[Said]:
    """Says it."""
    for _ in range(times):
        yield Said(text=f"{text}{tags or ''}{[t.text for t in turns or ()] or ''}{key}")


@source(check=lambda low, high: _ordered(low, high))
async def span(low: int = 0, high: int = 1) -> AsyncIterator[Said]:
    yield Said(text=f"{low}-{high}")


def _ordered(low: int, high: int) -> None:
    if low > high:
        raise ValueError("low is above high: swap them")


@source
async def plain() -> AsyncIterator[Said]:
    yield Said(text="plain")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    fixed = EnabledSource("loud", speak, "test", fixed={"text": "LOUD"}, defaults={"times": 2})
    away = EnabledSource("away", plain, "test", unavailable="the moon is down: wait for the night")
    with serving(settings_of(speak, span, plain, fixed, away, streams={"both": ["speak", "span"]})) as service:
        yield service


def said(response: httpx2.Response) -> list[str]:
    return [line["data"]["text"] for line in response.json() if line["event"] == "said"]


JSON = {"accept": "application/json"}


def refused(response: httpx2.Response) -> list[tuple[list[Any], str]]:
    """A 422 in FastAPI's own shape, as (loc, msg)."""
    assert response.status_code == 422, response.text
    for error in response.json()["detail"]:
        assert error.keys() <= {"type", "loc", "msg", "input"}
    return [(error["loc"], error["msg"]) for error in response.json()["detail"]]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/sse/plane", "no source or stream 'plane': did you mean 'plain'?"),
        ("/sse/%F0%9F%92%A5", "known are away, both, loud, plain, span, speak"),
        ("/sse?sources=plain,spam", "no source or stream 'spam': did you mean 'span'?"),
        ("/sse?sources=both", "no source 'both': it is a stream, GET /sse/both"),
        ("/sse/" + "x" * 5000, "..."),
    ],
)
def test_an_unknown_source_is_a_404_with_the_nearest_name(service: Service, path: str, told: str) -> None:
    response = service.get(path)
    assert response.status_code == 404
    assert told in response.json()["detail"]
    assert len(response.text) < 300


def test_an_unavailable_source_is_a_503_with_its_reason_whatever_its_parameters(service: Service) -> None:
    for path in ("/sse/away", "/sse/away?nonsense=1", "/sse?sources=plain,away"):
        response = service.get(path)
        assert response.status_code == 503
        assert response.json()["detail"] == "source 'away' is unavailable: the moon is down: wait for the night"


@pytest.mark.parametrize(
    ("path", "loc", "told"),
    [
        ("/sse/speak", ["query", "text"], "Field required"),
        ("/sse/speak?text=" + "x" * 11, ["query", "text"], "at most 10 characters"),
        ("/sse/speak?text=a&times=many", ["query", "times"], "valid integer"),
        ("/sse/speak?text=a&times=1&times=2", ["query", "times"], "Given more than once"),
        ("/sse/speak?text=a&tmies=1", ["query", "tmies"], "did you mean 'times'?"),
        ("/sse/speak?text=a&key=mine", ["query", "key"], "can be set in plugins.yaml only"),
        ("/sse/speak?text=a&turns=[", ["query", "turns"], "Write it as JSON"),
        ('/sse/speak?text=a&turns=[{"role":"x","text":""}]', ["query", "turns", 0, "role"], "'user' or 'system'"),
        ("/sse/loud?text=quiet", ["query", "text"], "fixed by plugins.yaml"),
        ("/sse/span?low=2", ["query"], "low is above high: swap them"),
        ("/sse/plain?x=1", ["query", "x"], "none"),
        ("/sse/plain?sources=plain", ["query", "sources"], "No source of this stream"),
        ("/sse/plain?limit=0", ["query", "limit"], "greater than or equal to 1"),
        ("/sse/plain?limit=x", ["query", "limit"], "valid integer"),
        ("/sse/plain?limit=1&limit=2", ["query", "limit"], "Given more than once"),
        ("/sse/plain?qualify=perhaps", ["query", "qualify"], "valid boolean"),
        ("/sse/plain?events=sad", ["query", "events"], "did you mean 'said'?"),
        ("/sse/plain?events=", ["query", "events"], "No name given"),
        ("/sse?sources=", ["query", "sources"], "at least one"),
        ("/sse?sources=,", ["query", "sources"], "at least one"),
        ("/sse", ["query", "sources"], "sources=a,b"),
        ("/sse?sources=plain,plain", ["query", "sources"], "'plain' is named twice"),
        ("/sse?sources=" + ",".join(["plain"] * 33), ["query", "sources"], "At most 32"),
        ("/sse?sources=plain,span&text=hi", ["query", "text"], "No source of this stream has the parameter 'text'"),
        ("/sse?sources=plain,span&speak.text=hi", ["query", "speak.text"], "not among the sources of this stream"),
        ("/sse?sources=plain,span&span.lo=1", ["query", "span.lo"], "takes high, low"),
        ("/sse?sources=plain,span&low=x", ["query", "low"], "valid integer"),
        ("/sse?sources=plain,span&span.low=x", ["query", "span.low"], "valid integer"),
        ("/sse?sources=plain,speak", ["query", "speak.text"], "Field required"),
        ("/sse/both?times=2", ["query", "speak.text"], "Field required"),
    ],
)
def test_a_wrong_query_is_a_422_that_names_the_place(service: Service, path: str, loc: list[Any], told: str) -> None:
    ((found, message),) = refused(service.get(path))
    assert found == loc
    assert told in message


def test_all_faults_of_a_request_are_told_at_once(service: Service) -> None:
    found = refused(service.get("/sse?sources=speak,span&low=x&span.high=y&nothing=1"))
    assert [loc for loc, _ in found] == [
        ["query", "nothing"],
        ["query", "speak.text"],
        ["query", "low"],
        ["query", "span.high"],
    ]


@pytest.mark.parametrize(
    ("path", "body", "loc", "told"),
    [
        ("/sse/speak", {}, ["body", "text"], "Field required"),
        ("/sse/speak", {"text": 1}, ["body", "text"], "valid string"),
        ("/sse/speak", {"text": "a", "more": 1}, ["body", "more"], "No such parameter: speak takes tags, text"),
        ("/sse/speak", {"text": "a", "key": "b"}, ["body", "key"], "plugins.yaml only"),
        ("/sse/speak", ["text"], ["body"], "an object"),
        ("/sse/speak?times=2", {"text": "a"}, ["query", "times"], "in the body"),
        ("/sse/span", {"low": 5}, ["body"], "swap them"),
        ("/sse", {}, ["body", "sources"], "at least one"),
        ("/sse", {"sources": {}}, ["body", "sources"], "at least one"),
        ("/sse", {"sources": ["plain"]}, ["body", "sources"], "object"),
        ("/sse", {"source": {"plain": {}}}, ["body", "source"], '{"sources": {name: parameters}}'),
        ("/sse", {"sources": {"plain": 3}}, ["body", "sources", "plain"], "object"),
        ("/sse", {"sources": {"speak": {"txt": "a", "text": "b"}}}, ["body", "sources", "speak", "txt"], "takes"),
        ("/sse/both", {"sources": {"plain": {}, "speak": {"text": "a"}}}, ["body", "sources", "plain"], "Not a source"),
    ],
)
def test_a_wrong_body_is_a_422_that_names_the_place(
    service: Service, path: str, body: Any, loc: list[Any], told: str
) -> None:
    ((found, message),) = refused(service.post(path, json=body))
    assert found == loc
    assert told in message


@pytest.mark.parametrize(
    "content",
    [b"{", b"not json", b'{"text": NaN}', b'{"text": "\\ud800"}', b'{"\\udfff": 1}', b"\xff\xfe", b"[" * 100_000],
)
def test_a_body_that_is_no_json_is_a_422(service: Service, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    ((loc, message),) = refused(service.post("/sse/speak", content=content, headers=headers))
    assert loc == ["body"]
    assert "JSON" in message


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_of_another_media_type_is_a_415(service: Service, media_type: str) -> None:
    response = service.post("/sse/speak", content=b'{"text": "a"}', headers={"content-type": media_type})
    assert response.status_code == 415
    assert "Content-Type: application/json" in response.json()["detail"]


def test_an_empty_body_is_no_parameters(service: Service) -> None:
    assert said(service.post("/sse/plain", headers=JSON)) == ["plain"]


def test_a_body_over_one_mebibyte_is_a_413_said_before_it_has_all_come(service: Service) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"text": "'
        while True:
            yield b"x" * 65536

    headers = {"content-type": "application/json"}
    told = service.post("/sse/speak", content=b" " * (1024 * 1024 + 1), headers=headers)
    assert (told.status_code, told.json()["detail"]) == (413, "the body is larger than 1048576 bytes")
    try:
        assert service.post("/sse/speak", content=endless(), headers=headers).status_code == 413
    except (httpx2.WriteError, httpx2.ReadError):
        pass  # the server has hung up while the client was still sending, which is as good


def test_a_long_query_is_refused_and_shown_the_way(service: Service) -> None:
    response = service.get("/sse/speak?text=" + "x" * 33_000)
    assert response.status_code == 413
    assert "by POST" in response.json()["detail"]


def test_what_was_wrong_is_repeated_only_if_it_is_short_and_plain(service: Service) -> None:
    detail = service.get("/sse/speak?text=" + "x" * 200).json()["detail"]
    assert "input" not in detail[0]
    assert service.get("/sse/speak?text=%FF%FE" + "x" * 20).status_code == 422


@pytest.mark.parametrize(
    "cursor", [b"\xff\xfe", b"clock", b"a.b.c", b"x" * 8000, b"=.1", b",,,", b"\xf0\x9f\x92\xa5.1"]
)
def test_a_cursor_that_cannot_be_read_is_a_gap_and_no_error(service: Service, cursor: bytes) -> None:
    with httpx2.Client(trust_env=False) as client:
        response = client.get(
            f"{service.url}/sse/plain", headers={b"last-event-id": cursor, b"accept": b"application/json"}
        )
    assert response.status_code == 200
    assert [line["event"] for line in response.json()] == ["stream.gap", "said", "stream.end"]
    assert response.json()[0]["data"] == {"source": "plain", "reason": "unknown", "missed": None}


def test_parameters_reach_their_sources(service: Service) -> None:
    assert said(service.get("/sse/speak?text=a&times=2&tags=x&tags=y", headers=JSON)) == ["a['x', 'y']configured"] * 2
    assert said(service.get('/sse/speak?text=a&turns=[{"role":"user","text":"b"}]', headers=JSON)) == [
        "a['b']configured"
    ]
    assert said(service.get("/sse/loud", headers=JSON)) == ["LOUDconfigured"] * 2
    assert said(service.get("/sse/loud?times=1", headers=JSON)) == ["LOUDconfigured"]
    assert sorted(said(service.get("/sse?sources=speak,loud&text=a&times=1", headers=JSON))) == [
        "LOUDconfigured",
        "aconfigured",
    ]
    assert sorted(said(service.get("/sse?sources=speak,span&speak.text=a&low=1&span.low=0", headers=JSON))) == [
        "0-1",
        "aconfigured",
    ]
    body = {"sources": {"speak": {"text": "b"}, "span": {"low": -1}}}
    assert sorted(said(service.post("/sse", json=body, headers=JSON))) == ["-1-1", "bconfigured"]
    body = {"sources": {"speak": {"text": "c"}}}
    assert sorted(said(service.post("/sse/both", json=body, headers=JSON))) == ["0-1", "cconfigured"]


def test_other_methods_are_refused(service: Service) -> None:
    for method in ("PUT", "DELETE", "PATCH"):
        assert httpx2.request(method, f"{service.url}/sse/plain", trust_env=False).status_code == 405


def test_head_gives_the_headers_and_runs_nothing(service: Service) -> None:
    response = httpx2.head(f"{service.url}/sse?sources=plain", trust_env=False)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert service.is_quiet()
    assert httpx2.head(f"{service.url}/sse/speak", trust_env=False).status_code == 422
    assert httpx2.head(f"{service.url}/sse/nothing", trust_env=False).status_code == 404
