"""Runs and their logs on a real server: who comes back goes on, who does not is let go, and what fails is mended."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from eventmux import Context, Event, SourceError, source
from eventmux.config import LimitsConfig, ServerConfig
from eventmux.policy import Bounds, Restart
from eventsource import PATIENCE, wait_until
from service import Service, enable, serving, settings_of
from whatwg import parse


class Note(Event):
    n: int
    text: str = ""


class Script:
    """A source that a test drives: `say` makes every run of it yield an event. Starts and ends are counted."""

    def __init__(self, **options: Any) -> None:
        self.started: list[Context] = []
        self.closed = 0
        self.said = 0
        self._goal = 0
        self._lock = threading.Condition()

        @source(name="script", **options)
        async def script(ctx: Context, room: str = "") -> AsyncIterator[Note]:
            self.started.append(ctx)
            told = self._goal if self.is_live else 0
            try:
                while True:
                    while told < self._goal:
                        told += 1
                        yield Note(n=told, text=room)
                    if self.error and told >= self._goal:
                        error, self.error = self.error, None
                        raise error
                    if self.over:
                        return
                    await asyncio.sleep(0.001)
            finally:
                self.closed += 1

        self.is_live = bool(options.get("shared"))
        self.error: Exception | None = None
        self.over = False
        self.source = script

    def say(self, count: int = 1) -> None:
        self._goal += count


def numbers(events: list[Any]) -> list[int]:
    return [event.data["n"] for event in events if event.event == "note"]


def test_a_private_run_outlives_its_client_and_goes_on_where_it_was() -> None:
    script = Script()
    with serving(settings_of(enable(script.source, linger=60)), expect_quiet=False) as service:
        with service.open("/sse/script") as stream:
            script.say(3)
            assert numbers(stream.take(2)) == [1, 2]
            cursor = stream.cursor
        script.say(2)
        with service.open("/sse/script", cursor=cursor) as stream:
            assert numbers(stream.take(3)) == [3, 4, 5]
            script.say()
            assert numbers(stream.take(1)) == [6]
        assert len(script.started) == 1


def test_one_that_is_not_resumed_is_cancelled_after_its_linger_and_its_cursor_is_a_gap() -> None:
    script = Script()
    with serving(settings_of(enable(script.source, linger=0.05)), expect_quiet=False) as service:
        with service.open("/sse/script") as stream:
            script.say()
            stream.take(1)
        wait_until(lambda: script.closed == 1)
        with service.open("/sse/script", cursor=stream.cursor) as again:
            gap, first = again.take(2)
        assert gap.data == {"source": "script", "reason": "unknown", "missed": None}
        assert first.data["n"] == 1


def test_linger_zero_closes_a_run_with_its_last_client() -> None:
    script = Script()
    with serving(settings_of(enable(script.source, linger=0))) as service:
        with service.open("/sse/script") as stream:
            script.say()
            stream.take(1)
        wait_until(lambda: script.closed == 1)


def test_a_client_that_is_cut_off_before_its_first_event_misses_nothing() -> None:
    script = Script()
    with serving(settings_of(enable(script.source, linger=60)), expect_quiet=False) as service:
        with service.open("/sse/script") as stream:
            chunks = stream.response.iter_raw()
            while not stream.cursor:
                stream.parser.feed(next(chunks))
        script.say(3)
        with service.open("/sse/script", cursor=stream.cursor) as again:
            assert numbers(again.take(3)) == [1, 2, 3]


def test_a_second_client_with_the_same_cursor_follows_along() -> None:
    script = Script()
    with serving(settings_of(enable(script.source, linger=60)), expect_quiet=False) as service:
        with service.open("/sse/script") as one:
            script.say(2)
            one.take(1)
            with service.open("/sse/script", cursor=one.cursor) as two:
                script.say()
                assert numbers(two.take(2)) == [2, 3]
                assert numbers(one.take(2)) == [2, 3]
        assert len(script.started) == 1


def test_a_private_cursor_is_good_for_the_same_parameters_only() -> None:
    script = Script()
    with serving(settings_of(enable(script.source, linger=60)), expect_quiet=False) as service:
        with service.open("/sse/script?room=a") as stream:
            script.say()
            stream.take(1)
        with service.open("/sse/script?room=b", cursor=stream.cursor) as other:
            assert [event.event for event in other.take(2)] == ["stream.gap", "note"]
        assert len(script.started) == 2


def test_detached_runs_are_bounded_and_the_oldest_goes_first() -> None:
    script = Script()
    limits = LimitsConfig(detached=2)
    with serving(settings_of(enable(script.source, linger=60), limits=limits), expect_quiet=False) as service:
        script.say()
        cursors = []
        for _ in range(3):
            with service.open("/sse/script") as stream:
                stream.take(1)
            cursors.append(stream.cursor)
            wait_until(lambda: service.hub.subscriptions == 0)
        wait_until(lambda: script.closed == 1)
        script.say()
        for cursor, found in zip(reversed(cursors), ("note", "note", "stream.gap"), strict=True):
            with service.open("/sse/script", cursor=cursor) as stream:
                assert stream.take(1)[0].event == found
            wait_until(lambda: service.hub.subscriptions == 0)


def test_the_runs_of_a_source_are_bounded_and_what_nobody_reads_gives_way() -> None:
    script = Script()
    settings = settings_of(enable(script.source, linger=60, max_runs=2))
    with serving(settings, expect_quiet=False) as service:
        script.say()
        with service.open("/sse/script") as left:
            left.take(1)
        with service.open("/sse/script") as one, service.open("/sse/script") as two:
            one.take(1)
            two.take(1)
            wait_until(lambda: script.closed == 1, "the run that was left to give way")
            with service.open("/sse/script") as turned_away:
                assert turned_away.response.status_code == 200
                assert turned_away.rest() == []
                assert turned_away.parser.retry is not None
                assert turned_away.parser.retry > 2000
            refused = service.get("/sse/script", headers={"accept": "application/json"})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert "takes no more now" in refused.json()["detail"]


def test_one_full_source_of_a_merge_leaves_no_run_of_the_others_behind() -> None:
    script = Script()

    @source
    async def other() -> AsyncIterator[Note]:
        yield Note(n=0)
        await asyncio.Event().wait()

    with serving(settings_of(enable(other), enable(script.source, max_runs=1))) as service:
        with service.open("/sse/script") as stream:
            script.say()
            stream.take(1)
            with service.open("/sse?sources=other,script") as turned_away:
                assert turned_away.rest() == []
            wait_until(lambda: service.hub.runs == 1)


def test_a_shared_log_is_kept_while_its_run_is_stopped_and_the_next_run_goes_on_in_it() -> None:
    script = Script(shared=True)
    with serving(settings_of(script.source)) as service:
        with service.open("/sse/script") as stream:
            wait_until(lambda: len(script.started) == 1)
            script.say(2)
            assert numbers(stream.take(2)) == [1, 2]
        wait_until(lambda: script.closed == 1)
        with service.open("/sse/script", cursor=stream.cursor) as again:
            wait_until(lambda: len(script.started) == 2)
            script.say()
            assert numbers(again.take(1)) == [3]
            assert again.cursor == stream.cursor.replace(".2", ".3")
        assert script.started[0].last is None
        assert script.started[1].last == Note(n=2)


def test_a_shared_run_outlives_its_last_client() -> None:
    script = Script(shared=True)
    with serving(settings_of(enable(script.source, linger=60)), expect_quiet=False) as service:
        with service.open("/sse/script") as stream:
            wait_until(lambda: len(script.started) == 1)
            script.say(1)
            stream.take(1)
        script.say(2)
        with service.open("/sse/script", cursor=stream.cursor) as again:
            assert numbers(again.take(2)) == [2, 3]
        assert len(script.started) == 1


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_finished_run_can_be_read_to_its_end_again(is_shared: bool) -> None:
    script = Script(shared=is_shared)
    script.is_live = False
    script.say(3)
    script.over = True
    with serving(settings_of(enable(script.source, linger=60)), expect_quiet=False) as service:
        with service.open("/sse/script") as stream:
            first = stream.take(1)[0]
            stream.rest()
        with service.open("/sse/script", cursor=first.id) as again:
            events = again.rest()
            assert numbers(events) == [2, 3]
            assert events[-1].data == {"source": "script", "reason": "completed"}
        assert service.get("/sse/script", headers={"last-event-id": again.cursor}).status_code == 204
        with service.open("/sse/script") as fresh:  # who brings no cursor starts another run
            assert numbers(fresh.rest()) == [1, 2, 3]
        assert len(script.started) == 2


def test_a_limit_is_said_by_the_cursor_for_all_time() -> None:
    script = Script()
    script.say(3)
    with serving(settings_of(script.source)) as service, service.open("/sse/script?limit=2") as stream:
        assert [event.event for event in stream.rest()] == ["note", "note", "stream.end"]
    with serving(settings_of(script.source)) as service:  # another process
        response = service.get("/sse/script?limit=2", headers={"last-event-id": stream.cursor})
        assert (response.status_code, response.content) == (204, b"")


def test_once_never_runs_again_for_a_reconnect() -> None:
    script = Script(once=True)
    script.say()
    with serving(settings_of(script.source)) as service:
        with service.open("/sse/script") as stream:
            stream.take(1)
        wait_until(lambda: script.closed == 1)
        for cursor in (stream.cursor, "!!!", "AAAA.5"):
            with service.open("/sse/script", cursor=cursor) as again:
                (end,) = again.rest()
            assert end.data == {"source": "script", "reason": "lost"}
            assert again.cursor == "script!"
        assert len(script.started) == 1


def test_what_is_lost_in_a_merge_leaves_the_others_flowing() -> None:
    script = Script(once=True)
    script.say()

    @source
    async def other() -> AsyncIterator[Note]:
        while True:
            yield Note(n=-1)
            await asyncio.sleep(0.005)

    with serving(settings_of(script.source, other)) as service:
        with service.open("/sse?sources=script,other") as stream:
            stream.take(3)
        wait_until(lambda: script.closed == 1)
        with service.open("/sse?sources=script,other", cursor=stream.cursor) as again:
            seen = [(event.event, event.data.get("reason")) for event in again.take(4)]
    assert ("stream.end", "lost") in seen
    assert ("stream.gap", "unknown") in seen  # of the other, whose run is gone too, and runs anew
    assert len(script.started) == 1


def since_service(script: Script, **policy: Any) -> Any:
    return serving(settings_of(enable(script.source, linger=60, **policy)), expect_quiet=False)


def test_since_replays_what_is_kept() -> None:
    script = Script(shared=True)
    with since_service(script) as service, service.open("/sse/script") as stream:
        wait_until(lambda: len(script.started) == 1)
        script.say(2)
        stream.take(2)
        between = time.time()
        wait_until(lambda: time.time() > between + 0.002)
        script.say(2)
        stream.take(2)
        iso = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(between)) + f"{between % 1:.6f}"[1:]
        for since, expected in [
            ("earliest", [1, 2, 3, 4]),
            ("10m", [1, 2, 3, 4]),
            ("0s", []),
            (iso + "Z", [3, 4]),
            (iso, [3, 4]),
            ("2020-01-01", [1, 2, 3, 4]),
            ("2100-01-01T00:00:00%2B01:00", []),
        ]:
            with service.open(f"/sse/script?since={since}") as replay:
                assert numbers(replay.take(len(expected))) == expected, since
        with service.open("/sse/script?since=earliest", cursor=stream.cursor.replace(".4", ".3")) as resumed:
            assert numbers(resumed.take(1)) == [4]  # the cursor wins


def test_since_before_what_is_kept_is_a_gap() -> None:
    script = Script(shared=True)
    with since_service(script, history=Bounds(events=2)) as service, service.open("/sse/script") as stream:
        wait_until(lambda: len(script.started) == 1)
        for _ in range(5):
            script.say()
            stream.take(1)
        with service.open("/sse/script?since=10m") as replay:
            gap, *rest = replay.take(3)
            assert gap.data == {"source": "script", "reason": "evicted", "missed": None}
            assert numbers(rest) == [4, 5]
        with service.open("/sse/script?since=earliest") as replay:
            assert numbers(replay.take(2)) == [4, 5]


@pytest.mark.parametrize("since", ["yesterday", "10", "-5m", "10ms", "", "2026-13-01", "9" * 20 + "d"])
def test_a_since_that_is_no_time_is_a_422(since: str) -> None:
    script = Script(shared=True)
    with serving(settings_of(script.source)) as service:
        response = service.get(f"/sse/script?since={since}")
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", "since"]


def test_a_merged_replay_comes_in_the_order_of_arrival_across_sources_and_can_be_cut_anywhere() -> None:
    order: list[str] = []

    def talker(name: str) -> Any:
        @source(name=name, shared=True)
        async def talk() -> AsyncIterator[Note]:
            n = 0
            while len(order) < 900:
                await asyncio.sleep(0)
                n += 1
                order.append(name)
                yield Note(n=n, text=name)
            await asyncio.Event().wait()

        return enable(talk, linger=60)

    with serving(settings_of(talker("a"), talker("b"), talker("c")), expect_quiet=False) as service:
        with service.open("/sse?sources=a,b,c&since=earliest") as live:
            live.take(900)
        with service.open("/sse?sources=a,b,c&since=earliest") as replay:
            first = replay.take(333)
        with service.open("/sse?sources=a,b,c", cursor=replay.cursor) as rest:
            events = first + rest.take(len(order) - 333)
    assert [event.data["text"] for event in events] == order


def slow_reader(service: Service, path: str) -> socket.socket:
    """A client that asks and then reads nothing; its own buffer is small."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def flood(size: int = 50_000) -> Any:
    @source(shared=True)
    async def hot() -> AsyncIterator[Note]:
        n = 0
        while True:
            n += 1
            yield Note(n=n, text="x" * size)
            await asyncio.sleep(0)

    return hot


