"""A line of the log is one record, whatever a client has sent, as text and as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import socket
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmux import SourceError, source
from eventmux.config import ServerConfig
from eventmux.logs import JsonFormatter, TextFormatter
from eventmux.notice import Notices
from eventsource import wait_until
from raw import Note
from service import Service, enable, serve_process, serving, settings_of
from test_metrics import endless, hot, stalled

TEXT, JSON = TextFormatter(), JsonFormatter()
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) +[\w.]+: ")
FORGED = (
    "x\n2026-11-20T08:00:00.000Z ERROR eventmux: all is lost"
    "\r\u2028\x1b[31mred\x1b[0m\x07\x9b\u202egnorw\u2066\u200b\x00"
)


def record(message: str, *args: object, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    logger = logging.getLogger("eventmux.test")
    return logger.makeRecord(logger.name, logging.INFO, "", 0, message, args, info, extra=extra)  # type: ignore[arg-type]


def is_tame(text: str) -> bool:
    return not any(unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for letter in text)


def thrown(message: str) -> BaseException:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


def test_text_is_time_level_logger_message_and_fields() -> None:
    made = record(
        "stream %s ended",
        "a",
        principal="dash",
        events=3,
        lag=0.25,
        sources=["clock", "echo"],
        reason="client gone",
        user=None,
    )
    made.created = 1_795_000_000.1239
    assert (
        "2026-11-18T11:06:40.123Z INFO    eventmux.test: stream a ended principal=dash events=3 lag=0.25 "
        'sources=clock,echo reason="client gone" user=-'
    ) == TEXT.format(made)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("-", '"-"'),
        (None, "-"),
        (True, "True"),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('say "hi"', r'"say \"hi\""'),
        ("back\\slash", r'"back\\slash"'),
        ("two\nlines", r'"two\nlines"'),
        ("\x1b[31m", r'"\x1b[31m"'),
        ("\u202e", r'"\u202e"'),
        ("\ud800", r'"\ud800"'),
        ("Grüße", "Grüße"),
        ({"a": 1}, "\"{'a': 1}\""),
        (["a b", "c"], '"a b,c"'),
        ([1, 2], '"[1, 2]"'),
    ],
)
def test_a_value_that_is_not_one_word_is_quoted(value: object, shown: str) -> None:
    assert TEXT.format(record("m", key=value)).endswith(f": m key={shown}")


def test_nothing_that_a_client_sends_can_forge_a_line_or_reach_a_terminal() -> None:
    made = record("said %s", FORGED, error=thrown(FORGED), field=FORGED, **{FORGED: 1})
    made.stack_info = FORGED
    made.name = FORGED
    first, *rest = TEXT.format(made).split("\n")
    assert LINE.match(first.replace(made.name, "name")) or first.startswith("2")
    assert all(line.startswith("    ") for line in rest)
    assert all(map(is_tame, [first, *rest]))
    assert is_tame(JSON.format(made))
    assert FORGED in json.loads(JSON.format(made))["message"]


@given(st.text(), st.text(), st.text())
def test_whatever_is_said_is_one_line_of_visible_characters(message: str, field: str, key: str) -> None:
    made = record("%s", message, field=field)
    vars(made).setdefault(key, field)
    for formatter in (TEXT, JSON):
        line = formatter.format(made)
        assert "\n" not in line
        assert is_tame(line)
    assert message == json.loads(JSON.format(made))["message"]
    assert field == json.loads(JSON.format(made))["field"]


def test_a_traceback_stays_readable_in_lines_of_its_own() -> None:
    first, *rest = TEXT.format(record("failed", error=thrown("no"))).split("\n")
    assert first.endswith(": failed")
    assert "    Traceback (most recent call last):" == rest[0]
    assert "        raise ValueError(message)" in rest
    assert "    ValueError: no" == rest[-1]


def test_json_has_every_field_under_its_name_and_the_exception_as_text() -> None:
    made = record(
        "ended", error=thrown("no"), principal="dash", events=3, lag=0.25, sources=["a"], message_="m", level=7
    )
    made.stack_info = "Stack:\n  here"
    made.created = 1_795_000_000.1239
    told = json.loads(JSON.format(made))
    assert told.pop("exception").startswith("Traceback (most recent call last):\n")
    assert {
        "time": "2026-11-18T11:06:40.123Z",
        "level": "INFO",
        "logger": "eventmux.test",
        "message": "ended",
        "principal": "dash",
        "events": 3,
        "lag": 0.25,
        "sources": ["a"],
        "message_": "m",
        "level_": 7,
        "stack": "Stack:\n  here",
    } == told
    assert ["time", "level", "logger", "message"] == list(told)[:4]


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Broken(), {1: {(2, 3): 4}}, object(), b"bytes"])
def test_a_field_that_has_no_json_does_not_lose_the_line(value: object) -> None:
    told = json.loads(JSON.format(record("m", key=value)), parse_constant=pytest.fail)
    assert "m" == told["message"]
    assert "key" in told
    assert " key=" in TEXT.format(record("m", key=value))


def test_one_that_contains_itself_does_not_lose_the_line() -> None:
    value: list[object] = []
    value.append(value)
    assert "m" == json.loads(JSON.format(record("m", key=value)))["message"]
    assert " key=" in TEXT.format(record("m", key=value))


@pytest.mark.parametrize("formatter", [TEXT, JSON])
def test_a_message_that_does_not_fit_its_arguments_is_shown_all_the_same(formatter: logging.Formatter) -> None:
    line = formatter.format(record("%d of %s", "x"))
    assert "%d of %s" in line
    assert "not formatted" in line


def test_what_uvicorn_adds_for_colours_is_left_out() -> None:
    assert TEXT.format(record("m", color_message="\x1b[1mm")).endswith(": m")


@source(shared=True)
async def ill() -> AsyncIterator[Note]:
    raise SourceError("no")
    yield Note(n=0)


PLUGIN = """
import logging, warnings
from collections.abc import AsyncIterator
from eventmux import Context, Event, source
class Note(Event):
    n: int
