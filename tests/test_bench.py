"""The measurements run, and see what they are there to see. Their figures are in docs/measurements.md."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EPOCH = "AbCd"


def run(tmp_path: Path, *command: str) -> dict[str, Any]:
    """What the measurement writes for programs; it must have found no fault."""
    file = tmp_path / "result.json"
    ran = subprocess.run(
        [sys.executable, "-m", *command, "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (0, "passed") == (ran.returncode, ran.stdout.strip().splitlines()[-1]), ran.stdout + ran.stderr
    return dict(json.loads(file.read_text("utf-8")))


def test_a_soak_of_seconds_loses_nothing_and_leaves_nothing(tmp_path):
    found = run(tmp_path, "bench.soak", "--seconds", "3", "--clients", "15")
    assert found["totals"]["violations"] == []
    assert found["totals"]["events"] > 100
    assert found["after"]["tasks"] == found["before"]["tasks"]


def test_the_stalled_are_measured_beside_the_idle_and_then_let_go(tmp_path):
    stall = ["--clients", "20", "--seconds", "0.6", "--send-timeout", "2", "--send-buffer", "16384"]
    # So few say nothing about memory.
    found = run(tmp_path, "bench.stalled", *stall, "--rate", "5000", "--size", "500", "--tolerance", "1000")
    assert list(found["measured"]) == ["idle", "stalled", "stalled in a replay"]
    for measured in found["measured"].values():
        assert measured["there"]["fds"] >= measured["before"]["fds"] + 20 > measured["gone"]["fds"]


@pytest.fixture
def check(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("bench.check")


@pytest.fixture
def wire(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("bench.wire")


def item(n: int, *, source: str = "steady", log: str = "one", cursor: int | None = None) -> str:
    name = "item" if n % 3 else "third"
    data = json.dumps({"source": source, "log": log, "n": n})
    return f"id: {EPOCH}.{cursor or n}\nevent: {name}\ndata: {data}\n\n"


def control(event: str, cursor: str, **data: object) -> str:
    return f"id: {cursor}\nevent: stream.{event}\ndata: {json.dumps({'source': 'steady', **data})}\n\n"


def gap(reason: str, missed: int | None, cursor: int) -> str:
    return control("gap", f"{EPOCH}.{cursor}", reason=reason, missed=missed)


OPENING = f"retry: 500\nid: {EPOCH}.4\n\n"
KEPT = {
    "all of it": OPENING + item(5) + item(6),
    "a gap that says how many": OPENING + item(5) + gap("lagged", 3, 8) + item(9),
    "a log that began anew": OPENING + item(5) + gap("restarted", None, 0) + item(1, log="two"),
    "an end": OPENING + item(5) + control("end", "steady!", reason="completed"),
}
BROKEN = {
    "a hole": OPENING + item(6),
    "an event twice": OPENING + item(5) + item(5),
    "an event too late": OPENING + item(5) + item(4),
    "a cursor that claims too much": OPENING + item(5, cursor=6),
    "a cursor that moves without an event": OPENING + f"id: {EPOCH}.5\n\n",
    "a gap that counts wrong": OPENING + item(5) + gap("lagged", 2, 8) + item(9),
    "a gap that says no number": OPENING + item(5) + gap("lagged", None, 8) + item(9),
    "another log, and no word of it": OPENING + item(5) + item(6, log="two"),
    "the old log after it was said to be gone": OPENING + item(5) + gap("restarted", None, 0) + item(1),
    "a source that was not asked for": OPENING + item(5, source="bursty"),
    "an end before the last event": OPENING + control("end", "steady!", reason="completed"),
    "an end that nobody expects": OPENING + item(5) + control("end", "steady!", reason="failed"),
    "an event after the end": OPENING + item(5) + control("end", "steady!", reason="completed") + item(6),
}


def told(check: ModuleType, wire: ModuleType, text: str) -> None:
    head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    promise = check.Promise(lengths={"steady": 5}, shared=frozenset({"steady"}))
    promise.opened(["steady"], can_lose=False, limit=None)
    promise.told(wire.Block(f"{EPOCH}.4", None, None))  # of a connection before
    promise.opened(["steady"], can_lose=False, limit=None)
    reader = wire.Reader()
    for byte in (head + "".join(f"{len(part):x}\r\n{part}\r\n" for part in (text[:7], text[7:]))).encode():
        for block in reader.feed(bytes([byte])):
            promise.told(block)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_a_promise_that_is_kept_is_no_violation(check, wire, text):
    told(check, wire, text)


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_promise_is_seen(check, wire, text):
    with pytest.raises(check.Violation):
        told(check, wire, text)
