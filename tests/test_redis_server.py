"""The Redis servers that other tests stand on do what those tests believe."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import redis_server as module
from eventsource import PATIENCE, wait_until
from redis_server import BUNDLED, Program, Redis, RedisServer, SharedServers, bundled, installed, program, programs
from relay import relaying

PASSWORD = 'p@ss/w"rd: %41'  # noqa: S105
ONCE = Retry(NoBackoff(), 0)
Make = Callable[..., RedisServer]


@pytest.fixture(autouse=True)
def _fresh_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been found is for one test of this file: the next may have another PATH."""
    monkeypatch.setattr(module, "programs", programs.__wrapped__)


@pytest.fixture
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def fake(directory: Path, name: str, version: str) -> str:
    directory.mkdir(exist_ok=True)
    file = directory / name
    file.write_text(f"#!/bin/sh\necho 'Server v={version} sha=0'\n")
    file.chmod(0o755)
    return str(file)


def client_of(server: Redis, url: str = "", **options: object) -> contextlib.closing[redis.Redis]:
    return contextlib.closing(redis.Redis.from_url(url or server.url, retry=ONCE, decode_responses=True, **options))


def test_redis_on_the_path_is_found_before_valkey_and_before_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    valkey, server = fake(first, "valkey-server", "8.1.0"), fake(second, "redis-server", "7.4.1")
    monkeypatch.setenv("PATH", f"{first}{os.pathsep}{second}{os.pathsep}/bin")
    assert program() == Program(server, (7, 4, 1))
    Path(server).unlink()
    monkeypatch.setenv("PATH", f"{first}{os.pathsep}{second}")
    assert program() == Program(valkey, (8, 1, 0))


