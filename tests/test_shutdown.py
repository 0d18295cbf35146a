"""How the service ends: what clients, balancers and generators get, and how the process does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from eventmux import Event, source
from eventmux.hub import Hub
from eventmux.runs import Wanted
from eventmux.subscription import Subscription
from eventsource import PATIENCE, EventSource, wait_until
from raw import Raw
from service import Client, Process, enable, serve_process
from taking import Taking


class Number(Event):
    n: int


@source(shared=True)
async def numbers() -> AsyncIterator[Number]:
    while True:
        yield Number(n=1)
        await asyncio.sleep(0.05)


SIGNALS = [signal.SIGTERM, signal.SIGINT]

PLUGIN = """
import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from eventmux import Event, source

class Note(Event):
    n: int

def note(name: str) -> None:
    with Path("closed").open("a") as file:
        file.write(f"{name}\\n")

@source(shared=True)
async def tidy() -> AsyncIterator[Note]:
    try:
        while True:
            yield Note(n=1)
            await asyncio.sleep(0.05)
    finally:
        note("tidy")

@source
async def slow() -> AsyncIterator[Note]:
    try:
        while True:
            yield Note(n=1)
            await asyncio.sleep(0.05)
    finally:
        note("slow begins")
        await asyncio.sleep(30)

@source
async def blocks() -> AsyncIterator[Note]:
    yield Note(n=1)
    await asyncio.sleep(0.2)
    note("blocks")
    time.sleep(30)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "plugin.py").write_text(PLUGIN)
    return tmp_path


def configure(place: Path, server: str = "") -> None:
    text = f"plugins: {{dir: local}}\nsources: {{tidy: {{}}, slow: {{}}, blocks: {{}}}}\nserver: {{{server}}}\n"
    (place / "plugins.yaml").write_text(text)


@contextlib.contextmanager
def ending(place: Path, server: str = "") -> Iterator[tuple[Process, Client]]:
    configure(place, server)
    with serve_process(cwd=place) as process:
        yield process, Client(process.wait_for_url())


def closed(place: Path) -> list[str]:
    file = place / "closed"
    return file.read_text().splitlines() if file.exists() else []


def assert_clean(process: Process, code: int = 0) -> None:
    assert process.process.wait(PATIENCE) == code
    log = process.log.read_text()
    assert "Traceback" not in log
    assert "Error" not in log


# In order


@pytest.mark.parametrize("sig", SIGNALS)
def test_unready_comes_first_and_streams_flow_and_are_opened_until_the_delay_is_over(place: Path, sig: int) -> None:
    with ending(place, "drain_delay: 1.5, retry: 3000, spread: 2") as (process, service):
        assert service.get("/readyz").status_code == 200
        with service.open("/sse/tidy") as before:
            before.take(2)
            started = time.monotonic()
            process.process.send_signal(sig)
            wait_until(lambda: service.get("/readyz").status_code == 503, "the service to be unready")
            assert time.monotonic() - started < 1
            assert service.get("/readyz").json()["status"] == "draining"
            with service.open("/sse/tidy") as after:
                for stream in (before, after):
                    stream.take(3)
                    stream.parser.retry = None
                for stream in (before, after):
                    stream.rest()
                    assert stream.parser.retry is not None
                    assert 3000 <= stream.parser.retry <= 5000
            assert time.monotonic() - started >= 1.5
            with pytest.raises(httpx2.ConnectError):
                service.get("/healthz")
        assert_clean(process)
        assert time.monotonic() - started < 1.5 + 10
    assert closed(place) == ["tidy"]


def test_clients_come_back_spread_over_the_window(place: Path) -> None:
    with ending(place, "retry: 1000, spread: 60") as (process, service), contextlib.ExitStack() as stack:
        streams = [stack.enter_context(service.open("/sse/tidy")) for _ in range(40)]
        for stream in streams:
            stream.take(1)
        process.process.send_signal(signal.SIGTERM)
        for stream in streams:
            stream.rest()
        retries = [stream.parser.retry or 0 for stream in streams]
        assert_clean(process)
    assert min(retries) >= 1000
    assert max(retries) <= 61_000
    assert max(retries) - min(retries) > 30_000  # of forty, with a chance of one in a hundred million
    assert len(set(retries)) > 30


