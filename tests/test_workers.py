"""`eventmux serve --workers`: several processes are one service, and each of them may go."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from certificates import make_certificate, trusting
from crew import Crew, closed, crew, is_there, settle
from eventsource import PATIENCE, EventSource, Received, wait_until
from follower import following
from raw import Raw
from redis_server import Redis, RedisServer
from service import serve_process

AUTH = """
auth:
  hide: true
  tokens:
    - {name: all, token: all-of-them, read: ["*"]}
    - {name: few, token: only-a-few, read: [numbers]}
"""
ALL, FEW = ({"headers": {"authorization": f"Bearer {token}"}} for token in ("all-of-them", "only-a-few"))
READY = (200, ["ready", "ready"])


def numbers(events: list[Received]) -> list[int]:
    return [event.data["n"] for event in events]


def assert_the_same(streams: list[EventSource]) -> None:
    """They have one log: what all of them have is equal, cursors and all."""
    taken = [stream.take(3) for stream in streams]
    ends = max(numbers(events)[-1] for events in taken)
    taken = [events + stream.take(ends - numbers(events)[-1]) for events, stream in zip(taken, streams, strict=True)]
    begins = max(numbers(events)[0] for events in taken)
    first, *others = [events[begins - numbers(events)[0] :] for events in taken]
    assert numbers(first)[-1:] == [ends]
    assert all(other == first for other in others)


def test_all_serve_one_port_and_each_speaks_for_all_and_one_that_stands_still_keeps_nobody(
    tmp_path: Path, redis_server: Redis
) -> None:
    settle(tmp_path, redis_server, server="grace: 2", more=AUTH)
    with crew(tmp_path) as service, contextlib.ExitStack() as stack:
        wait_until(lambda: service.readiness() == READY, "all workers to be ready")
        streams = service.streams_on_all(stack, "/sse/numbers", **ALL)
        assert_the_same(streams)
        everything, something = service.metrics(**ALL), service.metrics(**FEW)
        assert sum(something["eventmux_streams_open"].values()) == len(streams)
        appended = everything["eventmux_events_appended_total"]
        assert appended.keys() == {"0 numbers", "1 numbers", "0 own", "1 own"}
        assert len(list(filter(None, appended.values()))) == 1  # one run
        assert something["eventmux_events_appended_total"].keys() == {"0 numbers", "1 numbers"}
        assert something["process_resident_memory_bytes"].keys() == {"0", "1"}
        for number, pid in service.pids.items():
            other = 1 - number  # who answers
            os.kill(pid, signal.SIGSTOP)
            status, told = service.readiness()
            assert (status, told[number], told[other]) == (503, "unreachable", "ready")
            found = service.metrics(**FEW)
            assert found["eventmux_worker_up"] == {str(number): 0, str(other): 1}
            assert found["eventmux_streams_open"].keys() == {str(other)}
            os.kill(pid, signal.SIGCONT)
            wait_until(lambda: service.readiness() == READY, "the worker to be back")
        assert service.log.count("eventmux 0") == 1
        private = private_on_all(service, stack, **ALL)
        still = service.pids[0]
        os.kill(still, signal.SIGSTOP)
        service.send(signal.SIGTERM)
        [stream] = [stream for pid, stream in private.items() if pid != still]
        stream.rest()
        assert service.wait() == 0
        assert {("own", pid) for pid in private if pid != still} <= closed(tmp_path)
        assert "worker 0 does not end: killed" in service.log


def test_a_worker_that_is_killed_is_replaced_and_its_clients_lose_nothing(
    tmp_path: Path, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, installed = tmp_path / "python", os.path.realpath(sys.executable)
    python.symlink_to(installed)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    settle(tmp_path, redis_server)
    with crew(tmp_path) as service, contextlib.ExitStack() as stack:
        wait_until(lambda: service.readiness() == READY, "all workers to be ready")
        settle(tmp_path, redis_server, store="keep: 60")  # which waits for the next start of the service
        wait_until(lambda: service.log.count(": store: not applied") == 2, "both to have read the file")
        followers = [stack.enter_context(following(f"{service.url}/sse/numbers")) for _ in range(8)]
        wait_until(lambda: all(service.metrics()["eventmux_streams_open"].values()), "every worker to have one")
        wait_until(lambda: all(len(one.numbers) > 5 for one in followers), "events")
        runs_it = followers[0].events[-1].data["pid"]
        [number] = [number for number, pid in service.pids.items() if pid == runs_it]
        cursors = {}
        for pid, stream in private_on_all(service, stack).items():
            stream.take(3)
            cursors[pid] = stream.cursor
            stream.close()

        os.kill(runs_it, signal.SIGKILL)
        said = f"worker {number} has ended by itself (SIGKILL): another one starts in"
        wait_until(lambda: f"{said} 0.25 seconds" in service.log, "the end to be logged")
        wait_until(lambda: service.log.count(f"worker {number} serves pid=") == 2, "another one")
        assert service.log.count(": store: not applied") == 3  # it holds what the others hold
        wait_until(lambda: service.readiness() == READY, "all workers to be ready")

        with service.open("/sse/own", cursor=cursors.pop(runs_it)) as stream:
            *left, end = stream.rest()
        assert (end.event, end.data) == ("stream.end", {"source": "own", "reason": "lost"})
        assert all(event.event == "note" for event in left)
        [(pid, cursor)] = cursors.items()
        for _ in range(4):  # wherever it comes back to
            with service.open("/sse/own", cursor=cursor) as stream:
                events = stream.take(3)
                assert {event.data["pid"] for event in events} == {pid}
                assert numbers(events) == [int(cursor.rpartition(".")[2]) + more for more in (1, 2, 3)]
                cursor = stream.cursor

        python.unlink()  # as when an environment is installed anew
        os.kill(service.pids[number], signal.SIGKILL)
        wait_until(lambda: f"{said} 0.5 seconds" in service.log, "the pause to be longer")
        wait_until(lambda: f"worker {number} cannot be started (No such file" in service.log, "that to be logged")
        python.symlink_to(installed)
        wait_until(lambda: service.log.count(f"worker {number} serves pid=") == 3, "another one")

        assert_the_same(service.streams_on_all(stack, "/sse/numbers"))
        seen = followers[0].numbers[-1]
        wait_until(lambda: all(one.numbers[-1] > seen for one in followers), "all to go on")
        for one in followers:
            assert {event.event for event in one.events} == {"note"}
            assert one.numbers == list(range(one.numbers[0], one.numbers[-1] + 1))
        assert any(len(one.statuses) > 1 for one in followers)  # who came back


def test_what_is_said_to_the_parent_reaches_all_and_each_line_says_whose_it_is(
    tmp_path: Path, redis_server: Redis
) -> None:
    certificate, key = make_certificate(tmp_path)
    settings = {"server": f"watch: false, tls: {{cert: {certificate.name}, key: {key.name}}}"}
    settle(tmp_path, redis_server, **settings)
    words = ("--log-format", "json")
    with crew(tmp_path, *words, trust=trusting(certificate)) as service, contextlib.ExitStack() as stack:

        def workers_that_said(text: str) -> list[int]:
            lines = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
            return sorted(line["worker"] for line in lines if text in line["message"])

        wait_until(lambda: service.readiness() == READY, "all workers to be ready")
        for _ in range(10):  # who speaks no TLS is nobody's trouble
            with socket.create_connection(("127.0.0.1", service.port)) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        streams = service.streams_on_all(stack, "/sse/numbers")
        assert_the_same(streams)
        streams += (private := private_on_all(service, stack)).values()

        settle(tmp_path, redis_server, **settings, more="streams: {both: [numbers, own]}\n")
        service.send(signal.SIGHUP)
        wait_until(lambda: workers_that_said("plugins.yaml applied") == [0, 1], "both to have read the file")
        settle(tmp_path, redis_server, **settings, more="streams: {both: [numbers, owl]}\n")
        service.send(signal.SIGHUP)
        wait_until(lambda: workers_that_said("plugins.yaml not applied") == [0, 1], "both to have refused it")
        assert service.get("/readyz").json()["configuration"]["state"] == "rejected"
        assert service.get("/sse/both?limit=1").status_code == 200

        for stream in streams:
            stream.parser.retry = None
        service.send(signal.SIGTERM)
        for stream in streams:
            stream.rest()
            assert 100 <= (stream.parser.retry or 0) <= 1100
        assert service.wait() == 0
        assert len({stream.parser.retry for stream in streams}) > 1
        assert {("own", pid) for pid in private} < closed(tmp_path)
        assert any(name == "numbers" for name, _ in closed(tmp_path))
        assert list(service.directory.iterdir()) == []


def private_on_all(service: Crew, stack: contextlib.ExitStack, **options: Any) -> dict[int, EventSource]:
    """A stream of a private run on every worker, by the worker's pid."""
    streams: dict[int, EventSource] = {}
    while len(streams) < len(service.pids):
        stream = stack.enter_context(service.open("/sse/own", **options))
        pid = stream.take(1)[0].data["pid"]
        if pid in streams:
            stream.close()
        else:
            streams[pid] = stream
    return streams