MORE_THAN_THE_KERNEL_HIDES = 24_000_000  # bytes; it takes some four million for a client that does not read


def overtake(service: Service) -> None:
    """Read the hot source elsewhere until one that reads nothing is certainly behind."""
    with httpx2.stream("GET", f"{service.url}/sse/hot", trust_env=False, timeout=PATIENCE) as response:
        left = MORE_THAN_THE_KERNEL_HIDES
        for chunk in response.iter_raw():
            left -= len(chunk)
            if left < 0:
                return


def read_until(client: socket.socket, end: bytes) -> bytes:
    text = bytearray()
    while chunk := client.recv(1 << 20):
        text += chunk
        if end in text[-len(chunk) - len(end) :]:
            break
    return bytes(text)


def told(text: bytes) -> list[dict[str, Any]]:
    """The events in a chunked response as far as it has been read."""
    body, rest = b"", text.partition(b"\r\n\r\n")[2]
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return [json.loads(message.data) for message in parse(body)]


def test_a_reader_that_lags_is_moved_on_with_a_gap_that_says_how_much_is_missing() -> None:
    hot = enable(flood(), history=Bounds(events=20))
    with serving(settings_of(hot)) as service, slow_reader(service, "/sse/hot") as client:
        overtake(service)
        text = read_until(client, b"stream.gap")
        text += read_until(client, b"}\n\n")
        text += read_until(client, b"event: note")
        text += read_until(client, b"}\n\n")
    before = None
    gaps = 0
    for data in told(text):
        if "missed" in data:
            assert data["reason"] == "lagged"
            assert before is not None
            before += data["missed"]
            gaps += 1
        else:
            assert before is None or data["n"] == before + 1
            before = data["n"]
    assert gaps >= 1


