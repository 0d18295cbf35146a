"""Other clients over lost connections and killed servers: httpx2, curl and Node's `eventsource` package.

Node's package reconnects by itself. httpx2 reads event streams but leaves reconnecting to its user, and so does curl:
here it is done for them as the standard says, with the last event id, until the answer is 204.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from eventsource import PATIENCE, TRUST, Received, received, wait_until
from openai_server import SLOW_TOKENS, Upstream, openai_server
from proxy import proxying
from restart import restartable
from service import Service, serving_file
from whatwg import Message, Parser, parse

CONFIG = """
server: {retry: 50}
sources:
  clock: {}
  counter: {}
  openai: {params: {api_key: "${KEY:-sk-test-0123456789}", base_url: "${UPSTREAM}"}}
"""

PAUSE = 0.05  # seconds before a reconnect, where it is done here
NODE = Path(__file__).parent / "node"
NAMES = ["tick", "count", "started", "delta", "usage", "done", "stream.gap", "stream.error", "stream.end"]
ANSWER = "".join(f"{number} " for number in range(SLOW_TOKENS))


class Client:
    """Reads a stream in a thread of its own, and comes back when the connection is lost, until it is told to stop.

    `is_stopped`: it was answered by 204 and has ended. Leaving the context hangs up, wherever it is.
    """

    def __init__(self, url: str) -> None:
        self.events: list[Received] = []
        self.is_stopped = False
        self.closing = threading.Event()
        self._url = url
        self._thread = threading.Thread(target=self._come_back, name=type(self).__name__)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        wait_until(self._has_hung_up, "the client to hang up")

    def wait_for(self, event: str, count: int) -> None:
        wait_until(lambda: len(self.all(event)) >= count, f"{event}, {count} times")

    def wait_for_stop(self) -> None:
        wait_until(lambda: self.is_stopped, "the client to stop")

    def all(self, event: str) -> list[Any]:
        """The data of the events with this name."""
        return [got.data for got in list(self.events) if got.event == event]

    def read(self, cursor: str) -> tuple[int, str]:
        """Take one connection to its end. Its status, 0 if there was no answer, and the cursor from there on."""
        raise NotImplementedError

    def hang_up(self) -> None:
        """End the connection that is being read."""

    def _come_back(self) -> None:
        cursor = ""
        while not self.closing.is_set():
            status, cursor = self.read(cursor)
            if status == 204:
                self.is_stopped = True
                return
            assert status in {0, 200}
            self.closing.wait(PAUSE)

    def _has_hung_up(self) -> bool:
        self.hang_up()
        return not self._thread.is_alive()


class Httpx2(Client):
    """`client.sse(url)`. It hangs up at the next event."""

    timeout = PATIENCE

    def read(self, cursor: str) -> tuple[int, str]:
        headers = {"last-event-id": cursor} if cursor else {}
        status = 0
        try:
            with (
                httpx2.Client(timeout=self.timeout, trust_env=False, verify=TRUST) as client,
                client.sse(self._url, headers=headers) as stream,
            ):
                status = stream.response.status_code
                if status == 200:
                    for event in stream:
                        cursor = event.id
                        if event.data:  # it also gives blocks of an id alone
                            self.events.append(received(Message(event.event, event.data, event.id)))
                        if self.closing.is_set():
                            break
        except httpx2.TransportError:
            pass
        return status, cursor


class ImpatientHttpx2(Httpx2):
    timeout = 0.3


class Curl(Client):
    """A process for each connection."""

    options: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    def read(self, cursor: str) -> tuple[int, str]:
        fields = ["-H", "Accept: text/event-stream", *(["-H", f"Last-Event-ID: {cursor}"] if cursor else [])]
        command = curl(
            *self.options, "-N", "--max-time", "30", "-w", "%{stderr}\nstatus %{http_code}\n", *fields, self._url
        )
        parser = Parser(last_event_id=cursor)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as self._process:
            assert self._process.stdout
            assert self._process.stderr
            while chunk := self._process.stdout.read(65_536):
                self.events.extend(map(received, parser.feed(chunk)))
            told = self._process.stderr.read().decode()
        status = re.search(r"^status (\d+)$", told, re.MULTILINE)
        return int(status[1]) if status else 0, parser.last_event_id

    def hang_up(self) -> None:
        if self._process:
            self._process.terminate()


class Curl10(Curl):
    """HTTP/1.0 has no chunks: the end of an answer is the end of the connection, whoever ended it."""

    options = ("--http1.0",)


class Node(Client):
    """The `eventsource` package. What `tests/node/client.mjs` tells, line by line."""

    _process: subprocess.Popen[str] | None = None

    def _come_back(self) -> None:
        command = [program("node"), "client.mjs", self._url, *NAMES]
        with subprocess.Popen(command, cwd=NODE, stdout=subprocess.PIPE, encoding="utf-8") as self._process:
            assert self._process.stdout
            told: dict[str, Any] = {}
            for line in self._process.stdout:
                told = json.loads(line)
                if "event" in told:
                    self.events.append(received(Message(**told)))
        self.is_stopped = told.get("state") == "closed" and told.get("code") == 204 and self._process.returncode == 0

    def hang_up(self) -> None:
        if self._process:
            self._process.terminate()


def program(name: str) -> str:
    found = shutil.which(name)
    assert found, "the marker `needs` has found it"
    return found


def curl(*arguments: str) -> list[str]:
    """The command, without what the user's own configuration and the environment would add."""
    return [program("curl"), "--disable", "--silent", "--show-error", "--noproxy", "*", *arguments]


