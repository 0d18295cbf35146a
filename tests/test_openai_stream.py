"""An LLM's answer with its reasoning, from a service with OpenAI's protocol to an EventSource, in both styles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from openai_server import Upstream, openai_server
from service import Service, serving_file

KEY = "sk-test-0123456789"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with openai_server() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def service(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    config = """
sources:
  openai: {params: {api_key: "${KEY}", base_url: "${URL}", idle_timeout: 0.2}}
  answers: {use: openai, params: {api_key: "${KEY}", base_url: "${URL}", api: responses}}
  refused: {use: openai, params: {api_key: bad-key, base_url: "${URL}"}}
  keyless: {use: openai, params: {api_key: "${NO_KEY}"}}
  forgetful: {use: openai, params: {api_key: "${KEY}", base_url: "${URL}"}, linger: 0}
  clock: {}
"""
    environ = {"KEY": KEY, "URL": upstream.base_url}
    with serving_file(config, tmp_path_factory.mktemp("openai"), environ) as service:
        yield service


@pytest.mark.parametrize("source", ["openai", "answers"])
def test_an_answer_comes_with_its_reasoning_and_ends(service: Service, source: str) -> None:
    with service.open(f"/sse/{source}?prompt=hi&model=reasoner-deepseek") as stream:
        events = stream.rest()
    names = [event.event for event in events]
    assert names[0] == "started"
    assert names[-3:] == ["usage", "done", "stream.end"]
    assert "".join(e.data["text"] for e in events if e.event == "reasoning") == "The user greets."
    assert "".join(e.data["text"] for e in events if e.event == "delta") == "Hello, world!"
    assert names.index("reasoning") < names.index("delta")
    assert events[-1].id == f"{source}!"


def test_an_answer_merges_with_other_sources_and_ends_alone(service: Service) -> None:
    body = {"sources": {"openai": {"messages": [{"role": "user", "content": "hi"}]}, "clock": {"interval": 0.02}}}
    with service.open("/sse", method="POST", body=body) as stream:
        events = stream.until("stream.end")
        assert events[-1].data == {"source": "openai", "reason": "completed"}
        assert "tick" in {event.event for event in stream.take(3)}


def test_the_client_leaves_and_the_service_stops_writing(service: Service, upstream: Upstream) -> None:
    before = upstream.left
    with service.open("/sse/forgetful?prompt=hi&model=slow") as stream:
        stream.until("delta")
    upstream.wait_until(lambda: upstream.left == before + 1)


@pytest.mark.parametrize(
    ("path", "told", "retryable"),
    [
        ("/sse/refused?prompt=hi", "key", False),
        ("/sse/openai?prompt=hi&model=rate-limit", "", True),
        ("/sse/openai?prompt=hi&model=error-midstream", "", None),
        ("/sse/openai?prompt=hi&model=cut", "", True),
        ("/sse/openai?prompt=hi&model=silent", "0.2", True),
    ],
)
def test_an_upstream_failure_is_a_stream_error_that_helps_and_reveals_no_secret(
    service: Service, upstream: Upstream, caplog: pytest.LogCaptureFixture, path: str, told: str, retryable: bool | None
) -> None:
    with service.open(path) as stream:
        events = stream.rest()
    assert [event.event for event in events][-2:] == ["stream.error", "stream.end"]
    error = events[-2].data
    assert told in error["message"]
    assert retryable in {None, error["retryable"]}
    assert error["incident"] in caplog.text
    for secret in (KEY, "bad-key", upstream.base_url):
        assert secret not in str(events)
        assert secret == upstream.base_url or secret not in caplog.text


def test_without_a_key_the_source_is_unavailable_with_the_remedy_and_the_rest_runs(service: Service) -> None:
    (row,) = [row for row in service.get("/sources").json()["sources"] if row["name"] == "keyless"]
    assert row["state"] == "unavailable"
    assert "NO_KEY is not set (" in row["reason"]
    assert service.get("/sse/keyless?prompt=hi").status_code == 503
    assert service.get("/readyz").json()["sources"]["keyless"]["reason"] == row["reason"]
    with service.open("/sse/clock?interval=0.02") as stream:
        stream.take(1)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("", "prompt"),
        ("prompt=a&messages=[]", ""),
        ("prompt=a&api_key=b", "plugins.yaml"),
        ("prompt=a&base_url=b", "fixed"),
    ],
)
def test_a_question_is_checked_before_the_first_byte(service: Service, query: str, told: str) -> None:
    response = service.get(f"/sse/openai?{query}")
    assert response.status_code == 422
    assert told in response.text


def test_the_catalog_shows_no_secret(service: Service, upstream: Upstream) -> None:
    for path in ("/sources", "/openapi.json", "/readyz"):
        assert KEY not in service.get(path).text
        assert upstream.base_url not in service.get(path).text


def test_the_catalog_offers_a_client_only_what_it_may_set(service: Service, tmp_path: Path) -> None:
    (row,) = [row for row in service.get("/sources").json()["sources"] if row["name"] == "answers"]
    assert (
        not {"api_key", "base_url", "timeout", "idle_timeout", "extra_body", "api"}
        & row["parameters"]["properties"].keys()
    )
    assert {"prompt", "messages", "system", "model"} <= row["parameters"]["properties"].keys()
