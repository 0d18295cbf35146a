"""What becomes of runs when something else is offered under the names of their sources."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from .errors import PluginError
from .identity import shared_address

if TYPE_CHECKING:
    from .catalog import EnabledSource
    from .fanout import Fanout
    from .register import Register
    from .run import Run
    from .runs import Runs

log = logging.getLogger("eventmux.run")

SLICE = 8  # runs that follow a change before others have a turn


class Changes:
    """Makes runs follow. Shared ones at once; private ones, of which there may be thousands, a few at a time, as a job,
    or when they are asked for.
    """

    def __init__(self, runs: Runs, register: Register, fanout: Fanout) -> None:
        self._runs = runs
        self._register = register
        self._fanout = fanout
        self._offered: Mapping[str, EnabledSource] = {}
        self._due: dict[Run, None] = {}  # which have still to follow

    def __contains__(self, run: Run | None) -> bool:
        """Whether it has still to follow."""
        return run in self._due

    def forget(self, run: Run) -> None:
        self._due.pop(run, None)

    def apply(self, offered: Mapping[str, EnabledSource]) -> None:
        """Offer this from now on: end what is no longer there, change what is another now, and leave alone the rest."""
        self._offered = offered
        for run in self._register.all():
            if offered.get(run.enabled.name) is not run.enabled:
                self._due[run] = None
                if run.enabled.shared:
                    self.follow(run)
        if self._due:
            self._fanout.add(self)

    def advance(self, now: float) -> bool:  # noqa: ARG002 - as the fanout calls it
        for run in list(itertools.islice(self._due, SLICE)):
            self.follow(run)
        return bool(self._due)

    def follow(self, run: Run) -> None:
        """Make of the run what is offered now under its name."""
        del self._due[run]
        enabled = self._offered.get(run.enabled.name)
        try:
            if enabled is None or enabled.unavailable:
                self._runs.remove(run)
            elif enabled.shared == run.enabled.shared:
                self._change(run, enabled)
            elif not run.is_kept:
                self._runs.move(run)
        except Exception:  # what a plugin's own types raise when they are compared
            log.exception("a run of source %s could not follow a change: it is removed", run.enabled.name)
            self._runs.remove(run)

    def _change(self, run: Run, enabled: EnabledSource) -> None:
        try:
            parameters = enabled.validate(run.given)
        except (ValidationError, PluginError):
            if not run.is_kept:  # what its client asked for is not to be had any more
                self._runs.remove(run)
            return
        if run.seat and run.enabled.shared and not run.is_kept and self._is_elsewhere(run, enabled, parameters):
            self._runs.move(run)
            return
        channel, before = run.channel, run.enabled.policy
        self._register.unfile(run)
        self._runs.closing.add(run.change(enabled, parameters))
        self._register.file(run)
        if enabled.policy.history != before.history:
            channel.bound(enabled.policy.history)
        for stream in channel.streams:
            stream.hang_up(channel, on_lag=enabled.shared and enabled.policy.overflow == "disconnect")
        if self._runs.lifetimes.lingers(run) and enabled.policy.linger_seconds != before.linger_seconds:
            self._runs.leave(channel)

    @staticmethod
    def _is_elsewhere(run: Run, enabled: EnabledSource, parameters: BaseModel) -> bool:
        """Whether other replicas look for the log of these parameters, or for what is published to it, in another place
        than where this run's is.
        """
        if enabled.source.takes and run.box is None:
            return True
        return shared_address(enabled, parameters) != shared_address(run.enabled, run.parameters)