def test_all_ends_within_the_grace_whoever_takes_nothing_and_does_not_close(place: Path) -> None:
    with ending(place, "grace: 2") as (process, service), contextlib.ExitStack() as stack:
        port = int(service.url.rpartition(":")[2])
        for path in ("/sse/slow", "/sse/tidy"):
            client = stack.enter_context(Raw(port=port, buffer=4096))
            client.ask(path)
            client.head()
        started = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(PATIENCE) == 0
        assert time.monotonic() - started < 2.6
        assert "Traceback" not in process.log.read_text()
        assert "did not close in time: abandoned, of slow" in process.log.read_text()
    assert sorted(closed(place)) == ["slow begins", "tidy"]


def test_a_source_that_blocks_the_loop_does_not_keep_the_process(place: Path) -> None:
    with ending(place, "grace: 1") as (process, service), service.open("/sse/blocks"):
        wait_until(lambda: closed(place) == ["blocks"])
        started = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(PATIENCE) == 0
        assert time.monotonic() - started < 2
        assert "took longer to end than it may" in process.log.read_text()


# At once


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_signal_ends_the_delay_and_all_else_at_once(place: Path, first: int, second: int) -> None:
    with ending(place, "drain_delay: 60, grace: 60") as (process, service), contextlib.ExitStack() as stack:
        stack.enter_context(service.open("/sse/tidy")).take(1)
        stack.enter_context(service.open("/sse/slow")).take(1)
        process.process.send_signal(first)
        wait_until(lambda: service.get("/readyz").status_code == 503, "the service to be unready")
        assert process.process.poll() is None
        started = time.monotonic()
        process.process.send_signal(second)
        assert process.process.wait(PATIENCE) == 0
        assert time.monotonic() - started < 1.3
        assert "Traceback" not in process.log.read_text()
    assert sorted(closed(place)) == ["slow begins", "tidy"]


def test_a_second_signal_while_a_generator_closes_ends_at_once(place: Path) -> None:
    with ending(place, "grace: 60") as (process, service), service.open("/sse/slow") as stream:
        stream.take(1)
        process.process.send_signal(signal.SIGTERM)
        stream.rest()
        wait_until(lambda: closed(place) == ["slow begins"])
        time.sleep(0.3)  # it is to have been waited for
        assert process.process.poll() is None
        started = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(PATIENCE) == 0
        assert time.monotonic() - started < 1.3
        assert "Traceback" not in process.log.read_text()


def test_a_second_signal_ends_a_process_whose_loop_is_blocked(place: Path) -> None:
    with ending(place, "grace: 60") as (process, service), service.open("/sse/blocks"):
        wait_until(lambda: closed(place) == ["blocks"])
        process.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.process.poll() is None
        started = time.monotonic()
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(PATIENCE) == 0
        assert time.monotonic() - started < 1.5


# At start-up


@pytest.mark.parametrize("sig", SIGNALS)
def test_a_signal_while_plugins_are_loaded_ends_the_process_with_0_and_no_word(place: Path, sig: int) -> None:
    (place / "local" / "plugin.py").write_text(
        "import pathlib, time\npathlib.Path('loading').touch()\ntime.sleep(30)\n"
    )
    configure(place)
    with serve_process(cwd=place) as process:
        wait_until((place / "loading").exists, "the plugin to be loaded")
        process.process.send_signal(sig)
        assert process.process.wait(5) == 0
        assert process.log.read_text() == ""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.3])
def test_a_signal_at_any_time_after_the_urls_are_printed_ends_the_process_with_0(place: Path, delay: float) -> None:
    configure(place)
    with serve_process(cwd=place) as process:
        wait_until(lambda: "eventmux 0" in process.log.read_text(), "the service to say where it listens")
        time.sleep(delay)
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(5) == 0
        assert "Traceback" not in process.log.read_text()


# Under a plain uvicorn


@pytest.mark.parametrize("options", [[], ["--workers", "2"], ["--reload"]], ids=["one", "workers", "reload"])
@pytest.mark.parametrize("sig", SIGNALS)
def test_under_a_plain_uvicorn_a_signal_ends_streams_generators_and_processes(
    place: Path, sig: int, options: list[str]
) -> None:
    configure(place)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    words = ["eventmux.app:create_app", "--factory", "--port", str(port), *options]
    log = place / "uvicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *words],
            cwd=place,
            env={**os.environ},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Client(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: answers(service), "uvicorn to answer")
        with service.open("/sse/tidy") as stream:
            stream.take(2)
            stream.parser.retry = None
            started = time.monotonic()
            process.send_signal(sig)
            stream.rest()
            assert stream.parser.retry is not None
            assert stream.parser.retry >= 2000
        process.wait(10)
        assert time.monotonic() - started < 5
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
    assert "Traceback" not in log.read_text()
    assert closed(place) == ["tidy"]
    assert not is_open(port)


