"""Replicas that are killed, frozen and cut off from a Redis that is itself killed: a minute of bench/chaos.py; and what
it would see if a promise were broken.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.audit import faults_of_log
from bench.check import Violation
from bench.journal import Journal
from bench.pact import Pact
from bench.redis_program import program
from bench.wire import Block
from bench.witness import Witness
from redis_server import absent

ROOT = Path(__file__).parents[1]
SHARED, PRIVATE = "AbCd", "AbCdEfGhIjKlMnOpQrStUv"
PID = 4711


@pytest.mark.timeout(300)
def test_whatever_breaks_each_client_has_each_event_once_or_is_told_the_truth(tmp_path):
    if program() is None:
        absent("no Redis server: install redis-server or valkey-server")
    command = ["-m", "bench.chaos", "--seconds", "60", "--clients", "10", "--lease", "1", "--seed", "1"]
    ran = subprocess.run(
        [sys.executable, *command, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (0, "passed") == (ran.returncode, ran.stdout.strip().splitlines()[-1]), ran.stdout + ran.stderr
    found = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert len({fault["kind"] for fault in found["faults"]}) >= 5
    assert found["totals"]["events"] > 5_000
    assert found["read_back"] > 1_000


def item(n: int, *, source: str = "steady", by: int = PID, run: str = "a", made: float | None = None) -> Block:
    data = {"source": source, "log": "one", "n": n, "by": f"{by}.{run}", "made": made or float(n)}
    return Block(f"{SHARED if source in {'steady', 'small'} else PRIVATE}.{n}", "item" if n % 3 else "third", data)


def control(event: str, cursor: str, **data: Any) -> Block:
    return Block(cursor, f"stream.{event}", {"source": "steady", **data})


class Client:
    """One that has told its pact of some events of a source, on its second connection."""

    def __init__(self, source: str = "steady", last: int = 5, witness: Witness | None = None) -> None:
        self.journal = Journal(lease=1.0)
        self.pact = Pact(
            shared=frozenset({"steady", "small"}),
            lengths={},
            journal=self.journal,
            witness=witness or Witness(),
            bounded={"small": 10},
        )
        self.pact.begin((source,), can_lose=False)
        for n in range(1, last + 1):
            self.pact.told(item(n, source=source))
        self.pact.begin((source,), can_lose=False)


def gap(source: str, reason: str, missed: int | None, cursor: str) -> Block:
    return control("gap", cursor, source=source, reason=reason, missed=missed)


BROKEN = {
    "a hole": ("steady", item(7)),
    "a shared log that is said to be another": ("steady", gap("steady", "restarted", None, "WxYz.0")),
    "a gap in a long history": ("steady", gap("steady", "evicted", 3, f"{SHARED}.8")),
    "a private run that is lost, and nothing was broken": (
        "answer",
        control("end", "answer!", source="answer", reason="lost"),
    ),
    "a run without an end that is over": ("answer", control("end", "answer!", source="answer", reason="completed")),
    "a private run that is another, and nothing was broken": (
        "answer",
        gap("answer", "unknown", None, f"{PRIVATE}x.0"),
    ),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_a_word_that_is_not_true_is_a_violation(case):
    source, block = case
    with pytest.raises(Violation):
        Client(source).pact.told(block)


def test_a_private_run_may_be_lost_with_its_process_and_with_no_other():
    end = control("end", "answer!", source="answer", reason="lost")
    for kind, pid, is_told in (("kill", PID + 1, False), ("cut", PID, False), ("kill", PID, True)):
        client = Client("answer")
        client.journal.begin(kind, "a", [pid]).end = time.monotonic()
        if is_told:
            client.pact.told(end)
        else:
            with pytest.raises(Violation):
                client.pact.told(end)


def test_a_process_that_was_held_up_until_its_lease_is_over_may_be_taken_for_dead():
    client = Client("answer")
    frozen = client.journal.begin("freeze", "a", [PID])
    frozen.begin -= 0.2
    assert not client.journal.can_have_lost(PID, client.pact.began)
    frozen.begin -= 0.2
    client.pact.told(control("end", "answer!", source="answer", reason="lost"))


@pytest.mark.parametrize("is_true", [True, False], ids=["full", "with room"])
def test_events_of_a_short_history_are_let_go_when_it_is_full_and_not_before(is_true):
    client = Client("small")
    client.pact.told(gap("small", "evicted", 4, f"{SHARED}.9"))
    for n in range(10, 19):
        client.pact.told(item(n, source="small"))
    newest = item(19, source="small", made=time.monotonic() + (-1 if is_true else 1))
    if is_true:
        client.pact.told(newest)
    else:
        with pytest.raises(Violation, match="there was room"):
            client.pact.told(newest)


@pytest.mark.parametrize("newest", [5_008, 4_000])
def test_who_reads_all_of_a_long_history_may_lag_before_its_first_event_when_that_is_full(newest):
    witness = Witness()
    witness.saw(item(newest).data)
    client = Client(witness=witness)
    client.pact.bounded["steady"] = 5_000
    told = gap("steady", "lagged", 2, f"{SHARED}.7")
    if newest > 5_000:
        client.pact.told(told)
    else:
        with pytest.raises(Violation, match="nobody has seen more than 4000"):
            client.pact.told(told)


def test_two_clients_that_were_told_different_events_of_one_number_are_a_fork():
    witness = Witness()
    Client(witness=witness, last=3)
    client = Client(witness=witness, last=2)
    with pytest.raises(Violation, match="forked"):
        client.pact.told(item(3, run="b"))


def test_a_writer_that_goes_on_after_another_has_begun_is_seen():
    witness = Witness()
    for n, run in enumerate("aabba", 1):
        witness.saw(item(n, run=run).data)
    assert len(witness.faults()) == 1
    assert "number 5" in witness.faults()[0]


def test_what_is_read_back_with_a_hole_or_with_another_event_is_seen():
    witness = Witness()
    kept = [item(n).data for n in (1, 2, 4)]
    assert witness.compare("steady", kept, "in Redis") == ["steady in Redis: 4 follows 2"]
    assert witness.compare("steady", [item(2, made=9.0).data], "in Redis") != []
    assert witness.compare("steady", [item(n).data for n in (1, 2)], "in Redis") == []


def test_a_log_may_have_no_error_but_those_that_follow_from_a_fault():
    def line(level: str, message: str) -> str:
        return json.dumps({"time": "", "level": level, "message": message})

    killed = line("ERROR", "worker 1 has ended by itself (SIGKILL): another one starts in 0.25 seconds")
    lost = line("WARNING", "source steady: the store has lost a part of its log, or all of it: it begins anew")
    journal = Journal(lease=1.0)
    told = [line("INFO", "stream ended"), line("WARNING", "the store is away"), killed, lost, "Traceback (most recent"]
    assert len(faults_of_log("a", "\n".join(told), journal.faults)) == 3
    journal.begin("kill worker", "b", [PID])
    assert len(faults_of_log("a", "\n".join(told), journal.faults)) == 2
