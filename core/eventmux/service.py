"""What a process serves now, and how that becomes something else. When it does, and why, is not said here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from .hub import Hub
from .replica import Replica
from .settings import reload_settings

if TYPE_CHECKING:
    from .catalog import Catalog
    from .config import StoreConfig
    from .settings import Settings

log = logging.getLogger("eventmux.service")

SECTIONS = ("server", "limits", "cors", "auth")  # that are named where they have changed
MAX_NAMES = 20  # that a line of the log holds

# Makes what is new of settings that are valid, and returns what puts it in place. The first may raise ConfigError, and
# is not called in the loop's thread; the second must not raise, and is called in the loop, together with all others.
Part: TypeAlias = "Callable[[Settings], Callable[[], None]]"


@dataclass(frozen=True)
class Prepared:
    """New settings, and the parts that are made of them."""

    settings: Settings
    commits: Sequence[Callable[[], None]]


def replica_of(store: StoreConfig | Literal["memory"]) -> Replica | None:
    """The process among those that share the store; None where it keeps what it has to itself."""
    if isinstance(store, str):
        return None
    from .store.redis import RedisStore  # noqa: PLC0415 - an extra, which who does without it need not have

    redis = RedisStore(store.url.get_secret_value(), prefix=store.prefix, shards=store.shards, timeout=store.timeout)
    return Replica(redis, lease=store.lease, keep=store.keep)


class Service:
    """The settings that hold now. Whoever needs one of them at a request asks here, and keeps nothing.

    `faults`: what was wrong with the file when it was read for the last time.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.replica = replica_of(settings.config.store)
        self.hub = Hub(settings.limits, settings.catalog, replica=self.replica)
        self.faults: tuple[str, ...] = ()
        self._parts: list[Part] = []
        self._tell_pending()

    @property
    def catalog(self) -> Catalog:
        return self.settings.catalog

    def add(self, part: Part) -> None:
        """Let a part follow a change of the settings. Parts are asked in the order in which they were added."""
        self._parts.append(part)

    def prepare(self) -> Prepared:
        """Read the file again, and make what is new; nothing changes yet. Raises ConfigError."""
        settings = reload_settings(self.settings)
        return Prepared(settings, [part(settings) for part in self._parts])

    def apply(self, prepared: Prepared) -> None:
        """Serve what was prepared, all of it in one turn of the loop."""
        before = self.settings
        self.settings = settings = prepared.settings.holding(before.config)
        self.faults = ()
        for commit in prepared.commits:
            commit()
        self.hub.apply(settings.catalog, settings.limits)
        sections = [key for key in SECTIONS if getattr(before.config, key) != getattr(self.settings.config, key)]
        also = f"; {', '.join(sections)} changed" if sections else ""
        log.info("%s applied: %s%s", settings.file, _difference(before.catalog, settings.catalog), also)
        self._tell_pending()
        for plugin in settings.plugins.broken:
            if plugin not in before.plugins.found:
                log.error("plugin %s: %s", plugin.title, plugin.error)
        for enabled in settings.catalog.sources.values():
            if enabled.unavailable and before.catalog.sources.get(enabled.name) is not enabled:
                log.warning("source %s is unavailable: %s", enabled.name, enabled.unavailable)

    def _tell_pending(self) -> None:
        if self.settings.pending:
            pending = ", ".join(self.settings.pending)
            log.warning("%s: %s: not applied before the service is started again", self.settings.file, pending)

    def reject(self, faults: Iterable[str]) -> None:
        """Go on as before, and say why."""
        self.faults = tuple(faults)
        log.error("%s not applied, all goes on as before", self.settings.file)
        for fault in self.faults:
            log.error("%s", fault)


def _difference(before: Catalog, after: Catalog) -> str:
    sources = _changes(
        added=[name for name in after.sources if name not in before.sources],
        removed=[name for name in before.sources if name not in after.sources],
        changed=[name for name, old in before.sources.items() if after.sources.get(name, old) is not old],
    )
    streams = _changes(
        added=[name for name in after.streams if name not in before.streams],
        removed=[name for name in before.streams if name not in after.streams],
        changed=[name for name, old in before.streams.items() if list(after.streams.get(name, old)) != list(old)],
    )
    untouched = sum(before.sources.get(name) is enabled for name, enabled in after.sources.items())
    said = [*sources, f"{untouched} untouched"]
    return ", ".join(said) + (f"; streams: {', '.join(streams)}" if streams else "")


def _changes(**names: Sequence[str]) -> list[str]:
    return [f"{what} {_some(those)}" for what, those in names.items() if those]


def _some(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return " ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