@pytest.mark.parametrize(
    "options",
    [["--http", "eventmux.web.protocol:Protocol"], ["--timeout-graceful-shutdown", "2"]],
    ids=["ours", "time"],
)
def test_under_uvicorn_a_client_that_takes_nothing_does_not_keep_the_process(place: Path, options: list[str]) -> None:
    (place / "local" / "plugin.py").write_text(
        PLUGIN.replace("    n: int", "    n: int\n    text: str = 'x' * 100_000")
    )
    configure(place, "grace: 1, send_timeout: 60")
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    log = place / "uvicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "eventmux.app:create_app", "--factory", "--port", str(port), *options],
            cwd=place,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: answers(Client(f"http://127.0.0.1:{port}")), "uvicorn to answer")
        with Raw(port=port, buffer=4096) as stalled, EventSource(f"http://127.0.0.1:{port}/sse/tidy") as reader:
            stalled.ask("/sse/tidy")
            reader.take(50)
            process.send_signal(signal.SIGTERM)
            assert process.wait(8) is not None
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE)
    assert closed(place) == ["tidy"]


def answers(service: Client) -> bool:
    try:
        return service.get("/healthz").status_code == 200
    except httpx2.TransportError:
        return False


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_drain_delay_is_that_of_the_file_as_it_is_now(place: Path) -> None:
    with ending(place, "drain_delay: 0") as (process, service), service.open("/sse/tidy") as stream:
        stream.take(1)
        configure(place, "drain_delay: 2")
        wait_until(lambda: "applied" in process.log.read_text(), "the change to be applied")
        started = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        wait_until(lambda: service.get("/readyz").status_code == 503, "the service to be unready")
        stream.rest()
        assert time.monotonic() - started >= 2
        assert_clean(process)


def test_whoever_signals_again_and_again_does_not_put_off_the_end(place: Path) -> None:
    with ending(place, "grace: 60") as (process, service), service.open("/sse/slow") as stream:
        stream.take(1)
        started = time.monotonic()
        while process.process.poll() is None and time.monotonic() - started < 8:
            process.process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert time.monotonic() - started < 3
        assert process.process.returncode == 0


def test_sighup_while_the_service_starts_or_ends_is_no_end(place: Path) -> None:
    (place / "local" / "late.py").write_text(
        "import pathlib, time\npathlib.Path('loading').touch()\ntime.sleep(1)\n" + PLUGIN.replace("tidy", "late")
    )
    configure(place, "grace: 3")
    with serve_process(cwd=place) as process:
        wait_until((place / "loading").exists, "the plugins to be loaded")
        process.process.send_signal(signal.SIGHUP)
        service = Client(process.wait_for_url())
        with service.open("/sse/tidy") as stream:
            stream.take(1)
            process.process.send_signal(signal.SIGTERM)
            while process.process.poll() is None:
                process.process.send_signal(signal.SIGHUP)
                time.sleep(0.002)
        assert_clean(process)


@pytest.mark.anyio
async def test_a_drain_of_many_streams_leaves_the_loop_to_others_meanwhile(anyio_backend: str) -> None:
    hub, enabled = Hub(), enable(numbers)
    clients = [Taking(hub, [Wanted(enabled, enabled.validate({}))]) for _ in range(3000)]
    hub.drain()
    turns = 0
    while not all(client.is_sent_away for client in clients):
        turns += 1
        await asyncio.sleep(0)
    assert turns > 1
    for client in clients:
        client.close()
    await hub.close()


@pytest.mark.anyio
async def test_an_end_whose_follower_fails_is_logged_and_is_no_other_clients(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub, enabled = Hub(), enable(numbers)
    clients = [Taking(hub, [Wanted(enabled, enabled.validate({}))]) for _ in range(3)]

    def fails(_: Subscription) -> None:
        raise RuntimeError("no room on the disk")

    clients[0].subscription.on_close = fails
    for client in clients:
        client.close()
    assert hub.subscriptions == 0
    assert "no room on the disk" in caplog.text
    await hub.close()
