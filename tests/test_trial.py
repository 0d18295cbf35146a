"""The trial at start-up: where it does not come out as it must, streams take the portable way, and the log says why."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import portable
from eventmux.config import ServerConfig
from eventmux.web import trial
from eventmux.web.direct import DirectOutlet, Taken
from eventmux.web.protocol import Protocol
from eventmux.web.trial import why_not
from eventsource import wait_until
from raw import LOOPS, Feed, Raw, Running, running
from service import settings_of

DIRECT = ServerConfig(direct=True)

pytestmark = pytest.mark.skipif(portable.chosen.is_set(), reason="it is about the direct path")


def works(service: Running, feed: Feed, *, is_direct: bool) -> None:
    """Two streams, one after the other on one connection."""
    with Raw(service) as client:
        for n in (1, 2):
            client.ask("/sse/feed?limit=1")
            client.until(b"retry: ")
            feed.note(n)
            client.until(b"stream.end")
            client.until(b"0\r\n\r\n")
        client.ask("/sse/feed")
        client.until(b"\n\n")
        feed.note(3)
        assert b'{"n":3,' in client.until(b"}\n\n")
        assert len(service.outlets) == is_direct
        if is_direct:
            wait_until(service.is_idle, "the request to be over for uvicorn")
        else:
            assert not service.is_idle()


Break = Callable[[pytest.MonkeyPatch], None]
taken_over = Protocol.take_over


def another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn, "__version__", "0.55.0")


def a_wrong_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_over(self: Protocol) -> Taken | None:
        self.transport.write(b"x")
        return taken_over(self)

    monkeypatch.setattr(Protocol, "take_over", take_over)


def a_byte_behind_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_over(self: Protocol) -> Taken | None:
        self.transport.write(b"3\r\n:\n\n\r\n")  # a comment, and well formed
        return taken_over(self)

    monkeypatch.setattr(Protocol, "take_over", take_over)


def an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_over(self: Protocol) -> Taken | None:
        raise AttributeError("uvicorn has no such thing any more")

    monkeypatch.setattr(Protocol, "take_over", take_over)


def never_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: DirectOutlet) -> None:
        pass

    monkeypatch.setattr(trial, "SECONDS", 0.2)
    monkeypatch.setattr(DirectOutlet, "_finish", never)


def nothing_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Protocol, "take_over", lambda self: None)


def no_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_over(self: Protocol) -> Taken | None:
        taken = taken_over(self)
        return taken and taken._replace(give_back=None)

    monkeypatch.setattr(Protocol, "take_over", take_over)


BREAKS: dict[Break, str] = {
    another_release: "uvicorn 0.55.0 is not one that it was tested with",
    a_wrong_byte: "the trial failed: ",
    a_byte_behind_the_first: "the trial took over 2 of 2 connections, and got [",
    an_error: "the trial ",
    never_an_end: "the trial failed: TimeoutError()",
    nothing_taken_over: "the trial took over 0 of 2 connections, and got [",
    no_way_back: "the trial ",
}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "eventmux"]


@pytest.mark.parametrize(
    ("break_it", "loop"),
    [(break_it, LOOPS[number % 2]) for number, break_it in enumerate(BREAKS)],
    ids=lambda found: getattr(found, "__name__", found),
)
def test_where_the_trial_fails_the_log_says_why_once_and_streams_work_by_the_portable_path(
    break_it: Break, loop: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_it(monkeypatch)
    feed = Feed()
    with running(settings_of(feed.source, server=DIRECT), loop=loop) as service:
        works(service, feed, is_direct=False)
    (warning,) = warnings(caplog)
    assert warning.startswith("streams go through ASGI, at more cost: " + BREAKS[break_it])


@pytest.mark.parametrize("loop", LOOPS)
def test_where_it_succeeds_nothing_is_logged_and_streams_are_direct(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "eventmux")
    feed = Feed()
    with running(settings_of(feed.source, server=DIRECT), loop=loop) as service:
        works(service, feed, is_direct=True)
    assert warnings(caplog) == []
    assert "trial" not in caplog.text


def test_where_streams_are_not_to_be_direct_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    another_release(monkeypatch)
    feed = Feed()
    with running(settings_of(feed.source, server=ServerConfig(direct=False))) as service:
        works(service, feed, is_direct=False)
    assert warnings(caplog) == []


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelno > 20] == []


@pytest.mark.usefixtures("no_errors")
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="it counts descriptors in Linux' /proc")
@pytest.mark.parametrize("break_it", [None, a_wrong_byte, an_error, never_an_end, no_way_back])
def test_it_leaves_no_task_no_socket_and_no_timer(break_it: Break | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if break_it:
        break_it(monkeypatch)

    async def main() -> None:
        await asyncio.sleep(0)
        loop: Any = asyncio.get_running_loop()
        threads, before = threading.active_count(), descriptors()
        reason = await why_not(DIRECT)
        assert (reason is None) == (break_it is None)
        async with asyncio.timeout(5):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        gc.collect()
        assert descriptors() == before
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
        assert len(asyncio.all_tasks()) == 1
        assert threading.active_count() == threads

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(main())