def test_one_that_is_to_be_disconnected_comes_back_and_is_told_then() -> None:
    hot = enable(flood(), history=Bounds(events=20), overflow="disconnect", linger=60)
    with serving(settings_of(hot), expect_quiet=False) as service, slow_reader(service, "/sse/hot") as client:
        overtake(service)
        text = read_until(client, b"\r\n0\r\n\r\n")
        assert b"stream.gap" not in text
        assert b"stream.end" not in text
        assert b"\nretry: " in text[-100:]
        cursor = text.rpartition(b"\nid: ")[2].partition(b"\n")[0].decode()
        with service.open("/sse/hot", cursor=cursor) as again:
            gap, first = again.take(2)
    assert gap.data["reason"] == "evicted"
    assert first.data["n"] == int(cursor.rpartition(".")[2]) + gap.data["missed"] + 1


def test_a_client_that_takes_nothing_is_cut_off_after_the_send_timeout(caplog: pytest.LogCaptureFixture) -> None:
    server = ServerConfig(send_timeout=0.2)
    with serving(settings_of(flood(), server=server)) as service:
        with slow_reader(service, "/sse/hot") as client:
            wait_until(lambda: service.hub.subscriptions == 1)
            wait_until(lambda: service.hub.subscriptions == 0, "the client to be let go")
            with pytest.raises(ConnectionResetError):  # at once, although it has not read what was sent
                while client.recv(1 << 16):
                    pass
        assert "took nothing for 0.2 seconds: cut off" in caplog.text
        assert "Exception in ASGI" not in caplog.text


