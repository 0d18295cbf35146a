"""The benchmark counts right and judges right. How fast anything is, is not asked here."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import os
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MODULES = ("__main__", "guard", "load", "picture", "recorded", "report", "results", "servers", "table", "work")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"

needs_cc = pytest.mark.needs("cc")  # to make the load client with


@pytest.fixture
def bench(monkeypatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(ROOT)
    return SimpleNamespace(**{name.strip("_"): importlib.import_module(f"bench.{name}") for name in MODULES})


def window(**more: float) -> dict[str, float]:
    found = {"seconds": 2.0, "server_cpu_us": 1e5, "server_waited_us": 0.0, "client_cpu_us": 1e4, "events": 10_000}
    found |= {"reads": 10_000, "bytes": 1_640_000, "chunks": 5_000, "least": 10, "most": 10, "lost": 0}
    return {**found, "p50_us": 1_000.0, "p99_us": 3_000.0, "max_us": 9_000.0, **more}


def found(cpu_us: float = 1e5, **more: object) -> dict[str, Any]:
    """What the load client prints, with so much CPU for 10,000 events of 1,000 clients."""
    connect = window(ready=1_000, refused=0, first_p50_us=2_000.0, first_p99_us=8_000.0, server_cpu_us=5e5)
    memory = {"before_kib": 50_000, "after_kib": 62_000}
    return {"connect": connect, "steady": window(server_cpu_us=cpu_us), "memory": memory, **more}


def runs(bench: SimpleNamespace, work: str, **costs: list[float | None]) -> list[Any]:
    """A run for each server and round; None is a round in which it failed."""
    return [
        bench.results.Run(work, server, number, found(cost), None)
        if cost
        else bench.results.Run(work, server, number, None, "did not start: it said nothing")
        for server, row in costs.items()
        for number, cost in enumerate(row)
    ]


def test_figures_are_what_was_found_divided_by_what_it_was_for(bench):
    figures = bench.results.figures_of(found(cpu_us=8e4))
    assert figures["us_per_event"] == 8
    assert figures["events_per_s"] == 5_000
    assert figures["events_per_write"] == 2
    assert figures["server_core"] == 0.04
    assert figures["kib_per_client"] == 12
    assert figures["connect_us"] == 500
    assert figures["connects_per_cpu_s"] == 2_000
    assert (figures["p50_ms"], figures["p99_ms"], figures["first_p99_ms"]) == (1, 3, 8)
    assert figures.keys() <= bench.results.FIGURES.keys()


def test_a_replayed_event_costs_what_is_left_of_the_storm(bench):
    newcomers = {"newcomers": 100, "newcomers_ready": 100, "newcomers_lost": 0}
    # A live event costs 10 us: 2,000 and 100 connections of 200 us, then the same with 10,000 replayed events.
    crowd = window(events=1_000, server_cpu_us=4e4, newcomers_events=3_000, replayed=0, p99_us=5_000.0, **newcomers)
    plain = window(events=1_500, server_cpu_us=4e4, newcomers_events=500, replayed=0, **newcomers)
    storm = window(events=1_500, server_cpu_us=7e4, newcomers_events=500, replayed=10_000, caught_up=100, **newcomers)
    figures = bench.results.figures_of(found(9e4, plain=plain, crowd=crowd, storm={**storm, "p99_us": 6_000.0}))
    assert figures["storm_connect_us"] == 200
    assert figures["replay_us"] == figures["replay_most_us"] == 3
    assert (figures["us_per_event"], figures["crowd_us"]) == (9, 10)
    assert (figures["storm_p99_ms"], figures["plain_p99_ms"], figures["crowd_p99_ms"]) == (6, 3, 5)


def test_a_ratio_is_the_median_of_ratios_within_rounds(bench):
    # The medians of each are equal, and in no round were they.
    verdict = bench.results.verdict_of(
        bench.work.Ratio("nchan"), runs(bench, "x", eventmux=[1e5, 2e5, 4e5], nchan=[2e5, 4e5, 2e5])
    )
    assert (verdict.spread.median, verdict.spread.least, verdict.spread.most, verdict.spread.count) == (0.5, 0.5, 2, 3)
    assert verdict.is_met is None
    assert not verdict.is_worse


def test_a_round_in_which_one_has_failed_does_not_count(bench):
    found = runs(bench, "x", eventmux=[1e5, 2e5, None], nchan=[None, 4e5, 2e5])
    assert bench.results.verdict_of(bench.work.Ratio("nchan"), found).spread.count == 1
    assert bench.results.verdict_of(bench.work.Ratio("floor"), found) is None


@pytest.mark.parametrize(
    ("limit", "at_least", "is_met"), [(0.5, False, True), (0.49, False, False), (0.5, True, True), (0.51, True, False)]
)
def test_a_target_is_met_at_its_limit_and_missed_beyond(bench, limit, at_least, is_met):
    ratio = bench.work.Ratio("nchan", limit, at_least=at_least)
    verdict = bench.results.verdict_of(ratio, runs(bench, "x", eventmux=[1e5], nchan=[2e5]))
    assert verdict.is_met is is_met
    assert verdict.is_worse is at_least
    assert bench.table.judgement(verdict) == ("met" if is_met else "missed")
    assert bench.table.target_of(ratio) == f"{'>=' if at_least else '<='} {limit}"


def test_a_figure_may_be_compared_with_another_of_the_same_server(bench):
    ratio = bench.work.Ratio("eventmux", 2.0, "p99_ms", of="p50_ms")
    assert bench.results.verdict_of(ratio, runs(bench, "x", eventmux=[1e5])).spread.median == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (99.96, "100"), (42.3, "42.3"), (9.996, "10.0"), (0.996, "1.00"), (0.0471, "0.047")],
)
def test_numbers_have_three_digits(bench, value, text):
    assert bench.table.number(value) == text


FAULTS = {
    "only 900 of 1,000 clients got connected: refused: 401": {"connect": {"ready": 900}, "said": "refused: 401"},
    "20 of 1,000 connections were closed by the server": {"steady": {"lost": 20}},
    "no event was received": {"steady": {"events": 0}},
    "": {},
}


@pytest.mark.parametrize(("fault", "changes"), FAULTS.items())
def test_a_run_that_went_wrong_is_said_to_have(bench, fault, changes):
    one = found()
    for name, change in changes.items():
        one[name] = {**one[name], **change} if isinstance(change, dict) else change
    assert (bench.results.fault_of(bench.work.BY_NAME["fanout-1000"], one) or "") == fault


def test_what_a_reader_of_a_row_must_know_is_said(bench):
    work = bench.work.BY_NAME["fanout-1000"]
    figures = {"events_per_s": 10_000, "client_core": 0.1, "server_waited": 0.0}
    assert bench.results.remark_on(work, figures) == ""
    assert bench.results.remark_on(work, {**figures, "events_per_s": 5_000}) == "overloaded: 50% of what was due"
    assert bench.results.remark_on(work, {**figures, "client_core": 0.99}) == "client-bound"
    assert "waited 40%" in bench.results.remark_on(work, {**figures, "server_waited": 0.4})


def test_every_work_names_what_there_is(bench):
    for work in bench.work.WORKS:
        assert set(work.servers) <= bench.servers.SERVERS.keys() & bench.work.TITLES.keys()
        assert {ratio.server for ratio in work.ratios} <= set(work.servers)
        shown = {
            *work.shows,
            *(ratio.figure for ratio in work.ratios),
            *(ratio.of for ratio in work.ratios if ratio.of),
        }
        assert shown <= bench.results.FIGURES.keys()


@pytest.fixture
def recorded(bench, tmp_path) -> Any:
    """A run of two works, written and read again."""
    works = [bench.work.BY_NAME[name] for name in ("fanout-1000", "connect")]
    servers = {"eventmux": [8e4, 9e4, 1e5], "nchan": [1e5] * 3, "naive": [4e5] * 3, "native": [None] * 3}
    all_runs = runs(bench, "fanout-1000", **servers) + runs(bench, "connect", eventmux=[1e5], naive=[1e5])
    about = {
        "date": "2026-11-20",
        "commit": "abc",
        "machine": "a machine",
        "command": "python -m bench",
        "versions": {},
    }
    file = tmp_path / "results.json"
    bench.recorded.write(
        file, bench.recorded.Recorded({**about, "is_pinned": True, "is_quick": False}, works, all_runs)
    )
    return bench.recorded.read(file)


def test_what_is_recorded_is_read_as_it_was(bench, recorded):
    assert recorded.works == [bench.work.BY_NAME["fanout-1000"], bench.work.BY_NAME["connect"]]
    assert recorded.runs_of(recorded.works[0])[0] == bench.results.Run("fanout-1000", "eventmux", 0, found(8e4), None)


def test_the_report_names_everything_that_is_lost(bench, recorded):
    page = bench.report.report(recorded)
    losses = page[page.index("## What eventmux loses at") : page.index("## fanout-1000")]
    missed, behind, unknown = losses.strip().split("\n\n")[1:]
    assert missed.splitlines()[1:] == [
        "- fanout-1000: CPU us/event against nginx with Nchan is 0.900 (0.800-1.00), target <= 0.85",
        "- connect: connects/s of CPU against sse-starlette is 1.00 (1.00-1.00), target >= 3",
        "- connect: connects/s against sse-starlette is 1.00 (1.00-1.00), target >= 3",
    ]
    assert behind == "Nobody is better at anything."
    assert "- fanout-1000: CPU us/event against FastAPI's own SSE" in unknown
    assert "| CPU us/event against sse-starlette | 0.225 (0.200-0.250) | <= 0.3 | met |" in page
    assert "FastAPI's own SSE: not measured: did not start: it said nothing" in page
    assert "![ratios of eventmux to others, by work](performance.svg)" in page
    assert "quick run" not in page


def test_the_report_says_where_another_is_better_whether_there_is_a_target_or_not(bench, recorded):
    slow = [dataclasses.replace(run, found=found(5e5)) if run.server == "eventmux" else run for run in recorded.runs]
    page = bench.report.report(dataclasses.replace(recorded, runs=slow))
    assert "\n- fanout-1000: nginx with Nchan: CPU us/event by 5.00\n" in page
    assert "\n- fanout-1000: sse-starlette: CPU us/event by 1.25\n" in page


def test_a_quick_run_is_said_to_prove_nothing(bench, recorded):
    page = bench.report.report(dataclasses.replace(recorded, about={**recorded.about, "is_quick": True}))
    assert "quick run" in page


def test_the_picture_has_a_bar_for_each_ratio_and_less_is_better_in_all(bench, recorded):
    bars = bench.picture.bars_of(recorded)
    assert [(bar.value, bar.limit, bar.is_met) for bar in bars] == [
        (0.9, 0.85, False),
        (0.225, 0.3, True),
        (1, 1 / 3, False),
        (1, 1 / 3, False),
    ]
    picture = ET.fromstring(bench.picture.draw(bars))  # noqa: S314 - it is ours
    assert len(picture.findall("{*}rect")) == len(bars) + 1
    assert picture.findall("{*}rect")[1].get("fill") == bench.picture.COLOURS[False]


def test_the_table_names_who_was_not_measured(bench, recorded):
    text = bench.table.table(recorded.works[0], recorded.runs_of(recorded.works[0]))
    assert "better-sse on Node" in text
    assert "not measured: not asked for" in text
    assert "not measured: did not start" in text


def test_without_a_compiler_the_suite_says_what_it_needs(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert bench.main.main(["--work", "idle"]) == 2
    assert "C compiler (cc)" in capsys.readouterr().err


@pytest.mark.parametrize(("ours", "status"), [(5.9, 0), (6.1, 1)])
def test_the_guard_fails_beyond_its_margin(bench, monkeypatch, capsys, ours, status):
    monkeypatch.setattr(bench.guard, "best_costs", lambda *_: {"eventmux": ours, "naive": 10.0})
    assert bench.guard.main(["--private", "0.6"]) == status
    assert ("FAILED" if status else "passed") in capsys.readouterr().out


Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def serving(answer: Answer) -> Iterator[int]:
    """The port of a server of this process that calls `answer` with each request."""
    started = threading.Event()
    ports: list[int] = []
    stops: list[Callable[[], object]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(await reader.readuntil(b"\r\n\r\n"), writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        started.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    try:
        yield ports[0]
    finally:
        stops[0]()
        thread.join(10)


def event(number: int = 0) -> bytes:
    return b'id: AbCd.%d\nevent: mark\ndata: {"t":"@%019d","mail":"not@a.mark"}\n\n' % (number, time.monotonic_ns())


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def chunk(data: bytes) -> bytes:
    return b"%x;name=value\r\n%b\r\n" % (len(data), data)


@needs_cc
@pytest.mark.parametrize(("size", "is_chunked"), [(1, True), (19, True), (64, True), (10_000, True), (0, False)])
def test_marks_are_counted_wherever_they_are_cut(bench, size, is_chunked):
    """By chunks of `size` bytes, and by reads that end anywhere."""
    at_once = 25

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n" * is_chunked + b"\r\n" * (not is_chunked))
        writer.write(chunk(b": hello\n\n") if is_chunked else b": hello\n\n")
        await asyncio.sleep(0.4)  # until it is measured
        text = b"".join(event() for _ in range(at_once))
        data = b"".join(map(chunk, pieces(text, size))) if is_chunked else text
        for piece in pieces(data, 97):
            writer.write(piece)
            await asyncio.sleep(0)
        await asyncio.sleep(5)

    with serving(answer) as port:
        options = ["--clients=4", "--warm=0", "--settle=0", "--seconds=1"]
        measured = bench.load.run_load(options, pid=os.getpid(), port=port)
    assert (measured["connect"]["ready"], measured["steady"]["lost"]) == (4, 0)
    assert (measured["steady"]["events"], measured["steady"]["least"], measured["steady"]["most"]) == (100, 25, 25)
    assert 0 < measured["steady"]["p50_us"] <= measured["steady"]["max_us"] < 1e6
    assert measured["steady"]["server_cpu_us"] > 0
    assert (measured["steady"]["chunks"] > 0) is is_chunked


@needs_cc
def test_who_is_refused_is_not_connected_and_the_answer_is_shown(bench):
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        assert b"Authorization: Bearer wrong\r\n" in request
        writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    with serving(answer) as port:
        options = ["--clients=3", "--warm=0", "--settle=0", "--seconds=0.1", "--header=Authorization: Bearer wrong"]
        measured = bench.load.run_load(options, pid=os.getpid(), port=port)
    assert (measured["connect"]["ready"], measured["connect"]["refused"]) == (0, 3)
    assert "401 Unauthorized" in measured["said"]


@needs_cc
def test_a_storm_asks_for_what_is_so_many_events_ago(bench):
    """Events are numbered, one every 5 ms; who has a cursor gets what followed it first."""
    log: list[bytes] = []
    cursors: list[int] = []

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        found = request.partition(b"Last-Event-ID: AbCd.")[2].partition(b"\r\n")[0]
        begin = int(found) + 1 if found else len(log)
        if found:
            cursors.append(len(log) - begin)
        writer.write(HEAD + b"\r\nid: AbCd.%d\n\n" % (begin - 1))
        while True:
            while len(log) * 0.005 < time.monotonic() - began:
                log.append(event(len(log)))
            writer.write(b"".join(log[begin:]))
            begin = len(log)
            await writer.drain()
            await asyncio.sleep(0.005)

    began = time.monotonic()
    with serving(answer) as port:
        options = ["--clients=2", "--warm=0", "--settle=0", "--seconds=0.3", "--storm=5", "--behind=20", "--pause=0.1"]
        measured = bench.load.run_load(options, pid=os.getpid(), port=port)
    storm, plain = measured["storm"], measured["plain"]
    assert len(cursors) == 5
    assert all(19 <= behind <= 40 for behind in cursors)
    assert (storm["caught_up"], storm["newcomers_ready"], storm["newcomers_lost"]) == (5, 5, 0)
    assert abs(storm["replayed"] - sum(cursors)) <= 10
    assert (plain["newcomers_ready"], plain["replayed"]) == (5, 0)