@source
async def talks(ctx: Context, text: str = "") -> AsyncIterator[Note]:
    ctx.log.info("asked for %s", text, extra={"client_text": text})
    logging.getLogger("uvicorn.error").error("uvicorn says %s", text)
    warnings.warn("a warning", stacklevel=1)
    raise ValueError(text)
    yield Note(n=1)
"""


@pytest.mark.parametrize("kind", ["text", "json", None])
def test_every_logger_of_the_command_writes_in_the_format_that_is_asked_for(kind: str | None, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "talks.py").write_text(PLUGIN, "utf-8")
    (tmp_path / "plugins.yaml").write_text("sources: {talks: {}}\nplugins: {dir: local}\n", "utf-8")
    with serve_process(*(["--log-format", kind] if kind else []), cwd=tmp_path) as process:
        service = Service(process.wait_for_url(), None)  # type: ignore[arg-type] # nobody looks at its hub
        service.get("/sse/talks", params={"text": FORGED.replace("\x00", "")}, headers={"traceparent": PARENT})
        wait_until(lambda: "incident" in process.log.read_text())
        assert 0 == process.stop(signal.SIGTERM)
        log = process.log.read_text("utf-8")
    lines = log[log.index("/sse/talks\n") + len("/sse/talks\n") :].strip("\n").split("\n")
    assert all(map(is_tame, lines))
    if kind == "json":
        told = [json.loads(line) for line in lines]
        loggers = {one["logger"] for one in told}
        (failure,) = [one for one in told if one["logger"] == "eventmux.run"]
        assert "Traceback" in failure["exception"]
        assert PARENT == failure["trace"]
        assert [FORGED.replace("\x00", "")] == [one["client_text"] for one in told if "client_text" in one]
    else:
        assert all(LINE.match(line) or line.startswith("    ") for line in lines)
        loggers = {line.split()[2].rstrip(":") for line in lines if LINE.match(line)}
        assert any(line.startswith("    Traceback") for line in lines)
        assert f"trace={PARENT}" in log
    assert {"eventmux.source.talks", "eventmux.run", "uvicorn.error", "py.warnings"} <= loggers


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def said(caplog: pytest.LogCaptureFixture, begin: str) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.getMessage().startswith(begin)]


def total(lines: list[str]) -> int:
    return sum(int(found[1]) if (found := re.search(r"\(x (\d+)\)$", line)) else 1 for line in lines)


def test_a_thing_is_said_at_once_then_once_a_second_and_none_is_lost(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventmux.notice.SECONDS", 0.05)

    async def main() -> None:
        notices = Notices(logging.getLogger("eventmux.test"))
        for n in range(100):
            notices.warning("one", "one %d", n)
            notices.warning("two", "two")
        assert (["one 0"], ["two"]) == (said(caplog, "one"), said(caplog, "two"))
        await asyncio.sleep(0.2)
        assert (["one 0", "one 99 (x 99)"], ["two", "two (x 99)"]) == (said(caplog, "one"), said(caplog, "two"))
        notices.warning("one", "one again")
        notices.warning("one", "one more")
        notices.close()
        assert ["one again", "one more (x 1)"] == said(caplog, "one")[2:]
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert 102 == total(said(caplog, "one"))


def test_many_that_are_turned_away_are_told_with_their_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventmux.notice.SECONDS", 60)
    with serving(settings_of(enable(endless, max_runs=1))) as service, service.open("/sse/endless") as stream:
        stream.take(1)
        for _ in range(20):
            assert b"retry: " in service.get("/sse/endless", headers={"accept": "text/event-stream"}).content
        assert 1 == len(said(caplog, "turned a client away"))
    first, rest = said(caplog, "turned a client away")  # the rest when the service ends
    assert rest == f"{first} (x 19)"


def test_many_that_are_cut_off_are_told_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    with serving(settings_of(hot, server=ServerConfig(send_timeout=0.2))) as service, contextlib.ExitStack() as stack:
        clients: list[socket.socket] = [stack.enter_context(stalled(service, "/sse/hot")) for _ in range(8)]
        wait_until(lambda: service.hub.meter.slow["send_timeout"] == len(clients))
    lines = said(caplog, "a client took nothing for 0.2 seconds: cut off")
    assert 8 == total(lines)
    assert len(lines) < 8