FAST = Restart(backoff=0.001, max_backoff=0.01, attempts=3, quarantine=60)


def test_a_failing_shared_source_restarts_and_goes_on_in_its_log() -> None:
    script = Script(shared=True)
    with serving(settings_of(enable(script.source, restart=FAST))) as service, service.open("/sse/script") as stream:
        wait_until(lambda: len(script.started) == 1)
        script.say(2)
        assert numbers(stream.take(2)) == [1, 2]
        script.error = SourceError("upstream is away")
        (error,) = stream.take(1)
        assert error.event == "stream.error"
        assert (error.data["message"], error.data["retryable"]) == ("upstream is away", True)
        wait_until(lambda: len(script.started) == 2)
        assert script.started[1].last == Note(n=2)
        script.say()
        (after,) = stream.take(1)
        assert after.data["n"] == 3
        assert int(after.id.rpartition(".")[2]) == int(error.id.rpartition(".")[2]) + 1


def state_of(service: Service, name: str) -> str:
    ready: str = service.get("/readyz").json()["sources"][name]["state"]
    (row,) = [row for row in service.get("/sources").json()["sources"] if row["name"] == name]
    assert row["state"] == ready
    return ready


def test_a_source_that_fails_again_and_again_is_quarantined_and_its_streams_stay_open() -> None:
    attempts = 0

    @source(shared=True)
    async def ill() -> AsyncIterator[Note]:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("still ill")
        yield Note(n=0)

    settings = settings_of(enable(ill, restart=FAST), server=ServerConfig(heartbeat=0.02))
    with serving(settings) as service, service.open("/sse/ill") as stream:
        events = stream.take(3)
        assert [(event.event, event.data["retryable"]) for event in events] == [("stream.error", True)] * 3
        wait_until(lambda: state_of(service, "ill") == "quarantined")
        while len(stream.parser.comments) < 5:  # heartbeats
            assert stream.parser.feed(next(stream.chunks)) == []
        with service.open("/sse/ill") as newcomer:  # is told at once why nothing comes
            (error,) = newcomer.take(1)
            assert error == events[-1]
        assert attempts == 3