@pytest.fixture(
    params=[
        Httpx2,
        pytest.param(Curl, marks=pytest.mark.needs("curl")),
        pytest.param(Curl10, marks=pytest.mark.needs("curl")),
        pytest.param(Node, marks=pytest.mark.needs("node")),
    ],
    ids=["httpx2", "curl", "curl-http1.0", "node"],
)
def client(request: pytest.FixtureRequest) -> Callable[[str], Client]:
    if request.param is Node and not (NODE / "node_modules" / "eventsource").is_dir():
        reason = "eventsource is not installed: npm install --no-save --no-package-lock in tests/node"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}: in CI this test must run")
        pytest.skip(reason)
    kind: Callable[[str], Client] = request.param
    return kind


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with openai_server() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def service(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    environ = {"UPSTREAM": upstream.base_url}
    with serving_file(CONFIG, tmp_path_factory.mktemp("resume-clients"), environ) as service:
        yield service


def times_asked(upstream: Upstream, prompt: str) -> int:
    return sum(prompt in str(asked.body) for asked in upstream.requests)


def is_once_and_in_order(events: list[Received]) -> bool:
    """Whether each event has an offset of its own, and they rise; only for a stream of one run."""
    offsets = [int(event.id.rpartition(".")[2]) for event in events if not event.id.endswith("!")]
    return offsets == sorted(set(offsets))


def test_a_killed_and_restarted_service_is_a_gap_and_the_stream_goes_on(
    client: Callable[[str], Client], tmp_path: Path
) -> None:
    with restartable(CONFIG, tmp_path) as service, client(f"{service.url}/sse/clock?interval=0.02") as stream:
        stream.wait_for("tick", 5)
        service.kill()
        service.start()
        stream.wait_for("stream.gap", 1)
        stream.wait_for("tick", len(stream.events) + 5)
        events = list(stream.events)
    assert [event.event for event in events].count("stream.gap") == 1
    gap = next(index for index, event in enumerate(events) if event.event == "stream.gap")
    assert gap >= 5
    assert events[gap].data == {"source": "clock", "reason": "restarted", "missed": None}
    assert {event.event for event in events[:gap] + events[gap + 1 :]} == {"tick"}
    times = [datetime.fromisoformat(event.data["now"]) for event in events if event.event == "tick"]
    assert times == sorted(set(times))


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_a_connection_cut_in_mid_answer_costs_no_token_and_no_second_question(
    client: Callable[[str], Client], service: Service, upstream: Upstream, reset: bool
) -> None:
    prompt = secrets.token_hex(8)
    with (
        proxying(service.url) as proxy,
        client(f"{proxy.url}/sse/openai?model=slow&prompt={prompt}") as stream,
    ):
        for count in (10, 60, 110):
            stream.wait_for("delta", count)
            proxy.cut(reset=reset)
        stream.wait_for_stop()
        asked = proxy.last_event_ids()
    assert "".join(delta["text"] for delta in stream.all("delta")) == ANSWER
    assert [event.event for event in stream.events][-3:] == ["usage", "done", "stream.end"]
    assert stream.all("stream.end") == [{"source": "openai", "reason": "completed"}]
    assert stream.all("stream.gap") == []
    assert is_once_and_in_order(stream.events)
    assert times_asked(upstream, prompt) == 1
    assert len(asked) >= 5  # the first, one after each cut, and the one that is answered by 204
    assert (asked[0], asked[-1]) == (None, "openai!")


def test_a_stream_that_something_ends_before_its_first_event_asks_no_second_question(
    client: Callable[[str], Client], service: Service, upstream: Upstream
) -> None:
    prompt = secrets.token_hex(8)
    with proxying(service.url) as proxy:
        proxy.end_after_first_write()  # that is the cursor, and nothing else
        with client(f"{proxy.url}/sse/openai?prompt={prompt}") as stream:
            stream.wait_for_stop()
    assert "".join(delta["text"] for delta in stream.all("delta")) == "Hello, world!"
    assert stream.all("stream.end") == [{"source": "openai", "reason": "completed"}]
    assert times_asked(upstream, prompt) == 1


def test_a_finished_stream_is_answered_by_204_and_the_client_stops(
    client: Callable[[str], Client], service: Service
) -> None:
    with proxying(service.url) as proxy, client(f"{proxy.url}/sse/counter?stop=3&interval=0.01") as stream:
        stream.wait_for_stop()
        assert proxy.last_event_ids() == [None, "counter!"]
        assert proxy.statuses == [200, 204]
    assert [event.event for event in stream.events] == ["count"] * 4 + ["stream.end"]
    assert [count["value"] for count in stream.all("count")] == [0, 1, 2, 3]


def test_a_finished_stream_is_answered_by_204_by_a_process_that_never_ran_it(
    client: Callable[[str], Client], tmp_path: Path
) -> None:
    with (
        restartable(CONFIG, tmp_path) as service,
        proxying(service.url) as proxy,
    ):
        proxy.admit(1)
        with client(f"{proxy.url}/sse/counter?stop=3&interval=0.01") as stream:
            stream.wait_for("stream.end", 1)
            service.kill()
            service.start()
            assert not stream.is_stopped
            proxy.admit_all()
            stream.wait_for_stop()
            assert set(proxy.last_event_ids()[1:]) == {"counter!"}
    assert [event.event for event in stream.events] == ["count"] * 4 + ["stream.end"]


def test_a_client_behind_a_connection_that_is_silent_but_open_comes_back_and_misses_nothing(
    service: Service, upstream: Upstream
) -> None:
    """The service still writes to the old connection, and knows nothing."""
    with (
        proxying(service.url) as proxy,
        ImpatientHttpx2(f"{proxy.url}/sse/openai?model=slow&prompt=silent") as stream,
    ):
        stream.wait_for("delta", 20)
        proxy.stall()
        before = len(proxy.requests)
        wait_until(lambda: len(proxy.requests) >= before + 2, "the client to try again")
        proxy.resume()
        stream.wait_for_stop()
    assert "".join(delta["text"] for delta in stream.all("delta")) == ANSWER
    assert stream.all("stream.gap") == []
    assert is_once_and_in_order(stream.events)
    assert times_asked(upstream, "silent") == 1


@pytest.mark.needs("curl")
def test_an_http_1_0_client_gets_a_whole_stream(service: Service) -> None:
    command = curl("--http1.0", "-N", "--max-time", "30", f"{service.url}/sse/counter?stop=3&interval=0.01")
    events = parse(subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE).stdout)
    assert [event.event for event in events] == ["count"] * 4 + ["stream.end"]
    assert events[-1].id == "counter!"


@pytest.mark.needs("curl")
def test_an_http_1_0_client_is_sent_no_chunks_which_it_could_not_read(service: Service) -> None:
    """RFC 9112, 6.1: no Transfer-Encoding unless the request says HTTP/1.1."""
    command = curl("--http1.0", "-N", "--raw", "--include", "--max-time", "30", f"{service.url}/sse/counter?stop=0")
    head, _, body = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE).stdout.partition(
        b"\r\n\r\n"
    )
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"retry: 50\nid: ")
