"""plugins.yaml changes while the service runs: the difference is applied, and what is untouched does not notice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eventmux import Event, source
from eventmux.catalog import Catalog, EnabledSource
from eventmux.errors import FullError
from eventmux.hub import Hub, Start
from eventmux.policy import Limits, Policy
from eventmux.runs import Wanted
from eventmux.selection import Selection
from eventmux.settings import load_settings
from eventsource import PATIENCE, EventSource, Received, wait_until
from service import Client, Service, serve_process, serving, serving_file
from taking import FORM, Taking

COUNTING = """
import asyncio, os
from collections.abc import AsyncIterator
from eventmux import Context, Event, source

STEP = 1

class Tick(Event):
    n: int
    run: int

runs = 0

@source(shared={shared}, linger=0)
async def {name}(ctx: Context, {parameters}) -> AsyncIterator[Tick]:
    global runs
    runs += 1
    run, n = runs, ctx.last.n if ctx.last else 0
    try:
        while True:
            n += STEP
            yield Tick(n=n, run=run)
            await asyncio.sleep({pause})
    finally:
        with open({closed!r}, "a") as closed:
            closed.write("{name} ")
"""


class Home:
    """A directory with a plugins.yaml and plugins of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "plugins.yaml"
        self.closed = path / "closed.txt"
        (path / "local").mkdir()

    def plugin(
        self, name: str, *, shared: bool = True, parameters: str = "start: int = 0", step: int = 1, pause: float = 0.01
    ) -> None:
        text = COUNTING.format(name=name, shared=shared, parameters=parameters, closed=str(self.closed), pause=pause)
        (self.path / "local" / f"{name}.py").write_text(text.replace("STEP = 1", f"STEP = {step}"))

    def text(self, *sources: str, rest: str = "") -> str:
        lines = "".join(f"  {source}\n" for source in sources)
        return f"sources:\n{lines}plugins: {{dir: local, disabled: [openai]}}\n{rest}"

    def write(self, *sources: str, rest: str = "") -> None:
        self.file.write_text(self.text(*sources, rest=rest))

    @contextlib.contextmanager
    def serving(self, *sources: str, rest: str = "", environ: dict[str, str] | None = None) -> Iterator[Service]:
        with serving_file(self.text(*sources, rest=rest), self.path, environ) as service:
            yield service

    def has_closed(self, name: str) -> bool:
        return self.closed.exists() and name in self.closed.read_text().split()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "eventmux")


def names(service: Client) -> list[str]:
    return [source["name"] for source in service.get("/sources").json()["sources"]]


def configuration(service: Client) -> Any:
    return service.get("/readyz").json()["configuration"]


def state(service: Client, source: str) -> str:
    return str(service.get("/readyz").json()["sources"][source]["state"])


def offsets(events: list[Received]) -> list[int]:
    return [int(event.id.rpartition(".")[2]) for event in events]


def assert_gapless(events: list[Received]) -> None:
    found = offsets(events)
    assert list(range(found[0], found[0] + len(found))) == found


class Reading:
    """A stream that is read to its end by a thread of its own."""

    def __init__(self, stream: EventSource) -> None:
        self.stream = stream
        self.events: list[Received] = []
        self.has_ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for event in self.stream._events:
            self.events.append(event)
        self.has_ended = True

    def wait_for(self, count: int) -> None:
        before = len(self.events)
        wait_until(lambda: len(self.events) >= before + count, f"{count} more events")

    def end(self) -> None:
        wait_until(lambda: self.has_ended, "the stream to end")
        self._thread.join()
        self.stream.close()


