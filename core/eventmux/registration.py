"""What a plugin registers through its hooks, and what is wrong with them. Where plugins come from is not said here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import pluggy

from . import hookspecs
from .errors import suggestion
from .source import Source

GROUP = "eventmux"

hookimpl = pluggy.HookimplMarker(GROUP)


class _ModuleSources:
    """Registers the sources at the top level of a module through the hook that computed ones use."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    @hookimpl
    def register_sources(self) -> list[Source[...]]:
        # A source imported from elsewhere is its own plugin's to offer; one of a submodule is this plugin's.
        own = f"{self._module.__name__}."
        return [value for value in sources_in(self._module) if f"{value.function.__module__}.".startswith(own)]


def sources_in(module: ModuleType) -> list[Source[...]]:
    return [value for value in vars(module).values() if isinstance(value, Source)]


def registered(target: Any) -> tuple[tuple[Source[...], ...], Callable[..., Any] | None, list[str]]:
    """The sources that a plugin registers, its way to authenticate, and what is wrong with its hooks.

    Each plugin has a manager of its own: where all share one, an implementation that raises ends the call for those
    after it, and a wrapper would see the sources of others.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(target)
    if isinstance(target, ModuleType):
        manager.register(_ModuleSources(target))  # the last one registered is the first one called
    sources: dict[int, Source[...]] = {}
    for given in manager.hook.register_sources():
        for source in _iterated(given):
            if not isinstance(source, Source):
                raise TypeError(f"register_sources gave {source!r:.80}: give what @source returns")
            sources[id(source)] = source
    authenticate = manager.hook.authenticate if manager.hook.authenticate.get_hookimpls() else None
    return tuple(sources.values()), authenticate, _hook_faults(manager, target)


def _iterated(given: Any) -> Iterable[Any]:
    if inspect.iscoroutine(given):
        given.close()  # else Python warns that it was never awaited
    if not isinstance(given, Iterable):
        raise TypeError(f"register_sources gave {given!r:.80}: write 'def', and return a list of sources or yield them")
    return given


def _hook_faults(manager: pluggy.PluginManager, target: Any) -> list[str]:
    """What pluggy's check_pending finds, without raising, and a hook that lacks its mark: neither is ever called."""
    known = [name for name, hook in vars(manager.hook).items() if hook.has_spec()]
    faults = [
        f"no hook {name!r}{suggestion(name, known)}"
        for name, hook in vars(manager.hook).items()
        if not hook.has_spec() and not all(one.optionalhook for one in hook.get_hookimpls())
    ]
    for name in known:
        function = getattr(target, name, None)
        if inspect.isroutine(function) and manager.parse_hookimpl_opts(target, name) is None:
            faults.append(f"{name} is not marked: put @hookimpl above it")
    return faults
