"""`eventmux serve --workers N`: the service as several processes on one socket. This one starts them and serves nobody.

All accept from one socket, which is ours: what waits in its queue is lost with no worker (decision 17).
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .child import MARGIN, Child
from .errors import NoDirectoryError
from .worker import Worker

if TYPE_CHECKING:
    import socket

log = logging.getLogger("eventmux.workers")

# Seconds. One that ends by itself is followed by another after the first, doubled each time up to the second; where it
# has been there for the third, this begins anew.
PAUSE, MAX_PAUSE, STEADY = 0.25, 30.0, 60.0
MAX_PATH = 100  # bytes; the name of a socket has room for 103 on some systems
ENDING = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True)
class Post:
    """A worker's, whoever has it now. `started`, and `due` for who comes next, are of the monotonic clock."""

    worker: Worker
    child: Child | None = None
    said: bytearray = field(default_factory=bytearray)
    is_up: bool = False
    started: float = 0.0
    due: float = 0.0
    failures: int = 0

    @property
    def title(self) -> str:
        return f"worker {self.worker.number}"


class Workers:
    """`count` of them. `patience` says, at the end, how many seconds they may take for it; `show` gets what the first
    one says of the service, once all of them serve. Raises NoDirectoryError.

    Until the first has come up there is no other: what is wrong with the configuration is said once.
    """

    def __init__(
        self, listener: socket.socket, count: int, patience: Callable[[], float], show: Callable[[str], None]
    ) -> None:
        self._listener = listener
        self._patience = patience
        self._show: Callable[[str], None] | None = show
        self._directory = _make_directory()
        self._posts = [Post(Worker(number, count, self._directory)) for number in range(count)]
        self._came_up = False
        self._signals: list[int] = []
        self._is_ending = False
        self._deadline: float | None = None  # when who has not ended is killed
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Until a signal, and until all have ended: 0. Where none ever came up: the exit code of the first."""
        with self._following_signals():
            try:
                return self._run()
            finally:
                shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self) -> int:
        first = self._posts[0]
        while True:
            while self._signals:
                self._hand_on(self._signals.pop(0))
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._deadline = None
                for child in self._children:
                    child.kill()
            for post in self._posts:
                if post.child and (code := post.child.code) is not None:
                    self._bury(post, code)
                    if post is first and not self._came_up and not self._is_ending:
                        return code if code >= 0 else 128 - code
                elif not post.child and self._may_start(post):
                    self._start(post)
            if self._is_ending and not self._children:
                return 0
            self._wait()

    @property
    def _children(self) -> list[Child]:
        return [post.child for post in self._posts if post.child]

    def _may_start(self, post: Post) -> bool:
        is_its_turn = self._came_up or post is self._posts[0]
        return is_its_turn and not self._is_ending and time.monotonic() >= post.due

    def _start(self, post: Post) -> None:
        post.child = Child(post.title, self._listener, post.worker.environ())
        post.started = time.monotonic()
        post.said.clear()
        self._selector.register(post.child.report, selectors.EVENT_READ, post)

    def _bury(self, post: Post, code: int) -> None:
        """What is left of a child that has ended goes, and the next one gets its time."""
        if post.child and post.child.report in self._selector.get_map():
            self._hear(post, post.child)
        if post.child:
            post.child.let_go()
        post.child, post.is_up = None, False
        if self._is_ending or not self._came_up:
            return
        now = time.monotonic()
        post.failures = 1 if now - post.started > STEADY else post.failures + 1
        pause = min(MAX_PAUSE, PAUSE * 2 ** min(post.failures - 1, 16))
        post.due = now + pause
        log.error("%s has ended by itself (%s): another one starts in %g seconds", post.title, _how(code), pause)

    def _hand_on(self, sig: int) -> None:
        if sig in ENDING and not self._is_ending:
            self._is_ending = True
            self._deadline = time.monotonic() + self._patience() + MARGIN
            self._listener.close()  # else a client might wait in its queue when nobody comes any more
            for child in self._children:
                child.let_go()
        elif sig != signal.SIGCHLD:  # a second one ends at once
            for child in self._children:
                child.send(sig)

    def _wait(self) -> None:
        """Until a signal, a child's word, or the time for something to do."""
        times = [post.due for post in self._posts if self._came_up and not post.child and not self._is_ending]
        if self._deadline is not None:
            times.append(self._deadline)
        for key, _ in self._selector.select(max(0.0, min(times) - time.monotonic()) if times else None):
            if key.data and key.data.child:
                self._hear(key.data, key.data.child)
            elif not key.data:
                os.read(key.fd, 4096)

    def _hear(self, post: Post, child: Child) -> None:
        """What a child says is whole at the end of its pipe; one that has ended before it served says nothing."""
        if part := os.read(child.report, 65_536):
            post.said += part
            return
        self._selector.unregister(child.report)
        os.close(child.report)
        post.is_up = bool(post.said)
        self._came_up = self._came_up or post.is_up
        if self._show and all(one.is_up for one in self._posts):
            self._show(self._posts[0].said.decode())
            self._show = None

    @contextlib.contextmanager
    def _following_signals(self) -> Generator[None, None, None]:
        """A signal, a child's end among them, ends the waiting."""
        woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        self._selector.register(woken, selectors.EVENT_READ)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for sig in (*ENDING, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(sig, lambda sig, _: self._signals.append(sig))
        try:
            yield
        finally:
            for sig in (*ENDING, signal.SIGHUP):  # nothing is left that could be ended
                signal.signal(sig, signal.SIG_IGN)
            self._selector.close()


def _make_directory() -> Path:
    """A new one, for this user and nobody else."""
    remedy = "set TMPDIR to a directory with a short name that may be written, or mount a tmpfs at /tmp"
    try:
        made = Path(tempfile.mkdtemp(prefix="eventmux-"))
    except OSError as error:
        raise NoDirectoryError(f"no directory for the sockets of the workers ({error.strerror}): {remedy}") from None
    if len(os.fsencode(made)) + len("/999.sock") > MAX_PATH:
        made.rmdir()
        raise NoDirectoryError(f"{made}: too long a name for the sockets of the workers: {remedy}")
    return made


def _how(code: int) -> str:
    """`exit code 1`, `SIGKILL`."""
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