def test_a_source_that_is_added_can_be_read(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.plugin("one")
    home.plugin("two")
    with home.serving("one: {}") as service:
        assert service.get("/sse/two").status_code == 404
        home.write("one: {}", "two: {}")
        wait_until(lambda: "two" in names(service), "the source to be added")
        with service.open("/sse/two") as stream:
            assert stream.take(1)[0].event == "tick"
        assert "/sse/two" in service.get("/openapi.json").json()["paths"]
        assert "two" in service.get("/readyz").json()["sources"]
    assert f"{home.file} applied: added two, 1 untouched" in caplog.messages


def test_the_streams_of_a_source_that_is_removed_end_and_say_so_and_its_run_is_closed(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.plugin("one")
    home.plugin("two")
    with home.serving("one: {}", "two: {}") as service:
        with service.open("/sse/two") as stream:
            stream.take(3)
            home.write("one: {}")
            *events, end = stream.rest()
        assert {"source": "two", "reason": "removed"} == end.data
        assert_gapless(events)
        assert end.id == events[-1].id
        assert 2_000 < (stream.parser.retry or 0)  # jittered: they must not all come back at once
        wait_until(lambda: home.has_closed("two"), "its finally to have run")
        wait_until(service.is_quiet, "no run to be left")
        assert ["over"] == [record.reason for record in caplog.records if record.name == "eventmux.access"]
        assert service.get("/sse/two").status_code == 404
        assert "/sse/two" not in service.get("/openapi.json").json()["paths"]


def test_a_merged_stream_goes_on_without_a_source_that_is_removed(home: Home) -> None:
    home.plugin("one")
    home.plugin("two")
    with home.serving("one: {}", "two: {}") as service, service.open("/sse?sources=one,two&qualify=true") as stream:
        stream.take(5)
        home.write("one: {}")
        end = stream.until("stream.end")[-1]
        assert {"source": "two", "reason": "removed"} == end.data
        after = stream.take(20)
        assert {"one/tick"} == {event.event for event in after}
        assert [after[0].data["n"] + n for n in range(20)] == [event.data["n"] for event in after]
        wait_until(lambda: service.hub.runs == 1, "the other run to be closed")


def test_whoever_comes_back_to_a_source_that_was_removed_and_added_again_gets_its_events(home: Home) -> None:
    home.plugin("one")
    home.plugin("two")
    with home.serving("one: {}", "two: {}") as service:
        with service.open("/sse/two") as stream:
            stream.take(3)
            home.write("one: {}")
            cursor = stream.rest()[-1].id
        home.write("one: {}", "two: {}")
        wait_until(lambda: "two" in names(service), "the source to be added again")
        with service.open("/sse/two", cursor=cursor) as stream:
            gap, tick = stream.take(2)
        assert ("stream.gap", "restarted") == (gap.event, gap.data["reason"])
        assert tick.event == "tick"


@pytest.mark.parametrize("shared", [True, False])
def test_a_changed_source_is_restarted_in_the_same_log_and_its_streams_go_on(home: Home, shared: bool) -> None:
    home.plugin("one", shared=shared)
    with home.serving("one: {}") as service, service.open("/sse/one") as stream:
        before = stream.take(5)
        home.write("one: {params: {start: 7}}")
        after: list[Received] = []
        while not after or after[-1].data["run"] == 1:
            after += stream.take(1)
        after += stream.take(5)
        events = [*before, *after]
        assert_gapless(events)
        assert {event.id.partition(".")[0] for event in events} == {before[0].id.partition(".")[0]}
        assert [1 + n for n in range(len(events))] == [event.data["n"] for event in events]  # by ctx.last
        assert {1, 2} == {event.data["run"] for event in events}
        cursor = stream.cursor
        with service.open("/sse/one", cursor=cursor) as again:  # and its cursors are good
            assert offsets(again.take(1)) == [int(cursor.rpartition(".")[2]) + 1]


def test_a_run_whose_client_asks_for_what_is_no_longer_to_be_had_is_removed(home: Home) -> None:
    home.plugin("one")
    with home.serving("one: {}") as service, service.open("/sse/one?start=3") as asks, service.open("/sse/one") as lets:
        asks.take(1)
        lets.take(1)
        home.write("one: {params: {start: 7}}")
        assert {"source": "one", "reason": "removed"} == asks.rest()[-1].data
        seen = lets.take(1)[0]
        while seen.data["run"] < 3:
            seen = lets.take(1)[0]


def test_a_policy_is_changed_without_a_restart(home: Home) -> None:
    home.plugin("one")
    with home.serving("one: {}") as service, service.open("/sse/one") as stream:
        stream.take(20)
        home.write("one: {history: {events: 5}, overflow: disconnect, linger: 50, restart: {attempts: 2}, max_runs: 7}")
        (run,) = service.hub._runs.all()
        wait_until(lambda: run.enabled.policy.max_runs == 7, "the policy to be changed")
        wait_until(lambda: run.channel.history.last + 1 - run.channel.history.first <= 5, "the history to be cut")
        events = stream.take(20)
        assert {1} == {event.data["run"] for event in events}
        assert_gapless(events)
        assert [view.hangs_up for reader in run.channel.streams for view in reader._views] == [True]


def test_where_shared_is_changed_clients_come_back_by_themselves(home: Home) -> None:
    home.plugin("one")
    with home.serving("one: {}", rest="server: {retry: 50}") as service:
        with service.open("/sse/one") as stream:
            stream.take(3)
            home.write("one: {shared: false}", rest="server: {retry: 50}")
            rest = stream.rest()
            assert "stream.end" not in [event.event for event in rest]
            assert stream.parser.retry is not None
        with service.open("/sse/one", cursor=stream.cursor) as stream:
            gap, tick = stream.take(2)
            assert "unknown" == gap.data["reason"]
            assert tick.event == "tick"
            assert len(tick.id.partition(".")[0]) == 22
            wait_until(lambda: service.hub.runs == 1, "the shared run to be closed")


def test_a_hundred_streams_of_untouched_sources_do_not_notice(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.plugin("one", pause=0.1)  # a hundred of them are read by this process, too
    home.plugin("own", shared=False, pause=0.1)
    home.plugin("two")
    home.plugin("three")
    streams = "streams: {both: [one, own]}"
    paths = ["/sse/one", "/sse/own", "/sse/both", "/sse?sources=one,own", "/sse/one?start=1"] * 20
    with home.serving("one: {}", "own: {}", "two: {}", rest=streams) as service:
        readings = [Reading(service.open(path + ("&" if "?" in path else "?") + "qualify=true")) for path in paths]
        _wait_for_all(readings, 3)
        before = [(id(run), id(run._task), run.channel.epoch) for run in service.hub._runs.all()]
        changes = ["two: {params: {start: 1}}", "three: {}", "two: {linger: 9}", "two: {pipe: [{skip: 1}]}", "three:"]
        for number, change in enumerate(changes):
            home.write("one: {}", "own: {}", change, rest=streams)
            wait_until(lambda number=number: len(applied(caplog)) > number, "the change to be applied")
        _wait_for_all(readings, 5)
        assert not any(reading.has_ended for reading in readings)
        assert before == [(id(run), id(run._task), run.channel.epoch) for run in service.hub._runs.all()]
    for reading in readings:
        reading.end()
        by_source: dict[str, list[Received]] = {}
        for event in reading.events:
            by_source.setdefault(event.event, []).append(event)
        assert by_source.keys() <= {"one/tick", "own/tick"}
        for events in by_source.values():
            assert [events[0].data["n"] + n for n in range(len(events))] == [event.data["n"] for event in events]
            assert 1 == len({event.data["run"] for event in events})
    assert all("2 untouched" in line for line in applied(caplog))


def _wait_for_all(readings: list[Reading], count: int) -> None:
    due = [(reading, len(reading.events) + count) for reading in readings]
    wait_until(lambda: all(len(reading.events) >= events for reading, events in due), f"{count} more events for each")


def applied(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if " applied: " in message]


def test_a_bad_file_changes_nothing_and_is_reported(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.plugin("one")
    home.plugin("two")
    with home.serving("one: {}", "two: {}", environ={"KEY": "s3cret-value"}) as service:
        with service.open("/sse/two") as stream:
            stream.take(1)
            good = {"file": str(home.file), "state": "applied", "error": [], "needs_restart": []}
            assert good == configuration(service)
            home.write("one: {parms: {}}", "two: {params: {start: '${KEY}'}}", rest="limits: {runs: 0}")
            wait_until(lambda: configuration(service)["state"] == "rejected", "the file to be rejected")
            found = configuration(service)["error"]
            assert [f"{home.file}:2:9: sources.one.parms: unknown key: did you mean 'params'?"] == found[:1]
            assert ["sources.two.params.start", "limits.runs"] == [line.split(": ")[1] for line in found[1:]]
            assert "s3cret" not in str(found) + caplog.text
            assert service.get("/readyz").status_code == 200
            assert ["one", "two"] == names(service)
            assert_gapless(stream.take(20))
            assert found == [message for message in caplog.messages if message in found]
            home.write("one: {}", "two: {}")
            wait_until(lambda: configuration(service)["state"] == "applied", "the file to be applied")
            assert good == configuration(service)
            assert_gapless(stream.take(5))


def test_a_file_that_is_deleted_changes_nothing_and_one_that_is_there_again_is_applied(home: Home) -> None:
    home.plugin("one")
    home.plugin("two")
    with home.serving("one: {}") as service, service.open("/sse/one") as stream:
        stream.take(1)
        home.file.unlink()
        wait_until(lambda: configuration(service)["state"] == "rejected", "the file to be missed")
        assert "cannot be read (No such file or directory)" in configuration(service)["error"][0]
        assert_gapless(stream.take(5))
        home.write("one: {}", "two: {}")
        wait_until(lambda: "two" in names(service), "the file to be applied")
        assert_gapless(stream.take(5))


def test_an_editor_that_empties_the_file_before_it_writes_it_removes_nothing(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.plugin("one")
    home.plugin("two")
    with home.serving("one: {}") as service, service.open("/sse/one") as stream:
        stream.take(1)
        home.file.write_text("")
        time.sleep(0.5)
        home.write("one: {}", "two: {}")
        wait_until(lambda: "two" in names(service), "the file to be applied")
        assert_gapless(stream.take(5))
    assert [f"{home.file} applied: added two, 1 untouched"] == applied(caplog)


def test_an_editor_that_puts_another_file_in_its_place_is_followed_and_its_neighbours_are_not(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.plugin("one")
    home.plugin("two")
    with home.serving("one: {}") as service:
        for number, more in enumerate(["two: {}", "# none", "two: {}"]):
            (home.path / "plugins.yaml~").write_text(home.text("one: {}", more))
            (home.path / "plugins.yaml~").rename(home.file)
            (home.path / "other.yaml").write_text(str(number))
            wait_until(lambda number=number: len(applied(caplog)) > number, "the file to be applied")
            assert ("two" in names(service)) == (more == "two: {}")
        home.file.touch()
        time.sleep(1.5)
    assert 3 == len(applied(caplog))


def test_a_log_that_is_written_next_to_the_file_wakes_nobody(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "watchfiles")
    home.plugin("one")
    with home.serving("one: {}") as service:
        with (home.path / "service.log").open("w") as neighbour:
            for _ in range(100):
                neighbour.write("line\n")
                neighbour.flush()
                time.sleep(0.01)
        home.write("one: {}", "# the end")
        wait_until(lambda: applied(caplog), "the change")
        assert ["one"] == names(service)
    assert [] == [message for message in caplog.messages if " detected" in message and "service.log" in message]


def test_a_directory_of_plugins_that_comes_with_a_change_is_read_once(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.plugin("one")
    with serving_file("sources: {clock: {}}", home.path) as service:
        home.write("one: {}")
        wait_until(lambda: "one" in names(service), "the source of the directory")
        time.sleep(1.5)
        assert [f"{home.file} applied: added one, removed clock, 0 untouched"] == applied(caplog)
        home.plugin("one", step=2)
        wait_until(lambda: len(applied(caplog)) == 2, "the directory to be watched")


def test_a_config_map_is_followed_through_its_links(home: Home) -> None:
    home.plugin("one")
    home.plugin("two")

    def put(name: str, *sources: str) -> None:
        (home.path / name).mkdir()
        (home.path / name / "plugins.yaml").write_text(home.text(*sources))
        (home.path / "..data_tmp").symlink_to(name)
        (home.path / "..data_tmp").rename(home.path / "..data")

    put("..1", "one: {}")
    home.file.symlink_to("..data/plugins.yaml")
    with serving(load_settings(home.file, {}), expect_quiet=False) as service:
        put("..2", "one: {}", "two: {}")
        wait_until(lambda: ["one", "two"] == names(service), "the second file")
        (home.path / "..1" / "plugins.yaml").unlink()
        put("..3", "two: {}")
        wait_until(lambda: ["two"] == names(service), "the third file")


def test_a_single_file_that_is_edited_is_imported_anew_and_only_its_own_sources_are_restarted(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.plugin("one")
    home.plugin("two")
    with home.serving("one: {}", "two: {}") as service:
        with service.open("/sse/one") as one, service.open("/sse/two") as two:
            before = one.take(3)
            two.take(1)
            home.plugin("one", step=7)  # a file of the same size, perhaps within the same second
            after = [*before, *one.take(1)]
            while after[-1].data["n"] - after[-2].data["n"] != 7:
                after += one.take(1)
            assert_gapless(after)
            events = two.take(20)
            assert_gapless(events)
            assert {1} == {event.data["run"] for event in events}
    assert [f"{home.file} applied: changed one, 1 untouched"] == applied(caplog)


def test_a_single_file_that_is_broken_by_an_edit_is_served_as_it_was_until_it_is_mended(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.plugin("one")
    with home.serving("one: {}") as service, service.open("/sse/one") as stream:
        stream.take(1)
        file = home.path / "local" / "one.py"
        good = file.read_text()
        file.write_text(good + "\nthis is no Python")
        (fault,) = wait_until(lambda: service.get("/readyz").json()["plugins"], "the plugin to be reported")
        assert "partial" == fault["state"]
        assert "SyntaxError" in fault["error"]
        assert "until then its sources are served as they were before its change" in fault["error"]
        assert_gapless(stream.take(10))
        file.write_text(good)
        wait_until(lambda: not service.get("/readyz").json()["plugins"], "the plugin to be in order")
        events = stream.take(10)
        assert_gapless(events)
        assert {1} == {event.data["run"] for event in events}
    assert 1 == sum("SyntaxError" in message for message in caplog.messages)


def test_a_plugin_that_failed_is_tried_again(home: Home) -> None:
    home.plugin("one")
    (home.path / "local" / "two.py").write_text("import no_such_module")
    with home.serving("one: {}", "two: {}") as service:
        assert "unavailable" == state(service, "two")
        assert service.get("/sse/two").status_code == 503
        home.plugin("two")
        wait_until(lambda: state(service, "two") == "idle", "the plugin to be loaded")
        with service.open("/sse/two") as stream:
            stream.take(1)


def test_a_source_that_becomes_unavailable_ends_its_streams_and_says_why(home: Home) -> None:
    home.plugin("one")
    home.plugin("two")
    with home.serving("one: {}", "two: {}") as service, service.open("/sse/two") as stream:
        stream.take(1)
        home.write("one: {}", "two: {params: {start: '${UNSET}'}}")
        assert {"source": "two", "reason": "removed"} == stream.rest()[-1].data
        assert "unavailable" == state(service, "two")
        assert "UNSET is not set" in service.get("/readyz").json()["sources"]["two"]["reason"]
        assert service.get("/sse/two").status_code == 503


def test_clients_of_a_named_stream_that_is_changed_come_back_to_the_new_selection(home: Home) -> None:
    for name in ("one", "two", "three"):
        home.plugin(name)
    sources = ["one: {}", "two: {}", "three: {}"]
    with home.serving(*sources, rest="streams: {pair: [one, two]}") as service:
        with service.open("/sse/pair?qualify=true") as named, service.open("/sse?sources=one,two") as merged:
            named.take(3)
            merged.take(3)
            home.write(*sources, rest="streams: {pair: [one, three], more: [one, two]}")
            assert "stream.end" not in [event.event for event in named.rest()]
            cursor = named.cursor
            merged.take(10)
        with service.open("/sse/pair?qualify=true", cursor=cursor) as named:
            seen = named.take(20)
            assert {"one/tick", "three/tick"} == {event.event for event in seen}
        with service.open("/sse/more") as more:
            more.take(1)
            home.write(*sources[:1], sources[2], rest="streams: {more: [one]}")
            assert {"source": "two", "reason": "removed"} == more.until("stream.end")[-1].data
            more.take(5)
        assert service.get("/sse/pair").status_code == 404


def test_settings_of_delivery_are_applied_to_open_streams_and_those_that_need_a_restart_are_named(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    (home.path / "local" / "quiet.py").write_text(
        "import asyncio\nfrom collections.abc import AsyncIterator\nfrom eventmux import Event, source\n"
        "class Never(Event):\n    n: int\n\n@source\nasync def quiet() -> AsyncIterator[Never]:\n"
        "    await asyncio.sleep(1000)\n    yield Never(n=1)\n"
    )
    with home.serving("quiet: {}") as service, service.open("/sse/quiet") as stream:
        home.write("quiet: {}", rest="server: {heartbeat: 0.05, retry: 77, port: 1, grace: 3}")
        for _ in range(5):
            stream.parser.feed(next(stream.chunks))
        assert len(stream.parser.comments) >= 4
        with service.open("/sse/quiet") as other:
            other.parser.feed(next(other.chunks))
            assert 77 == other.parser.retry
        assert ["server.port", "server.grace"] == configuration(service)["needs_restart"]
    assert f"{home.file}: server.port, server.grace: not applied before the service is started again" in caplog.messages


@pytest.mark.parametrize("form", ["redis://:secret@host", "{url: 'redis://:secret@host', lease: 3}"])
def test_another_store_waits_for_the_next_start_and_is_named(
    home: Home, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    home.plugin("one")
    with home.serving("one: {}") as service, service.open("/sse/one") as stream:
        home.write("one: {}", rest=f"store: {form}\nserver: {{port: 1}}")
        wait_until(lambda: configuration(service)["needs_restart"] == ["server.port", "store"], "both to be named")
        assert_gapless(stream.take(20))
        home.write("one: {}", rest="store: memory")
        wait_until(lambda: configuration(service)["needs_restart"] == [], "the change to be taken back")
    assert "secret" not in caplog.text


def test_limits_are_applied(home: Home) -> None:
    home.plugin("one")
    with home.serving("one: {}") as service, service.open("/sse/one") as stream:
        stream.take(20)
        home.write("one: {}", rest="limits: {history: 2048, detached: 3}")
        wait_until(lambda: service.hub.history_bytes <= 2048, "the history to be cut")
        assert_gapless(stream.take(20))
        assert service.hub.history_bytes <= 2048


def test_with_watch_false_only_sighup_applies_a_change(home: Home) -> None:
    home.plugin("one")
    home.plugin("two")
    home.write("one: {}", rest="server: {watch: false}")
    with serve_process(cwd=home.path) as process:
        service = Client(process.wait_for_url())
        with service.open("/sse/one") as stream:
            stream.take(1)
            home.write("one: {}", "two: {}", rest="server: {watch: false}")
            time.sleep(1.5)
            assert ["one"] == names(service)
            process.process.send_signal(signal.SIGHUP)
            wait_until(lambda: ["one", "two"] == names(service), "SIGHUP to apply it")
            home.write("one: {}")
            process.process.send_signal(signal.SIGHUP)
            wait_until(lambda: ["one"] == names(service), "SIGHUP to apply it")
            home.write("one: {}", "two: {}")
            wait_until(lambda: ["one", "two"] == names(service), "the file to be watched from now on")
            assert_gapless(stream.take(20))
        assert 0 == process.stop()
        log = process.log.read_text()
        assert "plugins.yaml applied: added two, 1 untouched" in log
        assert "Traceback" not in log


def test_sighup_without_a_file_says_so(tmp_path: Path) -> None:
    with serve_process(cwd=tmp_path) as process:
        service = Client(process.wait_for_url())
        process.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "SIGHUP: there is no plugins.yaml" in process.log.read_text(), "the log")
        assert {"file": None, "state": "applied", "error": [], "needs_restart": []} == configuration(service)
        assert 0 == process.stop()


def test_reloads_during_a_shutdown_do_not_keep_the_process(home: Home) -> None:
    home.plugin("one")
    home.plugin("two")
    home.write("one: {}", "two: {}")
    with serve_process(cwd=home.path) as process:
        service = Client(process.wait_for_url())
        (home.path / "local" / "slow.py").write_text("import time\ntime.sleep(60)\n")
        with service.open("/sse/one") as stream:
            stream.take(1)
            home.write("one: {}")
            process.process.send_signal(signal.SIGHUP)
            assert_gapless(stream.take(50))  # while the import takes its time
            assert ["one", "two"] == names(service)
            process.process.send_signal(signal.SIGTERM)
            process.process.send_signal(signal.SIGHUP)
            began = time.monotonic()
            stream.rest()
            assert 0 == process.process.wait(10)
            assert time.monotonic() - began < 5
        assert "Traceback" not in process.log.read_text()


class Tick(Event):
    n: int


@source
async def own(start: int = 0) -> AsyncIterator[Tick]:
    for n in itertools.count(start):
        yield Tick(n=n)
        await asyncio.sleep(0.01)


async def events_of(client: Taking) -> set[str]:
    async with asyncio.timeout(PATIENCE):
        while not (found := client.events()):
            await asyncio.sleep(0.005)
    return set(found)


@pytest.mark.anyio
async def test_a_run_that_has_still_to_follow_a_change_is_found_by_its_client(anyio_backend: str) -> None:
    enabled = EnabledSource("own", own, "test", policy=Policy(linger=60), defaults={"start": 1})
    hub = Hub(catalog=Catalog({"own": enabled}))
    clients = [Taking(hub, [Wanted(enabled, enabled.validate({}), {})]) for _ in range(50)]
    for client in clients:
        assert {"tick"} == await events_of(client)
        client.close()
    changed = replace(enabled, defaults={"start": 9})
    hub.apply(Catalog({"own": changed}), Limits())
    with pytest.raises(FullError, match="has just been changed"):  # for a request that came before
        Taking(hub, [Wanted(enabled, enabled.validate({}), {})])
    # The last one would have to wait the longest.
    again = [Taking(hub, [Wanted(changed, changed.validate({}), {})], client.cursor) for client in reversed(clients)]
    for client in again:
        assert {"tick"} == await events_of(client)
        client.close()
    assert 50 == len(hub._runs.all())
    await hub.close()


@pytest.mark.anyio
async def test_a_private_log_is_nobody_elses_where_its_source_becomes_shared(anyio_backend: str) -> None:
    enabled = EnabledSource("own", own, "test", policy=Policy(linger=60, once=True))
    hub = Hub(catalog=Catalog({"own": enabled}))
    client = Taking(hub, [Wanted(enabled, enabled.validate({}), {})])
    changed = replace(enabled, policy=Policy(linger=60, once=True, shared=True))
    hub.apply(Catalog({"own": changed}), Limits())
    assert {"tick"} == await events_of(client)  # it is not begun again, and goes on
    stranger = hub.subscribe([Wanted(changed, changed.validate({}), {})], Start(since=0), Selection(FORM))
    assert client.cursor.partition(".")[0] != stranger.cursor.decode().partition(".")[0]
    stranger.close()
    client.close()
    await hub.close()


def test_thirty_reloads_leave_no_run_and_no_task_behind(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("one", "two", "own"):
        home.plugin(name, shared=name != "own")
    with home.serving("one: {}", "own: {}", "two: {}") as service:
        untouched = Reading(service.open("/sse/one"))
        merged = Reading(service.open("/sse?sources=one,own&qualify=true"))
        ends: list[list[Received]] = []
        for number in range(30):
            if number % 2:
                home.write("one: {}", "own: {}", f"two: {{params: {{start: {number}}}}}")
                wait_until(lambda: "two" in names(service), "the source to be there")
                ends.append([])
                stream = service.open("/sse/two")
                stream.take(1)
            else:
                home.write("one: {}", f"own: {{params: {{start: {number}}}}}")
                wait_until(lambda: "two" not in names(service), "the source to be gone")
                if number:
                    ends[-1] = stream.rest()
                    stream.close()
        assert 14 == sum(end[-1].data == {"source": "two", "reason": "removed"} for end in ends if end)
        stream.close()
        wait_until(lambda: service.hub.runs == 2, "the other runs to be closed")
        assert {"one", "own"} == {run.enabled.name for run in service.hub._runs.all() if run.state == "running"}
        assert not service.hub._runs._withdrawn
    for reading in (untouched, merged):
        reading.end()
    assert_gapless(untouched.events)
    assert {1} == {event.data["run"] for event in untouched.events}
    own = [event for event in merged.events if event.event == "own/tick"]
    assert [1 + n for n in range(len(own))] == [event.data["n"] for event in own]
    assert len({event.data["run"] for event in own}) > 15
    assert {"one/tick", "own/tick"} == {event.event for event in merged.events}


def test_a_file_that_is_a_pipe_is_read_once_and_serves_what_it_says(home: Home) -> None:
    home.plugin("one")
    pipe = home.path / "pipe.yaml"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(home.text("one: {}"),), daemon=True)
    writer.start()
    assert ["one"] == list(load_settings(pipe, {}).catalog.sources)  # and not the bundled ones, as for an empty file


@pytest.mark.parametrize("put", ["pipe", "directory", "link to nothing", "link to itself", "zeros", "binary"])
def test_whatever_takes_the_place_of_the_file_is_rejected_and_streams_flow_on(home: Home, put: str) -> None:
    home.plugin("one")
    with home.serving("one: {}") as service, service.open("/sse/one") as stream:
        stream.take(1)
        home.file.unlink()
        if put == "pipe":
            os.mkfifo(home.file)
        elif put == "directory":
            home.file.mkdir()
        elif put == "binary":
            home.file.write_bytes(bytes(range(256)) * 5000)
        else:
            home.file.symlink_to(
                {"link to nothing": "nowhere", "link to itself": home.file.name, "zeros": "/dev/zero"}[put]
            )
        wait_until(lambda: configuration(service)["state"] == "rejected", "the file to be rejected")
        assert_gapless(stream.take(20))
        home.file.rmdir() if put == "directory" else home.file.unlink()
        home.write("one: {}")
        wait_until(lambda: configuration(service)["state"] == "applied", "the file to be read again")
        assert_gapless(stream.take(20))


def test_what_the_command_line_says_holds_after_a_change_too(home: Home) -> None:
    home.plugin("one")
    home.write("one: {}")
    with serve_process("--host", "127.0.0.1", cwd=home.path) as process:  # and --port 0
        service = Client(process.wait_for_url())
        home.write("one: {}", rest="server: {port: 1, host: localhost, grace: 3}")
        wait_until(lambda: configuration(service)["needs_restart"], "the change to be applied")
        assert ["server.grace"] == configuration(service)["needs_restart"]
        assert 0 == process.stop()


def test_auth_that_others_can_be_kept_out_by_only_is_not_taken_away_by_a_change(home: Home) -> None:
    home.plugin("one")
    auth = "auth: {tokens: [{name: dash, token: sesame, read: [one]}]}\n"
    home.write("one: {}", rest=auth)
    # 127.1 is 127.0.0.1 for the system, and a name like any other for us.
    with serve_process("--host", "127.1", cwd=home.path) as process:
        service = Client(process.wait_for_url())
        assert 401 == service.get("/sse/one").status_code
        home.write("one: {}")
        wait_until(lambda: configuration(service)["state"] == "rejected", "the change to be rejected")
        assert "--insecure" in configuration(service)["error"][0]
        assert 401 == service.get("/sse/one").status_code
        home.write("one: {}", rest=auth)
        wait_until(lambda: configuration(service)["state"] == "applied", "the change to be taken back")
        assert 0 == process.stop()
    home.write("one: {}", rest=auth)
    with serve_process("--host", "127.1", "--insecure", cwd=home.path) as process:
        service = Client(process.wait_for_url())
        home.write("one: {}")
        wait_until(lambda: service.get("/sse/one?limit=1").status_code == 200, "the change to be applied")
        assert 0 == process.stop()


def test_max_lifetime_that_comes_with_a_change_holds_for_open_streams_from_then_on(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.plugin("one")
    with home.serving("one: {}") as service, service.open("/sse/one") as stream:
        stream.take(1)
        home.write("one: {}", rest="server: {max_lifetime: 2, retry: 10, spread: 0}")
        began = time.monotonic()
        assert_gapless(stream.rest())
        assert 1.6 <= time.monotonic() - began < 6
        with service.open("/sse/one") as other:
            home.write("one: {}", rest="server: {max_lifetime: 100}")
            wait_until(lambda: len(applied(caplog)) == 2, "the change to be applied")
            assert_gapless(other.take(250))  # it stays open


def test_an_import_that_does_not_end_is_told_and_the_change_is_applied_if_it_does(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventmux.reload.LATE_SECONDS", 0.3)
    home.plugin("one")
    with home.serving("one: {}") as service, service.open("/sse/one") as stream:
        late = "import pathlib, time\nwhile not pathlib.Path({!r}).exists():\n    time.sleep(0.05)\n"
        (home.path / "local" / "late.py").write_text(late.format(str(home.path / "go")))
        wait_until(lambda: configuration(service)["state"] == "rejected", "it to be told")
        assert "a plugin has been imported for 0.3 seconds" in configuration(service)["error"][0]
        assert_gapless(stream.take(20))
        (home.path / "go").touch()
        wait_until(lambda: configuration(service)["state"] == "applied", "the change to be applied")