def test_a_quarantine_outlives_its_clients_and_ends_by_itself() -> None:
    attempts = 0
    is_well = False

    @source(shared=True)
    async def ill() -> AsyncIterator[Note]:
        nonlocal attempts
        attempts += 1
        if not is_well:
            raise RuntimeError("still ill")
        yield Note(n=attempts)
        await asyncio.Event().wait()

    restart = Restart(backoff=0.001, max_backoff=0.01, attempts=2, quarantine=1.5)
    with serving(settings_of(enable(ill, restart=restart))) as service:
        with service.open("/sse/ill") as stream:
            errors = stream.take(2)
        wait_until(service.is_quiet)
        is_well = True
        with service.open("/sse/ill", cursor=stream.cursor) as again:
            assert state_of(service, "ill") == "quarantined"
            assert attempts == 2  # coming and going does not shorten it
            (event,) = again.take(1)
            assert event.data["n"] == 3
            assert event.id.partition(".")[0] == errors[0].id.partition(".")[0]  # the same log
            assert state_of(service, "ill") == "running"


def test_while_a_source_waits_for_its_restart_its_state_says_so() -> None:
    @source(shared=True)
    async def ill() -> AsyncIterator[Note]:
        raise RuntimeError
        yield Note(n=0)

    restart = Restart(backoff=60, max_backoff=60)
    with serving(settings_of(enable(ill, restart=restart))) as service, service.open("/sse/ill") as stream:
        stream.take(1)
        wait_until(lambda: state_of(service, "ill") == "restarting")


