"""The same command again, as a child process: it inherits the listening socket, and ends when its parent is gone.

Both sides of it: what the parent holds of a child, and what the child has from its parent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .worker import Worker, take_worker

if TYPE_CHECKING:
    import socket

log = logging.getLogger("eventmux.child")

MARGIN = 3.0  # seconds, beside the grace, after which a child that does not end is killed

# Descriptors that the child inherits: the socket to listen on, the lifeline, and where it says that it serves.
_LISTENER, _LIFELINE, _REPORT = "EVENTMUX_LISTENER", "EVENTMUX_LIFELINE", "EVENTMUX_REPORT"


class Child:
    """What the parent holds of a child that it has just started; it is over when `code` is not None.

    `title` names it in the log. A child whose lifeline has no other end any more ends as if by a signal.
    `report` is where it says that it serves: a descriptor to read, which the parent closes.
    """

    def __init__(self, title: str, listener: socket.socket, environ: Mapping[str, str] | None = None) -> None:
        self.title = title
        self._lifeline: int | None
        lifeline, self._lifeline = os.pipe()
        self.report, report = os.pipe()
        handed = {_LISTENER: listener.fileno(), _LIFELINE: lifeline, _REPORT: report}
        # Inherited, until the child follows it: before that SIGHUP would end the child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command that we are ourselves
                [sys.executable, *sys.orig_argv[1:]],
                pass_fds=tuple(handed.values()),
                env={**os.environ, **{name: str(number) for name, number in handed.items()}, **(environ or {})},
                process_group=0,  # a terminal's Ctrl-C comes once, from us
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(lifeline)
            os.close(report)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def send(self, sig: int) -> None:
        self._process.send_signal(sig)

    def let_go(self) -> None:
        """It ends, unless it is about to anyway: who stops a whole group of processes reaches it, too, and a second
        signal would cut its clients off.
        """
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def kill(self) -> None:
        log.warning("%s does not end: killed", self.title)
        self._process.kill()

    def wait(self, seconds: float) -> None:
        """Until it has ended, which it is made to after so long."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()


class Inheritance:
    """What a child has from its parent. `worker`: which of several it is, where there are several.

    `is_ending`: asked when the parent is gone; where it is true, nothing has to be done about that.
    """

    def __init__(self, listener: int, lifeline: int, report: int, worker: Worker | None) -> None:
        self.listener = listener
        self.worker = worker
        self.is_ending: Callable[[], bool] = lambda: False
        self._report = report
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        threading.Thread(target=self._watch, args=(lifeline,), name="eventmux parent", daemon=True).start()

    def say(self, text: str) -> None:
        """Tell the parent that this process serves, and what there is to show of it."""

        def write() -> None:  # a pipe may be full, and the parent slow
            with contextlib.suppress(OSError), os.fdopen(self._report, "w", encoding="utf-8") as pipe:
                pipe.write(text)

        threading.Thread(target=write, name="eventmux report", daemon=True).start()

    def _watch(self, lifeline: int) -> None:
        os.read(lifeline, 1)
        # Python makes one of two signals that it has not handled yet: so this is the first, or none is sent.
        if not self.is_ending():
            os.kill(os.getpid(), signal.SIGTERM)


def take_inheritance() -> Inheritance | None:
    """In a child; None in any other process. SIGHUP must be handled already: from now on it comes."""
    found = [os.environ.pop(name, None) for name in (_LISTENER, _LIFELINE, _REPORT)]
    worker = take_worker(os.environ)
    numbers = [int(number) for number in found if number is not None]
    if len(numbers) < len(found):
        return None
    for number in numbers:
        os.set_inheritable(number, False)  # noqa: FBT003 - processes that a plugin starts must not hold it
    listener, lifeline, report = numbers
    return Inheritance(listener, lifeline, report, worker)
