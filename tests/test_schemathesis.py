"""Requests made from the OpenAPI document, right and wrong ones, get what it says; none is a server error.

`EVENTMUX_EXAMPLES=2000 pytest tests/test_schemathesis.py --timeout 0` draws so many per operation, anew each time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi import checks as openapi_checks

from eventsource import PATIENCE
from service import Service, serving_file

# Heartbeats make the look at an endless stream short.
CONFIG = """
server: {heartbeat: 0.02, grace: 2}
sources:
  counter: {linger: 0}
  echo: {linger: 0}
  reverse-echo: {linger: 0}
  clock: {linger: 0}
  openai: {linger: 0, params: {api_key: sk-test-0123456789, base_url: "http://127.0.0.1:9/v1"}}
  fast-clock: {use: clock, params: {interval: 0.01}, linger: 0}
  away: {use: clock, params: {interval: "${NOWHERE}"}}
streams:
  numbers: [counter, clock, fast-clock]
"""
LOOK = 0.1  # seconds of an endless stream
EXAMPLES = int(os.environ.get("EVENTMUX_EXAMPLES", "0"))
ACCEPT = ["*/*", "text/event-stream", "application/x-ndjson", "application/json"]
OPERATIONS = [
    (method, path)
    for path in ("/sse", "/sse/counter", "/sse/echo", "/sse/reverse-echo", "/sse/clock", "/sse/openai", "/sse/numbers")
    for method in ("GET", "POST")
] + [
    ("GET", "/sse/away"),
    ("GET", "/sse/fast-clock"),
    ("GET", "/sources"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]

CHECKS = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving_file(CONFIG, tmp_path_factory.mktemp("schemathesis")) as service:
        yield service


@pytest.fixture(scope="module")
def schema(service: Service) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def no_server_error(ctx: CheckContext, response: Response, case: Case) -> None:
    assert response.status_code < 500 or response.status_code == 503, response.text
    if response.status_code == 503 and case.path != "/readyz":
        assert "away" in response.text, response.text


def look(case: Case, service: Service, accept: str) -> Response:
    """What a request gets: all of it, or of what has no end, the whole events of a short while."""
    with requests.Session() as session:
        session.trust_env = False
        words = case.as_transport_kwargs(base_url=service.url, headers={"Accept": accept})
        prepared = session.prepare_request(requests.Request(**{k: v for k, v in words.items() if k != "timeout"}))
        begun = time.monotonic()
        response = session.send(prepared, stream=True, timeout=PATIENCE)
        is_cut_short, content = False, b""
        is_stream = response.headers.get("transfer-encoding") == "chunked"
        for chunk in response.raw.read_chunked() if is_stream else [response.content]:
            content += chunk
            if is_stream and time.monotonic() > begun + LOOK:
                is_cut_short = True
                break
        response.close()
    if is_cut_short and "event-stream" in response.headers["content-type"]:
        content = content[: content.rfind(b"\n\n") + 2]
    return Response(
        response.status_code,
        {name: [value] for name, value in response.headers.items()},
        content,
        prepared,
        time.monotonic() - begun,
        verify=False,
        stream_cut_short=is_cut_short,
    )


@pytest.mark.parametrize(
    ("mode", "method", "path"),
    [(GenerationMode.POSITIVE, *operation) for operation in OPERATIONS]
    + [(GenerationMode.NEGATIVE, *operation) for operation in OPERATIONS if "/sse" in operation[1]],
)
def test_a_request_gets_what_the_document_says(
    service: Service,
    schema: schemathesis.BaseSchema,
    method: str,
    path: str,
    mode: GenerationMode,
    caplog: pytest.LogCaptureFixture,
) -> None:
    operation = schema[path][method]

    @given(case=operation.as_strategy(generation_mode=mode), accept=st.sampled_from(ACCEPT))
    @settings(
        max_examples=EXAMPLES or 12,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
    )
    def check(case: Case, accept: str) -> None:
        response = look(case, service, accept)
        is_array = response.stream_cut_short and "/json" in response.headers["content-type"][0]
        checks = CHECKS[:2] if is_array or "ndjson" in accept else CHECKS
        case.validate_response(response, checks=[no_server_error, *checks])

    with caplog.at_level(logging.ERROR):
        check()
    assert [record for record in caplog.records if "incident" not in record.getMessage()] == []
    assert service.get("/healthz").status_code == 200


def test_every_operation_of_the_document_is_asked(schema: schemathesis.BaseSchema) -> None:
    found = {(result.ok().method.upper(), result.ok().path) for result in schema.get_all_operations()}
    assert found - set(OPERATIONS) == {("POST", "/sse/away"), ("POST", "/sse/fast-clock")}
