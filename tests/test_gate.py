"""Who may ask at all: hosts, pages of other origins, and what every answer says about itself."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import FastAPI

from eventmux import Event, source
from eventmux.config import Config, CorsConfig, ServerConfig
from eventmux.errors import ConfigError
from eventmux.settings import Settings, load_settings
from eventmux.web.gate import Gate
from eventsource import PATIENCE, TRUST, wait_until
from raw import running
from service import Service, enable, serving, settings_of

PAGE = "https://app.example.com"
EVIL = "https://evil.example"

started: list[int] = []


class Note(Event):
    n: int


@source(name="paid")
async def paid() -> AsyncIterator[Note]:
    started.append(1)
    yield Note(n=1)


@source(name="live", shared=True)
async def live() -> AsyncIterator[Note]:
    n = 0
    while True:
        n += 1
        yield Note(n=n)
        await asyncio.sleep(0.01)


def with_cors(settings: Settings, **cors: Any) -> Settings:
    return replace(settings, config=settings.config.model_copy(update={"cors": CorsConfig(**cors)}))


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    settings = with_cors(settings_of(enable(paid), enable(live, linger=5)), origins=[PAGE], credentials=True)
    with serving(settings, expect_quiet=False) as service:
        yield service


@pytest.fixture(autouse=True)
def nothing_started() -> None:
    started.clear()


@pytest.mark.parametrize("path", ["/sse/paid", "/sse?sources=paid", "/sse/paid?limit=1"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": EVIL},
        {"origin": "null"},
        {"origin": EVIL, "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:1"},  # another port is another origin
        {"origin": "nonsense://["},
        {"sec-fetch-site": "cross-site", "sec-fetch-dest": "image"},
        {"sec-fetch-site": "same-site", "sec-fetch-dest": "iframe"},
    ],
)
def test_a_page_of_another_origin_starts_nothing(service: Service, path: str, headers: dict[str, str]) -> None:
    for response in (service.get(path, headers=headers), service.post(path.partition("?")[0], headers=headers)):
        assert response.status_code == 403
        assert "may not use this service: name its origin under cors.origins" in response.json()["detail"]
        assert "access-control-allow-origin" not in response.headers
    assert started == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": PAGE},
        {"origin": PAGE, "sec-fetch-site": "cross-site"},
        {"origin": "http://{host}"},
        {"origin": "https://behind.a.proxy", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none", "sec-fetch-dest": "document"},
        {"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"},  # somebody follows a link
    ],
)
def test_own_pages_allowed_pages_and_people_get_their_stream(service: Service, headers: dict[str, str]) -> None:
    host = service.url.removeprefix("http://")
    filled = {name: value.format(host=host) for name, value in headers.items()}
    response = service.get("/sse/paid", headers=filled)
    assert response.status_code == 200
    assert "event: note" in response.text
    assert started == [1]


def test_an_allowed_page_may_read_with_cookies_and_may_see_why_it_was_refused(service: Service) -> None:
    for path, status in [("/sse/paid", 200), ("/sse/unknown", 404), ("/sse/paid?x=1", 422), ("/sources", 200)]:
        response = service.get(path, headers={"origin": PAGE})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == PAGE
        assert response.headers["access-control-allow-credentials"] == "true"
        assert response.headers["access-control-expose-headers"] == "Retry-After, WWW-Authenticate"
        assert "Origin" in response.headers["vary"]


def preflight(service: Service, origin: str, headers: str) -> httpx2.Response:
    return httpx2.request(
        "OPTIONS",
        service.url + "/sse/paid",
        headers={
            "origin": origin,
            "access-control-request-method": "GET",
            "access-control-request-headers": headers,
        },
        trust_env=False,
        verify=TRUST,
    )


@pytest.mark.parametrize("headers", ["last-event-id", "authorization,last-event-id,cache-control", "content-type"])
def test_a_preflight_allows_what_a_client_of_streams_sends(service: Service, headers: str) -> None:
    response = preflight(service, PAGE, headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    allowed = response.headers["access-control-allow-headers"].lower().split(", ")
    assert set(headers.split(",")) <= set(allowed)
    assert response.headers["access-control-max-age"] == "600"


@pytest.mark.parametrize(
    "origin", ["https://App.example.com", "https://app.example.com:443", "http://app.example.com:80", "http://[::1]:80"]
)
def test_an_origin_that_no_browser_would_name_so_is_a_fault_of_the_file(origin: str, tmp_path: Path) -> None:
    file = tmp_path / "plugins.yaml"
    file.write_text(f'cors: {{origins: ["{origin}"]}}', "utf-8")
    with pytest.raises(ConfigError, match=r"1:18: cors\.origins\[0\]: write it as browsers do: in small letters"):
        load_settings(file, {})


@pytest.mark.parametrize("origin", ["https://app.example.com:80", "http://[::1]:443", "chrome-extension://abc"])
def test_an_origin_with_a_port_or_a_scheme_of_its_own_is_none(origin: str) -> None:
    assert [origin] == CorsConfig(origins=[origin]).origins


@pytest.mark.parametrize(("origin", "headers"), [(EVIL, "last-event-id"), (PAGE, "x-strange")])
def test_a_preflight_of_others_or_for_other_headers_is_refused(service: Service, origin: str, headers: str) -> None:
    assert preflight(service, origin, headers).status_code == 400


def test_a_preflight_is_kept_for_as_long_as_is_configured() -> None:
    with serving(with_cors(settings_of(paid), origins=[PAGE], max_age=7)) as service:
        assert preflight(service, PAGE, "last-event-id").headers["access-control-max-age"] == "7"


def test_every_origin_may_read_where_all_are_allowed_and_then_without_cookies() -> None:
    with serving(with_cors(settings_of(paid), origins=["*"])) as service:
        response = service.get("/sse/paid", headers={"origin": EVIL})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers


def test_other_rules_hold_at_once() -> None:
    with running(settings_of(paid)) as service:
        gate: Gate = service.app.state.gate
        assert service.get("/sse/paid", headers={"origin": EVIL}).status_code == 403
        gate.apply(Config(cors=CorsConfig(origins=[EVIL])))
        assert service.get("/sse/paid", headers={"origin": EVIL}).status_code == 200
        gate.apply(Config(server=ServerConfig(trusted_hosts=["example.com"])))
        assert service.get("/sse/paid", headers={"origin": EVIL}).status_code == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [("example.com", 200), ("EXAMPLE.com:80", 200), ("a.example.org", 200), ("example.org", 400), ("127.0.0.1", 400)],
)
def test_only_trusted_hosts_are_answered(host: str, status: int) -> None:
    server = ServerConfig(trusted_hosts=["example.com", "*.example.org"])
    with serving(settings_of(paid, server=server)) as service:
        assert service.get("/sse/paid", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("path", "cache"),
    [
        ("/sse/paid", "no-store, no-transform"),
        ("/sse/unknown", "no-store"),
        ("/sse/paid?x=1", "no-store"),
        ("/sources", "no-store"),
        ("/healthz", "no-store"),
        ("/", "no-store"),
        ("/nowhere", "no-store"),
    ],
)
def test_every_answer_bears_the_headers_that_keep_it_from_being_misused(
    service: Service, path: str, cache: str
) -> None:
    headers = service.get(path).headers
    assert headers.get_list("cache-control") == [cache]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def check_headers(headers: Mapping[str, str]) -> None:
    assert {
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "cross-origin-resource-policy": "same-origin",
    }.items() <= headers.items()


def test_an_answer_that_failed_bears_them_too(uvicorn_log: pytest.LogCaptureFixture) -> None:
    def prepare(app: FastAPI) -> None:
        @app.get("/sse/failing/now")
        async def fail() -> None:
            raise RuntimeError("as it was told")

    with running(settings_of(paid), prepare=prepare) as service:
        answer = service.get("/sse/failing/now")
        assert (500, {"detail": "Internal Server Error"}) == (answer.status_code, answer.json())
        check_headers(answer.headers)
        assert 'eventmux_refused_total{reason="failed"} 1.0' in service.get("/metrics").text
    assert "as it was told" in uvicorn_log.text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: a\r\n", 408),
    ],
)
def test_what_the_server_itself_answers_bears_them_too(sent: bytes, status: int) -> None:
    with serving(settings_of(paid, server=ServerConfig(request_timeout=0.3))) as service:
        place = urlsplit(service.url)
        with socket.create_connection((place.hostname, place.port), PATIENCE) as client:
            client.sendall(sent)
            with contextlib.closing(http.client.HTTPResponse(client)) as answer:
                answer.begin()
                assert status == answer.status
                check_headers({name.lower(): value for name, value in answer.getheaders()})


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/x-ndjson", "application/json"])
def test_a_stream_tells_proxies_not_to_hold_it_back(service: Service, media_type: str) -> None:
    headers = service.get("/sse/paid", headers={"accept": media_type}).headers
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["content-type"].startswith(media_type)


class Pages(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """The origin of an empty page that is not the service's."""
    (tmp_path / "index.html").write_text("<!doctype html><title>page</title>", "utf-8")

    def handler(*words: Any) -> Pages:
        return Pages(*words, directory=str(tmp_path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.needs("chromium")
def test_chromium_reads_and_resumes_from_an_allowed_page_and_starts_nothing_from_another(page: str) -> None:
    from playwright.sync_api import sync_playwright

    from test_chromium import ARGUMENTS

    collect = """([url, count]) => new Promise(resolve => {
        const found = [], source = new EventSource(url);
        source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve(found); };
        source.addEventListener("note", event => {
            found.push(JSON.parse(event.data).n);
            if (found.length === count) { source.close(); resolve(found); }
        });
    })"""
    server = ServerConfig(max_lifetime=1, retry=10, spread=0)  # so that it has to come back
    settings = with_cors(settings_of(enable(live, linger=60), paid, server=server), origins=[page])
    with sync_playwright() as play, serving(settings, expect_quiet=False) as service:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        try:
            allowed = browser.new_page()
            allowed.goto(page)
            found = allowed.evaluate(collect, [service.url + "/sse/live", 150])
            assert found == list(range(found[0], found[0] + 150))
            foreign = browser.new_page()
            foreign.goto(page.replace("127.0.0.1", "localhost"))
            assert foreign.evaluate(collect, [service.url + "/sse/paid", 1]) == []
            foreign.evaluate("url => { new Image().src = url; }", service.url + "/sse/paid?limit=1")
            fetch = f"fetch('{service.url}/sse/paid', {{mode: 'no-cors'}}).then(() => 'read', () => 'kept from it')"
            assert foreign.evaluate(fetch) == "kept from it"
        finally:
            browser.close()
        assert started == []
        wait_until(lambda: service.hub.subscriptions == 0)
