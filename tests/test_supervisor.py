"""`eventmux serve --reload`: the service starts again when code changes, and its clients come back."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from crew import children, is_there
from eventsource import PATIENCE, EventSource, wait_until
from service import Process, serve_process

PLUGIN = """
import asyncio
from collections.abc import AsyncIterator
from eventmux import Event, source

class Note(Event):
    text: str

@source(shared=True)
async def notes() -> AsyncIterator[Note]:
    try:
        while True:
            yield Note(text="VERSION")
            await asyncio.sleep(0.05)
    finally:
        print("closed VERSION", flush=True)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "local").mkdir()
    (tmp_path / "plugins.yaml").write_text(
        "plugins: {dir: local}\nsources: {notes: {}}\nserver: {retry: 100, drain_delay: 30}\n"
    )
    file = tmp_path / "local" / "notes.py"
    file.write_text(PLUGIN.replace("VERSION", "one"))
    return file


@contextlib.contextmanager
def reloading(plugin: Path) -> Iterator[tuple[Process, str]]:
    with serve_process("--reload", cwd=plugin.parent.parent) as process:
        url = process.wait_for_url()
        wait_until(lambda: children(process.process.pid) != [], "the child")
        yield process, url


def starts(process: Process) -> int:
    return len(re.findall(r"^eventmux .* at http", process.log.read_text(), re.MULTILINE))


def test_a_change_of_code_starts_the_service_again_and_an_eventsource_goes_on(plugin: Path) -> None:
    with reloading(plugin) as (process, url):
        with EventSource(f"{url}/sse/notes") as stream:
            assert {event.data["text"] for event in stream.take(3)} == {"one"}
            plugin.write_text(PLUGIN.replace("VERSION", "two"))
            stream.rest()  # raises if it is cut off and not ended
            cursor = stream.cursor
        began = time.monotonic()
        with EventSource(f"{url}/sse/notes", cursor=cursor) as stream:  # waits, and is not refused
            gap, *events = stream.take(4)
            assert gap.event == "stream.gap"  # the log was in the memory of a process
            assert {event.data["text"] for event in events} == {"two"}
        assert time.monotonic() - began < PATIENCE
        assert "closed one" in process.log.read_text()
        assert process.stop() == 0


def test_nobody_is_refused_while_the_service_starts_again(plugin: Path) -> None:
    with reloading(plugin) as (process, url):
        port = int(url.rpartition(":")[2])
        plugin.write_text(PLUGIN.replace("VERSION", "two"))

        def asked() -> bool:
            with socket.create_connection(("127.0.0.1", port), PATIENCE):
                return starts(process) == 2

        wait_until(asked, "the service to start again")
        assert process.stop() == 0


def test_what_is_no_code_does_not_start_it_again(plugin: Path) -> None:
    with reloading(plugin) as (process, _):
        text = plugin.parent.parent / "plugins.yaml"
        text.write_text(text.read_text() + "\n# changed\n")
        (plugin.parent / "notes.txt").write_text("changed")
        (plugin.parent / "other").mkdir()
        child = children(process.process.pid)
        plugin.with_name("more.py").write_text("")
        wait_until(lambda: starts(process) == 2, "the service to start again")
        assert "plugins.yaml changed" not in process.log.read_text()
        assert "notes.txt" not in process.log.read_text()
        assert child != children(process.process.pid)
        assert process.stop() == 0


def test_a_plugin_with_a_syntax_error_is_told_and_mended_by_the_next_change(plugin: Path) -> None:
    with reloading(plugin) as (process, url):
        plugin.write_text("async def notes(:\n")
        wait_until(lambda: "SyntaxError" in process.log.read_text(), "the error to be told")
        plugin.write_text(PLUGIN.replace("VERSION", "two"))
        wait_until(lambda: starts(process) == 3, "the service to start again")
        with EventSource(f"{url}/sse/notes") as stream:
            assert stream.take(1)[0].data["text"] == "two"
        assert process.stop() == 0
        assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_cannot_start_waits_for_a_change_of_its_file_or_the_end(plugin: Path, sig: int) -> None:
    config = plugin.parent.parent / "plugins.yaml"
    right = config.read_text()
    config.write_text(right + "streams: {all: [nothing]}\n")
    with serve_process("--reload", cwd=config.parent) as process:
        wait_until(lambda: "starts again when a file changes" in process.log.read_text(), "the fault to be told")
        assert "plugins.yaml:4" in process.log.read_text()
        config.write_text(right)
        url = process.wait_for_url()
        with EventSource(f"{url}/sse/notes") as stream:
            assert stream.take(1)
        config.write_text(right + "streams: {all: [nothing]}\n")
        plugin.write_text(PLUGIN)
        wait_until(lambda: process.log.read_text().count("starts again when a file changes") == 2, "the fault again")
        process.process.send_signal(sig)
        assert process.process.wait(PATIENCE) == 0
        assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_processes_with_0_while_a_stream_is_open(plugin: Path, sig: int) -> None:
    with reloading(plugin) as (process, url), EventSource(f"{url}/sse/notes") as stream:
        stream.take(2)
        (child,) = children(process.process.pid)
        process.process.send_signal(sig)
        stream.rest()
        assert process.process.wait(PATIENCE) == 0
        assert not is_there(child)
        assert "Traceback" not in process.log.read_text()
        assert "closed one" in process.log.read_text()


def test_a_signal_while_the_service_starts_again_ends_both(plugin: Path) -> None:
    with reloading(plugin) as (process, _):
        plugin.write_text("import time\nprint('loading', flush=True)\ntime.sleep(30)\n")
        wait_until(lambda: "loading" in process.log.read_text(), "the plugin to be loaded")
        (child,) = children(process.process.pid)
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(PATIENCE) == 0
        assert not is_there(child)
        assert "Traceback" not in process.log.read_text()


def test_a_child_does_not_outlive_a_parent_that_is_killed(plugin: Path) -> None:
    with reloading(plugin) as (process, url), EventSource(f"{url}/sse/notes") as stream:
        stream.take(1)
        (child,) = children(process.process.pid)
        os.kill(process.process.pid, signal.SIGKILL)
        stream.rest()
        wait_until(lambda: not is_there(child), "the child to end")


def test_more_than_one_worker_and_reload_do_not_go_together(plugin: Path) -> None:
    with serve_process("--reload", "--workers", "2", cwd=plugin.parent.parent) as process:
        assert process.process.wait(PATIENCE) == 1
        assert process.log.read_text().splitlines() == [
            "--reload --workers 2: one process is started again: leave one of the two out"
        ]


def test_sighup_is_handed_on_and_ends_neither(plugin: Path) -> None:
    file = plugin.parent.parent / "plugins.yaml"
    with reloading(plugin) as (process, url):
        before = children(process.process.pid)
        file.write_text(file.read_text() + "streams: {all: [notes]}\n".replace("notes", "no-such"))
        wait_until(lambda: "not applied" in process.log.read_text(), "the change to be refused")
        for _ in range(20):
            process.process.send_signal(signal.SIGHUP)
        wait_until(lambda: process.log.read_text().count("not applied") > 1, "the file to be read again")
        plugin.write_text(PLUGIN.replace("VERSION", "two"))
        wait_until(lambda: children(process.process.pid) not in ([], before), "the service to start again")
        for _ in range(20):
            process.process.send_signal(signal.SIGHUP)
        file.write_text("plugins: {dir: local}\nsources: {notes: {}}\n")
        wait_until(lambda: httpx2.get(f"{url}/healthz", trust_env=False).status_code == 200, "the service to answer")
        assert 0 == process.stop()
        assert "Traceback" not in process.log.read_text()