if BUNDLED:

    def test_the_copy_that_an_activated_environment_has_on_its_path_counts_as_the_bundled_one(
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        copies = Path(sys.executable).parent
        assert (copies / "redis-server").exists()
        monkeypatch.setenv("PATH", str(copies))
        assert installed() is None
        assert program().path == bundled()
        assert program() == program("oldest")


def test_without_a_server_a_test_is_skipped_and_in_ci_it_fails(monkeypatch: pytest.MonkeyPatch, no_ci: None) -> None:
    monkeypatch.setattr(module, "bundled", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(pytest.skip.Exception, match="no Redis server: install redis-server"):
        program()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="in CI this test must run"):
        program()


def test_a_server_that_is_given_by_its_url_keeps_what_is_not_of_the_test(
    own_redis: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = own_redis()
    theirs.command("SET", "theirs", "1")
    monkeypatch.setenv(module.GIVEN, theirs.url)
    with module.given() as server:
        assert server.url == theirs.url
        server.command("SET", f"{server.prefix}mine", "1")
        assert server.count_keys() == 1
        with module.given() as other:
            assert other.count_keys() == 0
    assert theirs.keys("*") == {"theirs"}


def test_a_shared_server_is_lent_empty_and_is_one_for_all() -> None:
    with contextlib.closing(SharedServers()) as servers:
        with servers.lend(program()) as first:
            first.command("SET", "key", "1")
            url, prefix = first.url, first.prefix
        with servers.lend(program()) as second:
            assert second.keys("*") == set()
            assert second.url == url
            assert second.prefix != prefix


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_finds_the_shared_server_empty(each_redis: Redis, turn: int) -> None:
    assert each_redis.count_keys() == 0
    each_redis.command("SET", f"{each_redis.prefix}{turn}", turn)
    assert each_redis.count_keys() == 1


def test_what_was_acknowledged_is_there_after_a_kill_and_after_a_stop(own_redis: Make) -> None:
    server = own_redis()
    url = server.url
    for number in range(100):
        server.command("XADD", "stream", "*", "n", number)
    server.kill()
    with pytest.raises(redis.ConnectionError):
        server.command("PING")
    server.start()
    assert server.command("XLEN", "stream") == 100
    server.restart()
    assert server.command("XLEN", "stream") == 100
    assert server.url == url


def test_a_paused_server_makes_a_client_time_out_until_it_is_resumed(own_redis: Make) -> None:
    server = own_redis()
    with client_of(server, socket_timeout=0.2) as client:
        assert client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()
        server.pause()  # and ends all the same


def test_clients_that_are_cut_come_back_on_new_connections(own_redis: Make) -> None:
    server = own_redis()
    with client_of(server) as client, client.pubsub() as pubsub:
        pubsub.subscribe("channel")
        before = client.client_id()
        assert server.cut_clients() == 2
        assert client.client_id() != before


def test_only_who_has_the_password_may_enter(own_redis: Make) -> None:
    server = own_redis(password=PASSWORD)
    server.restart()
    with client_of(server) as client:
        assert client.ping()
    with client_of(server, f"redis://127.0.0.1:{server.port}") as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_a_user_may_what_its_rules_say_and_the_test_may_everything(own_redis: Make) -> None:
    server = own_redis(user="mux", password=PASSWORD, rules="~em:* +@all -@dangerous")
    with client_of(server) as client:
        assert client.set("em:1", "1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("other", "1")
    assert server.keys("*") == {"em:1"}
    with client_of(server, f"redis://127.0.0.1:{server.port}") as nobody, pytest.raises(redis.AuthenticationError):
        nobody.ping()


def test_a_server_with_tls_is_known_by_its_certificate(own_redis: Make) -> None:
    server = own_redis(transport="tls")
    assert server.url.startswith("rediss://")
    with client_of(server, ssl_ca_certs=str(server.certificate)) as client:
        assert client.ping()
    with client_of(server) as client, pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        client.ping()


def test_a_server_on_a_unix_socket_has_a_password_too(own_redis: Make) -> None:
    server = own_redis(transport="unix", password=PASSWORD)
    with client_of(server) as client:
        assert client.ping()
    with client_of(server, server.url.replace("p%40ss", "wrong")) as client:
        with pytest.raises(redis.AuthenticationError):
            client.ping()


def test_a_full_server_refuses_what_would_be_too_much(own_redis: Make) -> None:
    server = own_redis(maxmemory="3mb")
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        for number in range(5):
            server.command("SET", number, "x" * 1_000_000)


def test_a_replica_that_is_promoted_has_the_data_of_its_master(own_redis: Make) -> None:
    master, replica = (own_redis(user="mux", password=PASSWORD) for _ in range(2))
    master.command("SET", "before", "1")
    replica.replica_of(master)
    master.command("SET", "after", "1")
    replica.wait_for(master)
    with pytest.raises(redis.exceptions.ReadOnlyError):
        replica.command("SET", "mine", "1")
    master.kill()
    replica.promote()
    replica.command("SET", "mine", "1")
    assert replica.keys("*") == {"before", "after", "mine"}


def test_a_relay_passes_on_what_it_knows_nothing_of(own_redis: Make) -> None:
    server = own_redis(password=PASSWORD)
    with relaying(server.port) as relay, client_of(server, server.url_at(relay.port)) as client:
        assert client.set("key", "x" * 1_000_000)
        assert len(client.get("key")) == 1_000_000
        assert relay.connections == relay.accepted == 1


def test_a_relay_that_stalls_makes_a_client_time_out_and_loses_nothing(own_redis: Make) -> None:
    server = own_redis()
    with (
        relaying(server.port) as relay,
        client_of(server, server.url_at(relay.port), socket_timeout=0.2) as client,
    ):
        assert client.ping()
        relay.stall()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        with pytest.raises(redis.TimeoutError):  # on a new connection, too
            client.ping()
        assert server.command("PING")
        relay.resume()
        assert client.ping()


def test_a_relay_cuts_by_a_reset_also_what_it_stalls(own_redis: Make) -> None:
    server = own_redis()
    with relaying(server.port) as relay, socket.create_connection(("127.0.0.1", relay.port), PATIENCE) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
        relay.stall()
        relay.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(100)
        relay.resume()
        wait_until(lambda: relay.connections == 0)


def test_a_relay_that_refuses_closes_new_connections_and_keeps_old_ones(own_redis: Make) -> None:
    server = own_redis()
    with relaying(server.port) as relay, client_of(server, server.url_at(relay.port)) as old:
        assert old.ping()
        relay.refuse()
        with client_of(server, server.url_at(relay.port)) as new:
            with pytest.raises(redis.ConnectionError):
                new.ping()
            assert old.ping()
            relay.accept()
            assert new.ping()


def test_a_relay_that_delays_makes_redis_slow(own_redis: Make) -> None:
    server = own_redis()
    with relaying(server.port) as relay, client_of(server, server.url_at(relay.port)) as client:
        assert client.ping()
        relay.delay(0.1)
        began = time.monotonic()
        assert client.ping()
        assert time.monotonic() - began >= 0.2  # there and back


def test_a_failover_leads_a_client_to_the_promoted_replica_at_the_same_address(own_redis: Make) -> None:
    master, replica = own_redis(), own_redis()
    with relaying(master.port) as relay, client_of(master, master.url_at(relay.port)) as client:
        replica.replica_of(master)
        client.set("key", "1")
        replica.wait_for(master)
        master.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        replica.promote()
        relay.point_at("127.0.0.1", replica.port)
        assert client.get("key") == "1"
        assert client.set("key", "2")
