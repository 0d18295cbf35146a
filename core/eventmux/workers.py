"""`eventmux serve --workers N`: the service as several processes on one socket. This one starts them and serves nobody.

All accept from one socket, which is ours: what waits in its queue is lost with no worker (decision 17).
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .child import MARGIN, Child
from .rendezvous import Rendezvous
from .worker import Worker

if TYPE_CHECKING:
    import socket

log = logging.getLogger("eventmux.workers")

# Seconds. One that ends by itself is followed by another after the first, doubled each time up to the second; where it
# has been there for the third, this begins anew.
PAUSE, MAX_PAUSE, STEADY = 0.25, 30.0, 60.0
HURRY = 2.0  # seconds after a second signal, of which a worker takes 0.9 by itself
ENDING = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True)
class Post:
    """A worker's, whoever has it now. `started`, and `due` for who comes next, are of the monotonic clock."""

    worker: Worker
    child: Child | None = None
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

    Until the first has come up there is no other: what is wrong with the configuration is said once. Who comes after it
    holds what it holds, though the file may say something else by then.
    """

    def __init__(
        self, listener: socket.socket, count: int, patience: Callable[[], float], show: Callable[[str], None]
    ) -> None:
        self._listener = listener
        self._patience = patience
        self._show: Callable[[str], None] | None = show
        self._rendezvous = Rendezvous()
        self._posts = [Post(Worker(number, count, self._rendezvous.path)) for number in range(count)]
        self._said: tuple[str, str] | None = None  # of the service, and what it holds; by the first that came up
        self._signals: list[int] = []
        self._is_ending = False
        self._deadline: float | None = None  # when who has not ended is killed
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Until a signal, and until all have ended: 0. Where none ever came up: the exit code of the first."""
        with contextlib.closing(self._rendezvous), self._following_signals():
            while True:
                while self._signals:
                    self._hand_on(self._signals.pop(0))
                self._kill_the_late()
                for post in self._posts:
                    if post.child and (code := post.child.code) is not None:
                        self._bury(post, post.child, code)
                        if not self._said and not self._is_ending:
                            return code if code >= 0 else 128 - code
                    elif not post.child and self._is_wanted(post) and time.monotonic() >= post.due:
                        self._start(post)
                if self._is_ending and not self._children:
                    return 0
                self._wait()

    @property
    def _children(self) -> list[Child]:
        return [post.child for post in self._posts if post.child]

    def _is_wanted(self, post: Post) -> bool:
        return not self._is_ending and (self._said is not None or post is self._posts[0])

    def _start(self, post: Post) -> None:
        post.started = time.monotonic()
        try:
            post.child = Child(post.title, self._listener, post.worker.environ(), self._said[1] if self._said else "")
        except OSError as error:  # no room for a process, or no descriptor
            self._put_off(post, f"cannot be started ({error.strerror})")
        else:
            self._selector.register(post.child.report, selectors.EVENT_READ, post)

    def _hear(self, post: Post, child: Child) -> None:
        said = child.hear()
        if said is None:
            return
        self._stop_hearing(child)
        if not said:
            return
        log.info("%s serves", post.title, extra={"pid": child.pid})
        post.is_up = True
        self._said = self._said or (said[0], said[1])
        if self._show and all(one.is_up for one in self._posts):
            self._show(self._said[0])
            self._show = None

    def _stop_hearing(self, child: Child) -> None:
        if child.report in self._selector.get_map():
            self._selector.unregister(child.report)
            child.ignore()

    def _bury(self, post: Post, child: Child, code: int) -> None:
        """What is left of a child that has ended goes, and the next one gets its time."""
        if child.report in self._selector.get_map():
            self._hear(post, child)
        self._stop_hearing(child)
        child.let_go()
        post.child, post.is_up = None, False
        if self._said and not self._is_ending:
            self._put_off(post, f"has ended by itself ({_how(code)})")

    def _put_off(self, post: Post, what: str) -> None:
        now = time.monotonic()
        post.failures = 1 if now - post.started > STEADY else post.failures + 1
        pause = min(MAX_PAUSE, PAUSE * 2 ** min(post.failures - 1, 16))
        post.due = now + pause
        log.error("%s %s: another one starts in %g seconds", post.title, what, pause)

    def _hand_on(self, sig: int) -> None:
        now = time.monotonic()
        if sig in ENDING and not self._is_ending:
            self._is_ending = True
            self._deadline = now + self._patience() + MARGIN
            self._listener.close()  # else a client might wait in its queue when nobody comes any more
            for child in self._children:
                child.let_go()
        elif sig != signal.SIGCHLD:
            for child in self._children:
                child.send(sig)
            if sig in ENDING and self._deadline is not None:  # a second one ends at once
                self._deadline = min(self._deadline, now + HURRY)

    def _kill_the_late(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._deadline = None
            for child in self._children:
                child.kill()

    def _wait(self) -> None:
        """Until a signal, a child's word, or the time for something to do."""
        times = [post.due for post in self._posts if not post.child and self._is_wanted(post)]
        if self._deadline is not None:
            times.append(self._deadline)
        for key, _ in self._selector.select(max(0.0, min(times) - time.monotonic()) if times else None):
            if key.data and key.data.child:
                self._hear(key.data, key.data.child)
            elif not key.data:
                os.read(key.fd, 4096)

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


def _how(code: int) -> str:
    """`exit code 1`, `SIGKILL`."""
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
