"""What workers say to each other, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.registry import Collector

from eventmux.errors import NoDirectoryError
from eventmux.rendezvous import Rendezvous
from eventmux.web import siblings as module
from eventmux.web.gathering import WorkersCollector, packed
from eventmux.web.siblings import Siblings
from eventmux.worker import Worker

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory() -> Iterator[Path]:
    with contextlib.closing(Rendezvous()) as rendezvous:
        yield rendezvous.path


@contextlib.asynccontextmanager
async def three(directory: Path, **answers: bytes) -> AsyncIterator[list[Siblings]]:
    """Of which each says the same, and its number."""
    async with contextlib.AsyncExitStack() as stack:
        found = [Siblings(Worker(number, 3, directory)) for number in range(3)]
        for one in found:
            for question, answer in answers.items():
                one.answer(question, saying(answer + b" of %d" % one.number))
            await stack.enter_async_context(one.listening())
        yield found


def sockets(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def saying(answer: bytes) -> module.Answer:
    async def say() -> bytes:
        return answer

    return say


async def test_each_is_told_what_the_others_say_and_who_asks_meanwhile_shares_the_answer(directory: Path) -> None:
    asked = 0

    async def slowly() -> bytes:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.01)
        return b"x" * 1_000_000

    async with three(directory, status=b"well") as (first, second, third):
        assert await second.ask("status") == {0: b"well of 0", 2: b"well of 2"}
        third.answer("much", slowly)
        first.answer("much", saying(b""))
        answers = await asyncio.gather(*(second.ask("much") for _ in range(10)))
        assert answers == [{0: b"", 2: b"x" * 1_000_000}] * 10
        assert asked == 1
        await second.ask("much")
        assert asked == 2


async def test_one_that_does_not_answer_is_left_out(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    monkeypatch.setattr(module, "MAX_ANSWER", 1000)

    async def never() -> bytes:
        return await asyncio.Future()

    async with three(directory, status=b"well") as (first, second, third):
        assert await first.ask("nonsense") == {}
        first.answer("odd", never)
        second.answer("odd", saying(b"x" * 1001))
        assert await third.ask("odd") == {}
        assert await third.ask("status") == {0: b"well of 0", 1: b"well of 1"}
    assert await third.ask("status") == {}  # they are gone


async def test_one_that_breaks_off_is_left_out(directory: Path) -> None:
    (first, *_) = [Siblings(Worker(number, 2, directory)) for number in range(2)]

    async def break_off(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((10).to_bytes(4) + b"123")
        writer.close()

    server = await asyncio.start_unix_server(break_off, directory / "1.sock")
    assert await first.ask("status") == {}
    server.close()


async def test_who_asks_for_nonsense_or_for_ever_keeps_nobody(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    async with three(directory, status=b"well") as (first, *_):
        for question in (b"\n", b"x" * 1000, b"\xff\n", b"sta"):
            reader, writer = await asyncio.open_unix_connection(directory / "1.sock")
            writer.write(question)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert await first.ask("status") == {1: b"well of 1", 2: b"well of 2"}


async def test_the_socket_of_one_that_was_killed_is_no_hindrance_for_the_next(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(directory / "1.sock"))
    async with three(directory, status=b"well") as (first, *_):
        assert await first.ask("status") == {1: b"well of 1", 2: b"well of 2"}
    assert sockets(directory) == []


async def test_one_process_alone_has_no_siblings_and_opens_nothing() -> None:
    alone = Siblings(None)
    async with alone.listening():
        assert await alone.ask("status") == {}
        assert (alone.number, alone.others) == (0, ())


# Metrics of all


class Fixed(Collector):
    """What a worker would collect."""

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("eventmux_open", "Open.", value=2)
        counter = CounterMetricFamily("eventmux_events", "Events.", labels=("source",))
        counter.add_metric(("clock",), 3)
        counter.add_metric(("secret",), 4)
        yield counter
        yield HistogramMetricFamily("eventmux_lag", "Lag.", buckets=[("0.1", 1), ("+Inf", 2)], sum_value=0.5)


def gathered(collector: Collector) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    families = parse_openmetrics(openmetrics(registry).decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_numbers_of_all_workers_have_their_label_and_only_sources_that_may_be_shown() -> None:
    answers = {0: packed([Fixed()])}
    found = gathered(WorkersCollector(1, [Fixed()], (0, 2), answers, lambda source: source != "secret"))
    assert found == {
        ("eventmux_worker_up", "0"): 1,
        ("eventmux_worker_up", "1"): 1,
        ("eventmux_worker_up", "2"): 0,
        **{("eventmux_open", number): 2 for number in "01"},
        **{("eventmux_events_total", "clock", number): 3 for number in "01"},
        **{("eventmux_lag_bucket", "0.1", number): 1 for number in "01"},
        **{("eventmux_lag_bucket", "+Inf", number): 2 for number in "01"},
        **{("eventmux_lag_count", number): 2 for number in "01"},
        **{("eventmux_lag_sum", number): 0.5 for number in "01"},
    }


# Where they meet


def test_the_directory_is_for_this_user_is_not_tidied_up_and_goes_with_the_service() -> None:
    rendezvous = Rendezvous()
    assert rendezvous.path.stat().st_mode & 0o777 == 0o700
    # What systemd-tmpfiles does to find out whether somebody needs a directory.
    look = os.open(rendezvous.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(look, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(look)
    (rendezvous.path / "0.sock").touch()
    rendezvous.close()
    assert not rendezvous.path.exists()


def test_without_a_place_for_it_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(NoDirectoryError, match=r"no directory .* set TMPDIR"):
        Rendezvous()
