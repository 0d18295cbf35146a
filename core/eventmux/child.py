"""The same command again, as a child process: it inherits the listening socket, and ends when its parent is gone.

Both sides of it: what the parent holds of a child, and what the child has from its parent.
"""

from __future__ import annotations

import contextlib
import json
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
_LENGTH = 4  # bytes before what the lifeline has to say

# Descriptors that the child inherits: the socket to listen on, the lifeline, and where it says that it serves.
_LISTENER, _LIFELINE, _REPORT = "EVENTMUX_LISTENER", "EVENTMUX_LIFELINE", "EVENTMUX_REPORT"


class Child:
    """What the parent holds of a child that it has just started; it is over when `code` is not None.

    `title` names it in the log, `held` is for it to know from the start. A child whose lifeline has no other end any
    more ends as if by a signal. `report`: a descriptor with something to `hear`. Raises OSError.
    """

    def __init__(
        self, title: str, listener: socket.socket, environ: Mapping[str, str] | None = None, held: str = ""
    ) -> None:
        self.title = title
        self._said = b""
        with contextlib.ExitStack() as stack:
            lifeline, self._lifeline = _pipe(stack)
            self.report, report = _pipe(stack)
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
            stack.pop_all()
        os.close(lifeline)
        os.close(report)
        self._open = {self._lifeline, self.report}
        os.set_blocking(self.report, False)
        self._tell(held.encode())

    def _tell(self, text: bytes) -> None:
        rest = len(text).to_bytes(_LENGTH) + text
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            while rest:
                rest = rest[os.write(self._lifeline, rest) :]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def hear(self) -> list[str] | None:
        """What it has said, once that is whole, or nothing if it never will be; None until then. The end of its pipe
        may come later: a plugin's process may hold that, too.
        """
        try:
            part = os.read(self.report, 65_536)
        except BlockingIOError:
            return None
        self._said += part
        if self._said.endswith(b"\n"):
            return [str(text) for text in json.loads(self._said)]
        return None if part else []

    def send(self, sig: int) -> None:
        self._process.send_signal(sig)

    def let_go(self) -> None:
        """It ends, unless it is about to anyway: who stops a whole group of processes reaches it, too, and a second
        signal would cut its clients off.
        """
        self._close(self._lifeline)

    def ignore(self) -> None:
        """Hear it no more."""
        self._close(self.report)

    def _close(self, number: int) -> None:
        if number in self._open:
            self._open.remove(number)
            os.close(number)

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
    """What a child has from its parent. `worker`: which of several it is, where there are several. `held`: what it is
    to know from the start.

    `is_ending`: asked when the parent is gone; where it is true, nothing has to be done about that.
    """

    def __init__(self, listener: int, lifeline: int, report: int, worker: Worker | None) -> None:
        self.listener = listener
        self.worker = worker
        self.is_ending: Callable[[], bool] = lambda: False
        self._report = report
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        length = int.from_bytes(_read(lifeline, _LENGTH))
        self.held = _read(lifeline, length).decode()
        threading.Thread(target=self._watch, args=(lifeline,), name="eventmux parent", daemon=True).start()

    def say(self, *texts: str) -> None:
        """Tell the parent that this process serves, and what there is to say of it."""

        def write() -> None:  # a pipe may be full, and the parent slow
            with contextlib.suppress(OSError), os.fdopen(self._report, "w", encoding="utf-8") as pipe:
                pipe.write(json.dumps(texts) + "\n")

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


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """Both ends are closed with the stack."""
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends


def _read(number: int, length: int) -> bytes:
    """So many bytes, or what there is before the end."""
    found = b""
    while len(found) < length and (part := os.read(number, length - len(found))):
        found += part
    return found
