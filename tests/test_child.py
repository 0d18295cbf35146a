"""A child process of the command, as its parent has it: what is said in both directions, and its end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from eventmux.child import Child
from eventmux.web.server import bind
from eventsource import PATIENCE, wait_until

BEGIN = """
import os, signal, sys, threading
from eventmux.child import take_inheritance
signal.signal(signal.SIGHUP, lambda *_: None)
inherited = take_inheritance()
"""
# As a plugin does that has a pool of processes.
FORK = """
me = os.getpid()
if os.fork() == 0:
    while os.getppid() == me:
        threading.Event().wait(0.01)
    os._exit(0)
"""
SAY = """
inherited.say("served", str(len(inherited.held)))
threading.Event().wait()
"""

Start = Callable[..., Child]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A child that runs these lines of Python, and ends with the test."""
    made: list[Child] = []
    with bind("127.0.0.1", 0) as listener:

        def start(code: str, held: str = "") -> Child:
            monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", BEGIN + code])
            made.append(Child("the child", listener, held=held))
            return made[-1]

        yield start
    for child in made:
        child.let_go()
        child.ignore()
        child.wait(PATIENCE)


def test_what_is_said_in_both_directions_is_whole_whatever_its_length(start: Start) -> None:
    child = start(SAY.replace('"served"', '"x" * 200_000'), held="y" * 200_000)
    assert wait_until(child.hear, "the child's word") == ["x" * 200_000, "200000"]


def test_a_child_is_heard_though_a_process_of_its_own_has_its_pipe(start: Start) -> None:
    child = start(FORK + SAY)
    assert wait_until(child.hear, "the child's word") == ["served", "0"]


def test_one_that_ends_without_a_word_is_known_to_say_nothing(start: Start) -> None:
    child = start("sys.exit(7)")
    wait_until(lambda: child.code == 7, "its end")
    assert child.hear() == []


def test_one_that_is_let_go_ends_as_by_a_signal(start: Start) -> None:
    child = start(SAY)
    wait_until(child.hear, "the child's word")
    child.send(signal.SIGHUP)
    assert child.code is None
    child.let_go()
    wait_until(lambda: child.code == -signal.SIGTERM, "its end")
