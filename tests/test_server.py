"""The server's socket and its surroundings: clients that vanish, proxies, open files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

import portable
from eventmux.config import ServerConfig
from raw import LOOPS, Feed, Raw, running
from service import Client, serve_process, settings_of

both_loops = pytest.mark.parametrize("loop", LOOPS)

# Clients that vanish


@both_loops
def test_a_connection_has_the_bounds_of_its_server(loop: str) -> None:
    server = ServerConfig(send_timeout=20)
    with running(settings_of(Feed().source, server=server), loop=loop) as service, Raw(service) as client:
        client.ask("/healthz")
        client.answer()
        (protocol,) = service.server.server_state.connections
        found = protocol.transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 25_000
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 20
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3


CUT = """
import subprocess, sys
import portable
from eventmux.config import ServerConfig
from eventsource import wait_until
from raw import Feed, Raw, running
from service import settings_of

server = ServerConfig(heartbeat=0.2, send_timeout=1, direct=sys.argv[1] == "True")
with running(settings_of(Feed().source, server=server)) as service, Raw(service) as client:
    client.ask("/sse/feed")
    assert client.head()[0] == 200
    assert service.hub.subscriptions == 1
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    wait_until(lambda: service.hub.subscriptions == 0, "the client to be let go")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
"""


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "portable"])
def test_a_client_whose_cable_is_cut_is_let_go_by_heartbeats_that_nobody_acknowledges(*, direct: bool) -> None:
    """In a network of its own, whose loopback goes down: no FIN comes, and no RST."""
    words = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"']
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        reason = "a network of its own needs the programs unshare and ip, and root"
        (pytest.fail if os.environ.get("EVENTMUX_NETNS") else pytest.skip)(reason)
    done = subprocess.run(
        [*words, sys.executable, "-c", CUT, str(direct)],
        env={**os.environ, "PYTHONPATH": portable.python_path()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Proxies


def who(app: FastAPI) -> None:
    @app.get("/who")
    async def answer(request: Request) -> Any:
        return [request.client.host if request.client else None, request.url.scheme]


@pytest.mark.parametrize(
    ("trusted", "headers", "expected"),
    [
        (None, ["X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https"], ["203.0.113.9", "https"]),
        (["127.0.0.0/8"], ["X-Forwarded-For: 203.0.113.9"], ["203.0.113.9", "http"]),
        (["*"], ["X-Forwarded-For: 203.0.113.9"], ["203.0.113.9", "http"]),
        ([], ["X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https"], ["127.0.0.1", "http"]),
        (["10.0.0.0/8", "::1"], ["X-Forwarded-For: 203.0.113.9"], ["127.0.0.1", "http"]),
        # What a client has written itself stands before what the proxy has added.
        (None, ["X-Forwarded-For: 198.51.100.1, 203.0.113.9"], ["203.0.113.9", "http"]),
        (None, ["X-Forwarded-For: 198.51.100.1", "X-Forwarded-For: 203.0.113.9"], ["203.0.113.9", "http"]),
        (["127.0.0.1", "10.0.0.0/8"], ["X-Forwarded-For: 1.1.1.1, 203.0.113.9, 10.1.2.3"], ["203.0.113.9", "http"]),
        (None, ["X-Forwarded-For: 2001:db8::7"], ["2001:db8::7", "http"]),
        (None, ["X-Forwarded-For: [2001:db8::7]:4711"], ["2001:db8::7", "http"]),
        (["127.0.0.1", "2001:db8::/32"], ["X-Forwarded-For: 203.0.113.9, 2001:db8::7"], ["203.0.113.9", "http"]),
        (None, ["X-Forwarded-Proto: gopher"], ["127.0.0.1", "http"]),
    ],
)
@pytest.mark.parametrize("http2", [False, True])
def test_only_a_trusted_proxy_is_believed_whom_it_speaks_for(
    trusted: list[str] | None, headers: list[str], expected: list[str], *, http2: bool
) -> None:
    server = ServerConfig(http2=http2) if trusted is None else ServerConfig(http2=http2, trusted_proxies=trusted)
    with running(settings_of(Feed().source, server=server), prepare=who) as service, Raw(service) as client:
        client.ask("/who", *headers)
        assert json.loads(client.answer().body) == expected


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "10.0.0.0/33", "proxy.example.com", "", "10.0.0"])
def test_what_no_address_can_equal_is_no_trusted_proxy(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"an address, or a network like 10\.0\.0\.0/8"):
        ServerConfig(trusted_proxies=[wrong])


def test_all_proxies_and_some_are_a_contradiction() -> None:
    with pytest.raises(ValueError, match="leave the others out"):
        ServerConfig(trusted_proxies=["*", "10.0.0.1"])


# Open files


def limited(soft: int, hard: int) -> Any:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_of_open_files_is_raised_and_one_that_is_too_low_is_told(tmp_path: Path) -> None:
    (tmp_path / "plugins.yaml").write_text("sources: {clock: {}}\nlimits: {streams: 400}\n")
    for hard, is_told in ((700, False), (600, True)):
        with serve_process(cwd=tmp_path, prepare=limited(300, hard)) as process:
            process.wait_for_url()
            limits = Path(f"/proc/{process.process.pid}/limits").read_text()
            assert re.search(rf"Max open files +{hard} +{hard} ", limits)
            told = "at most 600 files may be open, and limits.streams is 400: raise the limit"
            assert (told in process.log.read_text()) is is_told
            assert process.stop() == 0


def test_where_nothing_is_said_of_streams_as_many_are_taken_as_files_may_be_open(tmp_path: Path) -> None:
    (tmp_path / "plugins.yaml").write_text("sources: {clock: {}}\n")
    with serve_process(cwd=tmp_path, prepare=limited(200, 300)) as process, contextlib.ExitStack() as streams:
        service = Client(process.wait_for_url())
        for _ in range(300 - 256):
            streams.enter_context(service.open("/sse/clock"))
        answer = service.get("/sse/clock", headers={"accept": "application/json"})
        assert (503, "there are 44 streams, and no more are taken now") == (answer.status_code, answer.json()["detail"])
        assert "files may be open" not in process.log.read_text()
