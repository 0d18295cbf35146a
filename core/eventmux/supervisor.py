"""`eventmux serve --reload`: the service as a child process that is started again when code has changed.

The listening socket is the parent's. It stays open meanwhile, so that who reconnects is not refused, but waits. What
stands in plugins.yaml is no matter of ours while the service runs: it applies that itself.
"""

from __future__ import annotations

import logging
import signal
import threading
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from watchfiles import Change, DefaultFilter, watch

from .child import MARGIN, Child
from .registration import GROUP

if TYPE_CHECKING:
    import socket
    from types import FrameType

log = logging.getLogger("eventmux.supervisor")


class Supervisor:
    """Starts the same command again, as its child. `config`: the file that mends a child which has refused to start."""

    def __init__(self, listener: socket.socket, config: Path, directory: Path | None, grace: float) -> None:
        self._listener = listener
        self._config = config.absolute()
        self._paths = list(_paths(directory, config))
        self._grace = grace
        self._stop = threading.Event()
        self._child: Child | None = None

    def run(self) -> None:
        """Until a signal, and until the child has ended."""
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._on_signal)
        signal.signal(signal.SIGHUP, lambda sig, _: self._end(sig, wait=False))  # the child reads its file again
        log.info("restarts when code changes in %s", ", ".join(map(str, self._paths)))
        changes = watch(
            *self._paths,
            watch_filter=self._matters,
            stop_event=self._stop,
            debounce=400,
            rust_timeout=500,
            yield_on_timeout=True,
            raise_interrupt=False,
            ignore_permission_denied=True,
        )
        self._start()
        is_told = False
        for changed in changes:
            if self._stop.is_set():
                break
            if changed:
                log.info("%s changed: the service starts again", ", ".join(sorted({path for _, path in changed})))
                self._end(signal.SIGTERM)
                if not self._stop.is_set():
                    self._start()
                is_told = False
            elif not self._is_running and not is_told:
                is_told = True
                log.error("the service has ended by itself: it starts again when a file changes")
        self._wait()

    @property
    def _is_running(self) -> bool:
        return self._child is not None and self._child.code is None

    def _matters(self, change: Change, path: str) -> bool:
        if path == str(self._config):
            return not self._is_running
        return path.endswith(".py") and DefaultFilter()(change, path)

    def _on_signal(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal calls it
        self._stop.set()
        self._end(sig, wait=False)

    def _start(self) -> None:
        self._child = Child("the service", self._listener)
        self._child.ignore()  # it shows itself what there is to show
        if self._stop.is_set():  # a signal has come while there was nobody to hand it on to
            self._end(signal.SIGTERM, wait=False)

    def _end(self, sig: int, *, wait: bool = True) -> None:
        if self._child is not None and self._is_running:
            self._child.send(sig)
            if wait:
                self._wait()

    def _wait(self) -> None:
        if self._child is not None:
            self._child.wait(self._grace + MARGIN)
            self._child.let_go()


def _paths(directory: Path | None, config: Path) -> set[Path]:
    """Where the code of plugins is: the directory for them, their packages, and where we are."""
    found = {Path.cwd(), config.absolute().parent}
    if directory and directory.is_dir():
        found.add(directory.absolute())
    for point in entry_points(group=GROUP):
        spec = find_spec(point.module.partition(".")[0])
        if spec and spec.submodule_search_locations:
            found |= set(map(Path, spec.submodule_search_locations))
        elif spec and spec.origin:
            found.add(Path(spec.origin))
    return {path for path in found if path.exists() and not any(parent in found for parent in path.parents)}
