"""HTTP/2, over TLS and in cleartext: streams, resume, the end, and clients that take nothing of one of them."""

from __future__ import annotations

import importlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import httpx2
import pytest

from certificates import make_certificate, trusting
from eventmux.config import ServerConfig, TlsConfig
from eventmux.policy import Bounds
from eventsource import PATIENCE, received, wait_until
from raw import LOOPS, Feed, Raw, numbers, running
from service import serve_process, settings_of
from whatwg import Parser

MEGABYTE = 1 << 20
both_loops = pytest.mark.parametrize("loop", LOOPS)


class Two:
    """A client that sees every frame. `windows`: whether it takes what comes, by stream."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        if context:
            context.set_alpn_protocols(["h2"])
            self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
            assert self.socket.selected_alpn_protocol() == "h2"
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(64 * MEGABYTE)  # of the connection: one stream is not to hold the others
        self.bodies: dict[int, bytes] = {}
        self.status: dict[int, int] = {}
        self.over: set[int] = set()
        self.reset: set[int] = set()
        self.not_taken: set[int] = set()
        self.is_closed = False
        self.goes_away = False
        self.flush()

    def __enter__(self) -> Two:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def ask(self, path: str, *headers: tuple[str, str], method: str = "GET", ends: bool = True) -> int:
        number = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":authority", "x"), (":scheme", "http"), *headers]
        self.h2.send_headers(number, head, end_stream=ends)
        self.bodies[number] = b""
        self.flush()
        return number

    def more(self) -> None:
        data = self.socket.recv(1 << 16)
        self.is_closed = not data
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.ResponseReceived():
                    self.status[event.stream_id] = int(dict(event.headers)[":status"])
                case h2.events.DataReceived():
                    self.bodies[event.stream_id] += event.data
                    if event.stream_id not in self.not_taken and event.flow_controlled_length:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    self.over.add(event.stream_id)
                case h2.events.StreamReset():
                    self.reset.add(event.stream_id)
                case h2.events.ConnectionTerminated():
                    self.goes_away = True
        if data:
            self.flush()

    def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            assert not self.is_closed, "the connection has ended"
            self.more()

    def notes(self, number: int) -> int:
        return self.bodies[number].count(b"event: note")


def settings(feed: Feed, **server: Any) -> Any:
    return settings_of(feed.source, server=ServerConfig(http2=True, **server))


@both_loops
def test_fifty_streams_on_one_connection_flow_and_end(loop: str) -> None:
    feed = Feed()
    with running(settings(feed), loop=loop) as service, Two(service.port) as client:
        streams = [client.ask("/sse/feed?limit=5") for _ in range(50)]
        client.until(lambda: len(client.status) == 50)
        wait_until(lambda: service.hub.subscriptions == 50)
        feed.note(1, 2, 3, 4, 5)
        client.until(lambda: client.over == set(streams))
        assert [client.notes(stream) for stream in streams] == [5] * 50
        assert set(client.status.values()) == {200}


def tls(tmp_path: Path) -> dict[str, Any]:
    cert, key = make_certificate(tmp_path)
    return {"tls": TlsConfig(cert=cert, key=key)}


@both_loops
def test_by_alpn_it_is_http2_or_http1_with_streams_on_their_own_path_and_resume(loop: str, tmp_path: Path) -> None:
    feed = Feed(linger=30)
    with running(settings(feed, **tls(tmp_path)), loop=loop, expect_quiet=False) as service:
        cert = tmp_path / "tls.crt"
        with (
            httpx2.Client(http2=True, verify=trusting(cert), trust_env=False, timeout=PATIENCE) as two,
            httpx2.Client(verify=trusting(cert), trust_env=False, timeout=PATIENCE) as one,
        ):
            for client, version in ((two, "HTTP/2"), (one, "HTTP/1.1")):
                with client.stream("GET", f"{service.url}/sse/feed?limit=3") as response:
                    assert response.http_version == version
                    wait_until(lambda: service.hub.subscriptions == 1)
                    wait_until(lambda version=version: len(service.outlets) == (version == "HTTP/1.1"))
                    feed.note(1, 2, 3)
                    parser = Parser()
                    events = [received(m) for part in response.iter_raw() for m in parser.feed(part)]
                assert numbers(events) == [1, 2, 3]
                last = next(event.id for event in events if event.event == "note")
                again = client.get(f"{service.url}/sse/feed?limit=2", headers={"last-event-id": last})
                assert numbers([received(m) for m in Parser().feed(again.content)]) == [2, 3]


@pytest.mark.needs("curl")
def test_in_cleartext_curl_gets_http2_by_prior_knowledge_and_http1_otherwise(tmp_path: Path) -> None:
    (tmp_path / "plugins.yaml").write_text("sources: {counter: {}}\nserver: {http2: true}")
    with serve_process(cwd=tmp_path) as process:
        url = process.wait_for_url()
        for option, version in (("--http2-prior-knowledge", "2"), ("--http1.1", "1.1"), ("--http2", "1.1")):
            words = ["curl", "-sN", option, "-w", "%{http_version}", f"{url}/sse/counter?stop=2&interval=0"]
            text = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
            assert text.count("event: count") == 3
            assert text.endswith(f"\n{version}")


@both_loops
def test_a_client_that_takes_nothing_of_one_stream_harms_no_other_and_is_cut_off_there(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    feed = Feed(history=Bounds(events=10))
    with running(settings(feed, send_timeout=1, heartbeat=0.5), loop=loop) as service, Two(service.port) as client:
        stalled, reader = client.ask("/sse/feed"), client.ask("/sse/feed")
        client.not_taken.add(stalled)
        wait_until(lambda: service.hub.subscriptions == 2)
        for n in range(30):
            feed.note(n, text="x" * 20_000)
            client.until(lambda n=n: client.notes(reader) == n + 1)
        assert len(client.bodies[stalled]) <= 65_535  # as much as its window holds
        client.until(lambda: stalled in client.reset)
        wait_until(lambda: service.hub.subscriptions == 1)
        feed.note(30)
        client.until(lambda: client.notes(reader) == 31)
    assert [r.getMessage() for r in caplog.records if r.exc_info] == []
    assert "a client took nothing for 1 seconds: cut off" in caplog.text


@both_loops
def test_what_a_client_does_not_take_waits_and_is_there_when_it_does(loop: str) -> None:
    feed = Feed()
    with running(settings(feed), loop=loop) as service, Two(service.port) as client:
        slow = client.ask("/sse/feed?limit=40")
        client.not_taken.add(slow)
        wait_until(lambda: service.hub.subscriptions == 1)
        for n in range(40):
            feed.note(n, text="x" * 10_000)
        client.until(lambda: len(client.bodies[slow]) == 65_535)
        (protocol,) = service.server.server_state.connections
        (cycle,) = protocol.cycles.values()  # type: ignore[union-attr]
        assert cycle.stream.pending_bytes <= 16 * 1024  # type: ignore[union-attr]
        client.not_taken.clear()
        client.h2.increment_flow_control_window(65_535, slow)
        client.flush()
        client.until(lambda: slow in client.over)
        assert client.notes(slow) == 40


@both_loops
def test_a_stream_that_is_reset_ends_and_no_other(loop: str) -> None:
    feed = Feed()
    with running(settings(feed), loop=loop) as service, Two(service.port) as client:
        gone, stays = client.ask("/sse/feed"), client.ask("/sse/feed")
        wait_until(lambda: service.hub.subscriptions == 2)
        client.h2.reset_stream(gone)
        client.flush()
        wait_until(lambda: service.hub.subscriptions == 1)
        feed.note(1)
        client.until(lambda: client.notes(stays) == 1)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_at_the_end_each_stream_is_told_when_to_come_back(tmp_path: Path, sig: int) -> None:
    cert, _ = make_certificate(tmp_path)
    (tmp_path / "plugins.yaml").write_text(
        "sources: {clock: {}}\nserver: {http2: true, retry: 1000, spread: 1, tls: {cert: tls.crt, key: tls.key}}"
    )
    with serve_process(cwd=tmp_path) as process:
        port = int(process.wait_for_url().rpartition(":")[2])
        with Two(port, trusting(cert)) as client:
            streams = [client.ask("/sse/clock") for _ in range(20)]
            client.until(lambda: all(b"id: " in client.bodies[stream] for stream in streams))
            process.process.send_signal(sig)
            client.until(lambda: client.over == set(streams))
            for stream in streams:
                found = re.search(rb"retry: (\d+)\n\n$", client.bodies[stream])
                assert found
                assert 1000 <= int(found[1]) <= 2000
            client.until(lambda: client.goes_away)
        assert process.process.wait(PATIENCE) == 0
        assert "Traceback" not in process.log.read_text()


# Who dawdles


@both_loops
def test_a_connection_without_a_request_ends_whatever_else_it_says(loop: str) -> None:
    with running(settings(Feed(), request_timeout=0.6), loop=loop) as service, Two(service.port) as client:
        started = time.monotonic()
        client.socket.settimeout(0.1)
        while not client.is_closed:
            try:
                client.h2.ping(b"12345678")
                client.flush()
                client.more()
            except TimeoutError:
                continue
            except (OSError, h2.exceptions.ProtocolError):
                break
            assert time.monotonic() - started < 5
        assert time.monotonic() - started > 0.5


@both_loops
def test_a_body_that_does_not_come_ends_its_stream_and_no_other(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    feed = Feed()
    with running(settings(feed, request_timeout=0.6), loop=loop) as service, Two(service.port) as client:
        stays = client.ask("/sse/feed")
        late = client.ask("/sse/feed", ("content-type", "application/json"), method="POST", ends=False)
        client.until(lambda: late in client.reset)
        wait_until(lambda: service.hub.subscriptions == 1)
        feed.note(1)
        client.until(lambda: client.notes(stays) == 1)
    assert [r.getMessage() for r in caplog.records if r.exc_info] == []


@both_loops
def test_streams_of_one_connection_are_bounded(loop: str) -> None:
    feed = Feed()
    with running(settings(feed), loop=loop) as service, Two(service.port) as client:
        client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 1_000
        client.h2.remote_settings.acknowledge()
        asked = [client.ask("/sse/feed") for _ in range(300)]
        client.until(lambda: len(client.status) + len(client.reset) == 300)
        assert 100 <= len(client.status) <= 256
        assert len(client.reset) == len(asked) - len(client.status)
        wait_until(lambda: service.hub.subscriptions == len(client.status))


@both_loops
def test_frames_that_are_wrong_end_the_connection_without_a_traceback(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    with running(settings(Feed()), loop=loop) as service:
        for noise in (
            b"\xff" * 1000,
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x00\x05\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff\xff",
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x40\x00\x01\x00\x00\x00\x00\x01" + b"x" * 16384,
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        ):
            with Raw(service) as client:
                client.send(preface + noise)
                client.socket.shutdown(socket.SHUT_WR)
                try:
                    client.rest()
                except ConnectionResetError:
                    pass
    assert [r.getMessage() for r in caplog.records if r.exc_info] == []


PAGE = """
<script>
  const got = {};
  for (let n = 0; n < 20; n++) {
    const stream = new EventSource(`/sse/counter?interval=0.05&start=${n}`);
    stream.addEventListener("count", event => { got[n] = (got[n] || 0) + 1; });
  }
</script>
"""


@pytest.mark.needs("chromium")
def test_twenty_eventsources_of_one_page_flow_at_the_same_time_in_chromium(tmp_path: Path) -> None:
    sync_api = importlib.import_module("playwright.sync_api")
    make_certificate(tmp_path)
    (tmp_path / "plugins.yaml").write_text(
        "sources: {counter: {}}\nserver: {http2: true, tls: {cert: tls.crt, key: tls.key}}"
    )
    with serve_process(cwd=tmp_path) as process, sync_api.sync_playwright() as playwright:
        url = process.wait_for_url()
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--no-proxy-server", "--ignore-certificate-errors"],
        )
        page = browser.new_page(ignore_https_errors=True)
        page.goto(f"{url}/healthz")
        script = PAGE.partition("<script>")[2].partition("</script>")[0].replace("const got", "window.got")
        page.evaluate(script)
        page.wait_for_function("Object.keys(got).length == 20 && Object.values(got).every(n => n >= 5)", timeout=20_000)
        protocols = page.evaluate("performance.getEntriesByType('navigation').map(entry => entry.nextHopProtocol)")
        assert protocols == ["h2"]
        browser.close()
        assert process.stop() == 0
