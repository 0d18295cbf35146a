"""The server's socket and its surroundings: clients that vanish, proxies, open files."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

from eventmux.config import ServerConfig
from eventsource import wait_until
from raw import LOOPS, Feed, Raw, running
from service import serve_process, settings_of

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


NET = f"10.203.{os.getpid() % 250}"  # of this process; others test at the same time
HERE, THERE = f"{NET}.1", f"{NET}.2"

CLIENT = """
import socket, sys, time
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
client.sendall(b"GET /sse/feed HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
print(client.recv(65536)[:15].decode(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def far() -> Iterator[str]:
    """A network of its own, with a cable that can be cut; gives its name."""
    name = f"em{os.getpid()}"
    if not shutil.which("ip") or os.geteuid() != 0 or ip("netns", "add", name).returncode:
        reason = "network namespaces need the program ip and root"
        (pytest.fail if os.environ.get("EVENTMUX_NETNS") else pytest.skip)(reason)
    try:
        assert ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b").returncode == 0
        ip("link", "set", f"{name}b", "netns", name)
        ip("addr", "add", f"{HERE}/30", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        ip("-n", name, "addr", "add", f"{THERE}/30", "dev", f"{name}b")
        ip("-n", name, "link", "set", f"{name}b", "up")
        yield name
    finally:
        ip("netns", "del", name)
        ip("link", "del", f"{name}a")


def ip(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *words], capture_output=True, check=False)  # noqa: S607 - found by PATH


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "portable"])
def test_a_client_whose_cable_is_cut_is_let_go_by_heartbeats_that_nobody_acknowledges(
    far: str, *, direct: bool
) -> None:
    server = ServerConfig(host=HERE, heartbeat=0.2, send_timeout=1, direct=direct)
    with running(settings_of(Feed().source, server=server), host=HERE) as service:
        words = ["ip", "netns", "exec", far, sys.executable, "-c", CLIENT, HERE, str(service.port)]
        client = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "HTTP/1.1 200 OK\n"
            assert service.hub.subscriptions == 1
            ip("link", "set", f"{far}a", "down")
            started = time.monotonic()
            wait_until(lambda: service.hub.subscriptions == 0, "the client to be let go")
            assert 1 < time.monotonic() - started < 8  # without the bound, Linux tries for a quarter of an hour
        finally:
            client.kill()
            client.wait()
            assert client.stdout is not None
            client.stdout.close()


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