def test_a_run_that_lasts_begins_a_new_row_of_failures() -> None:
    runs = 0

    @source(shared=True)
    async def frail() -> AsyncIterator[Note]:
        nonlocal runs
        runs += 1
        yield Note(n=runs)
        await asyncio.sleep(0.02)  # longer than max_backoff
        raise RuntimeError

    with serving(settings_of(enable(frail, restart=FAST))) as service, service.open("/sse/frail") as stream:
        assert len(stream.take(12)) == 12
        assert runs >= 6


def test_a_private_run_that_fails_is_not_restarted() -> None:
    script = Script()
    script.error = RuntimeError()
    with serving(settings_of(enable(script.source, restart=FAST))) as service, service.open("/sse/script") as stream:
        assert [event.event for event in stream.rest()] == ["stream.error", "stream.end"]
    assert len(script.started) == 1


@pytest.mark.parametrize(
    "cursor", ["AAAA.5", "A" * 22 + ".5", "script=AAAA.1", "x" * 60_000, "script=" + "9" * 5000, "-.0"]
)
def test_a_cursor_of_another_process_or_of_nobody_is_a_gap_and_nobody_elses_events(cursor: str) -> None:
    script = Script()
    with serving(settings_of(enable(script.source, linger=60)), expect_quiet=False) as service:
        with service.open("/sse/script") as owner:
            script.say(2)
            owner.take(2)
            with service.open("/sse/script", cursor=cursor) as stranger:
                gap, first = stranger.take(2)
            assert gap.data == {"source": "script", "reason": "unknown", "missed": None}
            assert first.id.partition(".")[0] != owner.cursor.partition(".")[0]


def test_a_selection_that_changes_is_a_union() -> None:
    one, two = Script(shared=True), Script(shared=True)
    sources = [enable(one.source, linger=60), enable(two.source, linger=60)]
    sources[1] = type(sources[1])("second", two.source, "test", policy=sources[1].policy)
    with serving(settings_of(*sources), expect_quiet=False) as service:
        with service.open("/sse/script") as alone, service.open("/sse/second"):
            wait_until(lambda: len(one.started) == len(two.started) == 1)
            one.say()
            two.say()
            alone.take(1)
        one.say()
        with service.open("/sse?sources=second,script", cursor=alone.cursor) as both:
            (event,) = both.take(1)  # the first goes on, the one newly added starts live
            assert (event.data["n"], event.event) == (2, "note")
            two.say()
            assert numbers(both.take(1)) == [2]
            cursor = both.cursor
        one.say()
        with service.open("/sse/script", cursor=cursor) as less:  # and the one removed is ignored
            assert numbers(less.take(1)) == [3]
