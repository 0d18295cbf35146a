"""What the log says of a store that goes away and comes back: a line for each, however many of its parts do."""

from __future__ import annotations

import logging
import time

_log = logging.getLogger("eventmux.store")


class Outage:
    def __init__(self) -> None:
        self._since: float | None = None

    def note(self, fault: str | None) -> None:
        """How the store as a whole is now."""
        if fault is not None and self._since is None:
            self._since = time.monotonic()
            _log.warning("the store is away: %s", fault)
        elif fault is None and self._since is not None:
            seconds, self._since = time.monotonic() - self._since, None
            _log.warning("the store is back, after %.1f seconds", seconds)
