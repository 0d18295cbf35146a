"""Find, check, name and list plugins. One that is broken is listed with its error and stops nothing else."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from . import hookspecs
from .errors import suggestion
from .source import Source

log = logging.getLogger("eventmux.plugins")

GROUP = "eventmux"
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True)
class Plugin:
    """A plugin and what became of it.

    `state`: `loaded`; `partial` if something that it offers cannot be used; `failed`; `disabled`. `error` says why.
    `distribution` is None for a single file.
    """

    name: str
    distribution: str | None
    version: str | None
    target: str
    state: str = "loaded"
    error: str | None = None
    sources: tuple[Source[...], ...] = ()

    @property
    def title(self) -> str:
        """What an error calls it."""
        return f"{self.name} ({self.distribution} {self.version})" if self.distribution else f"{self.name} ({self.target})"


@dataclass(frozen=True)
class Plugins:
    """All plugins found. `offers`: a source's name -> the source and the plugin that offers it; contested names are
    in `contested` instead, with the titles of those who offer them.
    """

    found: tuple[Plugin, ...]
    offers: Mapping[str, tuple[Source[...], Plugin]]
    contested: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.found if plugin.error]


class _ModuleSources:
    """Registers the sources at the top level of a module through the hook that computed ones use."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    @hookimpl
    def register_sources(self) -> list[Source[...]]:
        own = self._module.__name__
        return [
            value
            for value in vars(self._module).values()
            # A source imported from elsewhere is its own plugin's to offer; one of a submodule is this plugin's.
            if isinstance(value, Source) and f"{value.function.__module__}.".startswith(f"{own}.")
        ]


def load_plugins(*, disabled: Iterable[str] = (), directory: Path | None = None) -> Plugins:
    """Import every plugin of the entry-point group and of `directory`, but those in `disabled`.

    A plugin is disabled by its name, or as `distribution:name` where two have one name. Never raises for what a plugin
    does: that is in the plugin's `error`.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    off = frozenset(disabled)
    found = [
        plugin if plugin.state == "disabled" else _load(manager, plugin, load)
        for plugin, load in _candidates(off, directory)
    ]
    for plugin in found:
        if plugin.error:
            log.error("plugin %s: %s", plugin.title, plugin.error)
    return _settle(found)


def _candidates(off: frozenset[str], directory: Path | None) -> Iterable[tuple[Plugin, Callable[[], Any]]]:
    seen: set[tuple[str, str, str]] = set()
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        for entry in distribution.entry_points.select(group=GROUP):
            if (name, entry.name, entry.value) in seen:
                continue  # one distribution on two places of the path
            seen.add((name, entry.name, entry.value))
            state = "disabled" if {entry.name, f"{name}:{entry.name}"} & off else "loaded"
            yield Plugin(entry.name, name, distribution.version, entry.value, state), entry.load
    for path in sorted(directory.glob("[!_.]*.py")) if directory else ():
        state = "disabled" if path.stem in off else "loaded"
        yield Plugin(path.stem, None, None, str(path), state), partial(_import_file, path)


def _import_file(path: Path) -> ModuleType:
    name = f"eventmux_local_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look a class's module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load(manager: pluggy.PluginManager, plugin: Plugin, load: Callable[[], Any]) -> Plugin:
    key = f"{plugin.distribution}:{plugin.name}"
    try:
        target = load()
        if isinstance(target, Source):
            return replace(plugin, sources=(target,))
        if isinstance(target, ModuleType):
            manager.register(_ModuleSources(target), f"{key}:module")
        manager.register(target, key)
        sources = _registered(manager, {key, f"{key}:module"})
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin does at import is its own failure
        log.debug("plugin %s", plugin.title, exc_info=error)
        return replace(plugin, state="failed", error=f"{type(error).__name__}: {error}")
    faults = _unknown_hooks(manager, key)
    if not sources and not faults:
        faults = ["it offers no source: decorate an async generator with @source at the top level of the module"]
    return replace(
        plugin, sources=sources, state="partial" if faults else "loaded", error="; ".join(faults) if faults else None
    )


def _registered(manager: pluggy.PluginManager, keys: set[str]) -> tuple[Source[...], ...]:
    """What this plugin alone registers: one that raises must not keep the others from being asked."""
    sources: list[Source[...]] = []
    for implementation in manager.hook.register_sources.get_hookimpls():
        if implementation.plugin_name not in keys:
            continue
        function: Callable[[], Iterable[object] | None] = implementation.function
        for source in function() or ():
            if not isinstance(source, Source):
                raise TypeError(f"register_sources gave {source!r}: give what @source returns")
            if all(source is not other for other in sources):
                sources.append(source)
    return tuple(sources)


def _unknown_hooks(manager: pluggy.PluginManager, key: str) -> list[str]:
    """What pluggy's check_pending finds, for one plugin and without raising: a misspelt hook is never called."""
    known = [name for name, hook in vars(manager.hook).items() if hook.has_spec()]
    return [
        f"no hook {name!r}{suggestion(name, known)}"
        for name, hook in vars(manager.hook).items()
        if not hook.has_spec()
        for implementation in hook.get_hookimpls()
        if implementation.plugin_name == key and not implementation.optionalhook
    ]


def _settle(found: list[Plugin]) -> Plugins:
    """Give each name to the one that offers it. A name that two offer is nobody's, and both say so."""
    offers: dict[str, list[tuple[Source[...], int]]] = defaultdict(list)
    for index, plugin in enumerate(found):
        for source in plugin.sources:
            offers[source.name].append((source, index))
    contested = {name: tuple(found[i].title for _, i in those) for name, those in offers.items() if len(those) > 1}
    for name, titles in contested.items():
        fault = f"source {name!r} is offered by {' and by '.join(titles)}: disable one of them under plugins.disabled"
        log.error("%s", fault)
        for index in {i for _, i in offers[name]}:
            error = "; ".join(filter(None, [found[index].error, fault]))
            found[index] = replace(found[index], state="partial", error=error)
    settled = {name: (those[0][0], found[those[0][1]]) for name, those in offers.items() if name not in contested}
    return Plugins(tuple(found), settled, contested)
