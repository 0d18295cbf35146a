"""Whoever blocks the loop is named, once, with the stack; and nobody else is."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import eventmux.service
from eventmux import source
from eventmux.catalog import Catalog
from eventmux.config import Config, ServerConfig
from eventmux.meter import Meter
from eventmux.plugins import Plugin, Plugins
from eventmux.settings import Settings
from eventmux.watchdog import Watchdog
from eventsource import wait_until
from raw import Note
from service import Service, serve_process, serving, serving_file, settings_of
from test_metrics import metrics, value

STALL = 0.2
SERVER = ServerConfig(stall=STALL)


def records(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.name == "eventmux.watchdog" and one.levelno == level]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "watchdog" in thread.name]


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def compute(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


def hold_the_interpreter(seconds: float) -> None:
    """Calls of C that do not let go of it, each of them longer than a stall."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        sum(range(12_000_000))


@pytest.mark.parametrize("block", [sleep, compute, hold_the_interpreter])
def test_a_generator_that_blocks_is_named_with_its_stack_once(
    block: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    @source
    async def heavy() -> AsyncIterator[Note]:
        yield Note(n=1)
        await asyncio.sleep(0.02)
        block(4 * STALL)
        yield Note(n=2)

    with serving(settings_of(heavy, server=SERVER)) as service:
        assert b"stream.end" in service.get("/sse/heavy").content
        (told,) = wait_until(lambda: records(caplog))
        (after,) = wait_until(lambda: records(caplog, logging.WARNING))
        assert 1 == value(service, "loop_stalls_total test")
        assert 0 == value(service, "loop_stalls_total none")
    assert "source heavy of plugin test blocks it" in told.getMessage()
    assert ("test", "heavy") == (told.plugin, told.source)  # type: ignore[attr-defined]
    assert STALL <= told.seconds < 4 * STALL + 1  # type: ignore[attr-defined]
    assert f", in {block.__name__}\n" in str(told.stack_info)
    assert ", in heavy\n" in str(told.stack_info)
    assert "turns again" in after.getMessage()
    assert 3 * STALL - STALL / 4 <= after.seconds < 4 * STALL + 2  # type: ignore[attr-defined]


def test_a_stall_that_goes_on_is_told_twice_and_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    @source
    async def heavy() -> AsyncIterator[Note]:
        time.sleep(1.5)
        yield Note(n=1)

    with serving(settings_of(heavy, server=ServerConfig(stall=0.1))) as service:
        service.get("/sse/heavy")
        wait_until(lambda: records(caplog, logging.WARNING))
        first, second = records(caplog)
        assert first.seconds < 1 <= second.seconds  # type: ignore[attr-defined]
        assert 1 == value(service, "loop_stalls_total test")


def test_what_runs_outside_of_a_run_is_known_by_its_module(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A validator, in the task of a request."""
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "slow.py").write_text(
        "import time\n"
        "from collections.abc import AsyncIterator\n"
        "from typing import Annotated\n"
        "from eventmux import Event, source\n"
        "from pydantic import AfterValidator\n"
        "class Note(Event):\n    n: int\n"
        "def check(text: str) -> str:\n    time.sleep(0.6 if text else 0)\n    return text\n"
        "@source\n"
        'async def slow_one(text: Annotated[str, AfterValidator(check)] = "") -> AsyncIterator[Note]:\n'
        "    yield Note(n=1)\n",
        "utf-8",
    )
    text = "sources: {slow-one: {}}\nplugins: {dir: local}\nserver: {stall: 0.2}\n"
    with serving_file(text, tmp_path) as service:
        service.get("/sse/slow-one?text=a")
        (told,) = wait_until(lambda: records(caplog))
        assert 1 == value(service, "loop_stalls_total slow")
    assert ("slow", None) == (told.plugin, told.source)  # type: ignore[attr-defined]
    assert "plugin slow blocks it" in told.getMessage()
    assert "time.sleep(0.6 if text else 0)" in str(told.stack_info)


def service_of(*plugins: Plugin) -> eventmux.service.Service:
    return eventmux.service.Service(Settings(Config(), Plugins(plugins, {}), Catalog({})))


def test_who_is_no_plugin_is_not_taken_for_one(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> Meter:
        meter = Meter()
        plugin = Plugin("clock", "eventmux", "1", "eventmux_plugins.clock")
        watchdog = Watchdog(STALL, service_of(plugin), meter)
        watchdog.start()
        await asyncio.sleep(STALL)
        time.sleep(2 * STALL)
        await asyncio.sleep(STALL)
        watchdog.stop()
        watchdog.stop()
        return meter

    meter = asyncio.run(main())
    assert {"none": 1, "clock": 0} == meter.stalls
    (told,) = records(caplog)
    assert "no plugin's code is in its stack" in told.getMessage()
    assert "time.sleep(2 * STALL)" in str(told.stack_info)
    assert threads() == []


def test_a_stall_that_nobody_could_look_at_is_told_and_counted_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> Meter:
        meter = Meter()
        watchdog = Watchdog(STALL, service_of(), meter)
        watchdog.start()
        watchdog._is_over.set()  # the thread does not come to it, as when the whole process is stopped
        await asyncio.sleep(STALL)
        time.sleep(2 * STALL)
        await asyncio.sleep(STALL)
        watchdog.stop()
        return meter

    assert {"none": 1} == asyncio.run(main()).stalls
    (told,) = records(caplog)
    assert "over before it could be seen" in told.getMessage()


def test_a_loop_that_turns_is_left_alone_and_its_lag_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    @source
    async def brisk() -> AsyncIterator[Note]:
        for n in range(10_000):
            yield Note(n=n)

    with serving(settings_of(brisk, server=ServerConfig(stall=2))) as service:
        wait_until(lambda: value(service, "loop_lag_seconds_count") >= 1)
        service.get("/sse/brisk")
        assert 0 == sum(count for name, count in metrics(service).items() if "loop_stalls" in name)
    assert [] == records(caplog)
    assert threads() == []


@pytest.mark.parametrize(
    ("module", "owner"),
    [
        ("eventmux_plugins.clock", "clock"),
        ("eventmux_plugins.openai.chat", "openai"),
        ("eventmux_plugins.common", None),
        ("prices", "prices"),
        ("prices.upstream", "prices"),
        ("prices_too", None),
        ("games.coin", "coin"),
        ("games.common", "coin"),
        ("eventmux_local_file", "file"),
        ("asyncio.tasks", None),
    ],
)
def test_a_module_belongs_to_the_plugin_that_is_nearest(module: str, owner: str | None) -> None:
    found = (
        Plugin("clock", "eventmux", "1", "eventmux_plugins.clock"),
        Plugin("openai", "eventmux", "1", "eventmux_plugins.openai"),
        Plugin("prices", "acme", "1", "prices"),
        Plugin("coin", "games", "1", "games.coin:coin"),
        Plugin("file", None, None, "/srv/file.py"),
    )
    plugin = Plugins(found, {}).owner(module)
    assert owner == (plugin and plugin.name)


def test_the_command_names_it_too_with_the_stack_in_its_log(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "sleepy.py").write_text(
        "import time\n"
        "from collections.abc import AsyncIterator\n"
        "from eventmux import Event, source\n"
        "class Note(Event):\n    n: int\n"
        "@source\n"
        "async def sleepy() -> AsyncIterator[Note]:\n"
        "    time.sleep(0.8)\n"
        "    yield Note(n=1)\n",
        "utf-8",
    )
    (tmp_path / "plugins.yaml").write_text(
        "sources: {sleepy: {}}\nplugins: {dir: local}\nserver: {stall: 0.2}\n", "utf-8"
    )
    with serve_process(cwd=tmp_path) as process:
        service = Service(process.wait_for_url(), None)  # type: ignore[arg-type] # nobody looks at its hub
        service.get("/sse/sleepy")
        wait_until(lambda: "turns again" in process.log.read_text())
        assert 0 == process.stop()
        log = process.log.read_text()
    assert "source sleepy of plugin sleepy blocks it" in log
    assert "plugin=sleepy source=sleepy seconds=0." in log
    assert "\n        time.sleep(0.8)\n" in log