def test_workers_share_those_that_come_at_once_and_a_second_signal_ends_all_at_once(
    tmp_path: Path, redis_server: Redis
) -> None:
    settle(tmp_path, redis_server, server="drain_delay: 60, grace: 60")
    with crew(tmp_path) as service, contextlib.ExitStack() as stack:
        wait_until(lambda: service.readiness() == READY, "all workers to be ready")
        service.send_all(signal.SIGSTOP)
        for client in [stack.enter_context(Raw(port=service.port)) for _ in range(50)]:
            client.ask("/sse/numbers")
        service.send_all(signal.SIGCONT)
        wait_until(lambda: sum(service.metrics()["eventmux_streams_open"].values()) == 50, "all to be served")
        assert min(service.metrics()["eventmux_streams_open"].values()) >= 3
        service.send(signal.SIGTERM)
        wait_until(lambda: service.readiness() == (503, ["draining", "draining"]), "both to be unready")
        with service.open("/sse/numbers") as late:
            late.take(1)
        os.kill(service.pids[1], signal.SIGSTOP)
        service.send(signal.SIGTERM)
        assert service.wait() == 0
        assert "worker 1 does not end: killed" in service.log
        assert "worker 0 does not end" not in service.log


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path, redis_server: Redis) -> None:
    settle(tmp_path, redis_server)
    with crew(tmp_path) as service, contextlib.ExitStack() as stack:
        wait_until(lambda: service.readiness() == READY, "all workers to be ready")
        streams = private_on_all(service, stack)
        service.send(signal.SIGKILL)
        for stream in streams.values():
            stream.rest()  # raises if it is cut off and not ended
        wait_until(lambda: not any(map(is_there, streams)), "the workers to end")
        assert closed(tmp_path) == {("own", pid) for pid in streams}
        assert list(service.directory.iterdir()) == []
        with pytest.raises(httpx2.ConnectError):
            service.get("/healthz")


def test_a_ctrl_c_at_the_terminal_comes_once_and_ends_all_in_order(tmp_path: Path, redis_server: Redis) -> None:
    settle(tmp_path, redis_server)
    keyboard, terminal = pty.openpty()

    def sit_down() -> None:
        os.setsid()
        os.dup2(os.open(os.ttyname(terminal), os.O_RDWR), 0)  # the first one that a session opens is its own

    with contextlib.ExitStack() as stack:
        stack.callback(os.close, keyboard)
        stack.callback(os.close, terminal)
        service = stack.enter_context(crew(tmp_path, prepare=sit_down))
        wait_until(lambda: service.readiness() == READY, "all workers to be ready")
        streams = private_on_all(service, stack)
        os.write(keyboard, b"\x03")
        for stream in streams.values():
            stream.rest()
        assert service.wait() == 0
        assert closed(tmp_path) == {("own", pid) for pid in streams}  # in a hurry they do not come to it


def test_a_signal_while_the_first_worker_starts_ends_all_with_0_and_no_word(
    tmp_path: Path, redis_server: Redis
) -> None:
    settle(tmp_path, redis_server)
    (tmp_path / "local" / "slow.py").write_text("import pathlib, time\npathlib.Path('at').touch()\ntime.sleep(30)\n")
    with serve_process("--workers", "2", cwd=tmp_path) as process:
        wait_until((tmp_path / "at").exists, "the plugin to be loaded")
        assert process.stop() == 0
        assert process.log.read_text() == ""


# What keeps it from starting


class OldRedis(socketserver.StreamRequestHandler):
    """Says of itself that it is Redis 5, and yes to all else."""

    def handle(self) -> None:
        while head := self.rfile.readline():
            words = [self.rfile.read(int(self.rfile.readline()[1:]) + 2) for _ in range(int(head[1:]))]
            text = b"redis_version:5.0.14\r\n"
            self.wfile.write(b"$%d\r\n%s\r\n" % (len(text), text) if words[0] == b"INFO\r\n" else b"+OK\r\n")


@pytest.fixture
def old_redis() -> Iterator[Redis]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OldRedis) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Redis(f"redis://127.0.0.1:{server.server_address[1]}/0", "old")
        server.shutdown()
        thread.join()


def assert_refused(place: Path, said: str, code: int = 1) -> None:
    with serve_process("--workers", "3", cwd=place) as process:
        assert process.process.wait(2 * PATIENCE) == code
        log = process.log.read_text().rstrip()
        assert re.fullmatch(said, log), log


def test_what_is_wrong_with_the_file_is_said_once(tmp_path: Path, redis_server: Redis) -> None:
    settle(tmp_path, redis_server, more="streams: {all: [owl]}\n")
    assert_refused(tmp_path, r"plugins\.yaml:5:\d+: streams\.all.*owl.*")


def test_a_wrong_password_is_said_once(tmp_path: Path, own_redis: Callable[..., RedisServer]) -> None:
    redis = own_redis(password="right")  # noqa: S106
    settle(tmp_path, Redis(redis.url.replace("right", "wrong"), redis.prefix))
    assert_refused(tmp_path, r"store: 127.0.0.1:\d+ refuses the user or the password[^\n]*")


def test_a_store_that_is_too_old_is_said_once(tmp_path: Path, old_redis: Redis) -> None:
    settle(tmp_path, old_redis)
    assert_refused(tmp_path, r"store: 127.0.0.1:\d+ is Redis 5\.0\.14: 6\.2 or newer is needed, or Valkey")


def test_a_first_worker_that_crashes_ends_the_service_with_its_exit_code(tmp_path: Path, redis_server: Redis) -> None:
    settle(tmp_path, redis_server)
    (tmp_path / "local" / "crash.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert_refused(tmp_path, "", 128 + signal.SIGKILL)


def test_where_no_socket_can_be_made_the_remedy_is_said(
    tmp_path: Path, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(tmp_path, redis_server)
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    assert_refused(tmp_path, r"/\S+: too long a name for the sockets of the workers: set TMPDIR to [^\n]*")
    assert list(long.iterdir()) == []
