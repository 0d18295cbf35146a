"""Find, check, name and list plugins. One that is broken is listed with its error and stops nothing else."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import invalidate_caches, metadata
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal, cast

from .errors import DefinitionError
from .registration import GROUP, registered, sources_in
from .source import Source

log = logging.getLogger("eventmux.plugins")

MAX_FILE = 4 << 20  # bytes of a file that tell one content of it from another
MAX_ERROR = 300  # letters of an exception that are shown; it may hold a whole page
_LOCAL = "eventmux_local_"  # before the name of a single file, so that clock.py hides no module of that name
_DISABLE = "name the plugin under plugins.disabled"


@dataclass(frozen=True)
class Plugin:
    """A plugin and what became of it.

    `state`: `loaded`; `partial` if something that it offers cannot be used; `failed` if nothing can; `disabled`.
    `error` says why, in one line. `distribution` is None for a single file, and `target` then its path;
    `digest` tells one content of it from another. `served`: the plugin as it was before a change by which it failed.
    `authenticate`: its hook of this name, if it has one; it returns a list of what each implementation gives.
    """

    name: str
    distribution: str | None
    version: str | None
    target: str
    state: Literal["loaded", "partial", "failed", "disabled"] = "loaded"
    error: str | None = None
    sources: tuple[Source[...], ...] = ()
    digest: str | None = None
    served: Plugin | None = field(default=None, repr=False)
    authenticate: Callable[..., Any] | None = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> str:
        """What `plugins.disabled` calls it where its name alone is not enough."""
        return f"{self.distribution}:{self.name}" if self.distribution else Path(self.target).name

    @property
    def module(self) -> str:
        """Where it is imported."""
        return self.target.partition(":")[0] if self.distribution else _LOCAL + self.name

    @property
    def package(self) -> str:
        """What the names of its own modules begin with."""
        return self.module.partition(".")[0]

    @property
    def title(self) -> str:
        """What an error calls it."""
        return (
            f"{self.name} ({self.distribution} {self.version})" if self.distribution else f"{self.name} ({self.target})"
        )


@dataclass(frozen=True)
class Plugins:
    """All plugins found. `offers`: a source's name -> the source and the plugin that offers it; contested names are
    in `contested` instead, with words that name those who offer them. `loaded`: the same plugins without that.
    """

    found: tuple[Plugin, ...]
    offers: Mapping[str, tuple[Source[...], Plugin]]
    contested: Mapping[str, str] = field(default_factory=dict)
    loaded: tuple[Plugin, ...] = ()

    @property
    def guards(self) -> list[Plugin]:
        """Those that say who asks."""
        return [plugin for plugin in self.found if plugin.authenticate]

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.found if plugin.error]

    def owner(self, module: str) -> Plugin | None:
        """The plugin whose code is in a module: the one that is defined there, or else the only one of that package."""
        found = [plugin for plugin in self.found if _is_within(module, plugin.module)]
        if found:
            return max(found, key=lambda plugin: len(plugin.module))
        found = [plugin for plugin in self.found if _is_within(module, plugin.package)]
        return found[0] if len(found) == 1 else None


def load_plugins(
    *, disabled: Iterable[str] = (), directory: Path | None = None, before: Plugins | None = None
) -> Plugins:
    """Import every plugin of the entry-point group and every file of `directory`, but those in `disabled`.

    A plugin is disabled by its name, or by its key where two have one name. Never raises for what a plugin does: that
    is in the plugin's `error`. Of those `before`, a plugin that was loaded is kept with its sources, unless its file
    holds something else now.
    """
    off = frozenset(disabled)
    invalidate_caches()  # what has been installed since the last time is to be found
    known = {(plugin.key, plugin.target): plugin for plugin in (before.loaded if before else ())}
    candidates = [*_installed(), *(_files(directory) if directory else ())]
    return _settle(
        [
            replace(plugin, state="disabled")
            if {plugin.name, plugin.key} & off
            else _kept_or_loaded(known.get((plugin.key, plugin.target)), plugin, load)
            for plugin, load in candidates
        ]
    )


def _kept_or_loaded(known: Plugin | None, plugin: Plugin, load: Callable[[], Any]) -> Plugin:
    known = (known.served or known) if known else None
    if known is None or not known.sources:
        return _load(plugin, load)
    if known.digest == plugin.digest:
        return known
    changed = _load(plugin, load)
    if changed.state != "failed":
        return changed
    error = f"{changed.error}; until then its sources are served as they were before its change"
    return replace(known, state="partial", error=error, served=known)


def _installed() -> list[tuple[Plugin, Callable[[], Any]]]:
    """By distribution and name. Of a distribution that is on the path twice, the standard library gives the first."""
    found = []
    for entry in metadata.entry_points(group=GROUP):
        name, version = (entry.dist.name, entry.dist.version) if entry.dist else (None, None)
        found.append((Plugin(entry.name, name or "unnamed", version or "?", entry.value), entry.load))
    return sorted(found, key=lambda one: one[0].key)


def _files(directory: Path) -> Iterator[tuple[Plugin, Callable[[], Any]]]:
    for path in plugin_files(directory):
        # Before it is imported: if it changes in between, it counts as changed the next time.
        yield Plugin(path.stem, None, None, str(path), digest=digest(path)), partial(_import_file, path)


def plugin_files(directory: Path) -> list[Path]:
    try:  # not by glob: it takes three times as long where there are thousands of others
        names = os.listdir(directory)  # noqa: PTH208 - of texts
    except OSError:
        return []
    return sorted(directory / name for name in names if name.endswith(".py") and name[0] not in "_.")


def digest(path: Path) -> str:
    """Of a file's content, of which so much counts as is ever read, and its size; of one that cannot be read, of the
    reason. A pipe or a device is not read: it would be empty for who reads it next, or hold us for as long as it likes.
    """
    try:
        mode, size = (found := path.stat()).st_mode, found.st_size
        content = b"%o %d " % (stat.S_IFMT(mode), size if stat.S_ISREG(mode) else 0)
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                content += file.read(MAX_FILE)
    except OSError as error:
        content = str(error.errno).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class _FileLoader(SourceFileLoader):
    """Without the bytecode that Python keeps: it passes for that of a file which was changed within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.get_filename(fullname)), self.path)
        return code


def _import_file(path: Path) -> ModuleType:
    name = _LOCAL + path.stem
    before = sys.modules.get(name)
    loader = _FileLoader(name, str(path))
    module = module_from_spec(cast("ModuleSpec", spec_from_loader(name, loader)))  # this loader always has one
    sys.modules[name] = module  # dataclasses and pydantic look a class's module up here
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before:
            sys.modules[name] = before
        raise
    return module


def _load(plugin: Plugin, load: Callable[[], Any]) -> Plugin:
    try:
        target = load()
        sources, authenticate, faults = ((target,), None, []) if isinstance(target, Source) else registered(target)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        log.debug("plugin %s cannot be loaded", plugin.title, exc_info=error)
        return replace(plugin, state="failed", error=_explained(plugin, error))
    if not sources and not authenticate and not faults:
        faults = [_nothing_offered(target)]
    state: Literal["loaded", "partial", "failed"] = (
        "loaded" if not faults else "partial" if sources or authenticate else "failed"
    )
    return replace(plugin, sources=sources, authenticate=authenticate, state=state, error="; ".join(faults) or None)


def _nothing_offered(target: Any) -> str:
    if isinstance(target, ModuleType) and (foreign := sources_in(target)):
        return (
            f"it offers no source of its own: {foreign[0].name!r} is defined in {foreign[0].function.__module__}; "
            "point the entry point there, or return it from register_sources"
        )
    return "it offers no source: decorate an async generator at the top level of the module with @source"


def _explained(plugin: Plugin, error: BaseException) -> str:
    module = plugin.target.partition(":")[0]
    if isinstance(error, DefinitionError):
        return f"{_line(error)}{_place(plugin, error)}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        if f"{module}.".startswith(f"{error.name}."):
            return f"its module {module!r} is not there: install {plugin.distribution} again, or {_DISABLE}"
        return f"it needs the module {error.name!r}{_place(plugin, error)}: install that, or {_DISABLE}"
    return f"{type(error).__name__}: {_line(error)}{_place(plugin, error)}: mend it, or {_DISABLE}"


def _is_within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def _line(error: BaseException) -> str:
    """What the error says, in one line of bounded length."""
    try:
        line = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - its class is the plugin's
        return "an error that has no text"
    return line if len(line) <= MAX_ERROR else f"{line[:MAX_ERROR]} ..."


def _place(plugin: Plugin, error: BaseException) -> str:
    """Where the plugin's own code raised it, so that nobody needs the traceback to look there."""
    place, trace = "", error.__traceback__
    while trace:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        if _is_within(module, plugin.package):
            place = f" ({module.removeprefix(_LOCAL)}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _settle(found: list[Plugin]) -> Plugins:
    """Give each name to the one that offers it. A name that two offer is nobody's, and both say so."""
    loaded = tuple(found)
    offers: dict[str, list[tuple[Source[...], int]]] = defaultdict(list)
    for index, plugin in enumerate(found):
        for source in plugin.sources:
            offers[source.name].append((source, index))
    contested = {}
    for name, those in offers.items():
        if len(those) > 1:
            rivals = list(dict.fromkeys(index for _, index in those))
            contested[name] = _contest([found[index] for index in rivals])
            for index in rivals:
                error = "; ".join(filter(None, [found[index].error, f"source {name!r} is {contested[name]}"]))
                found[index] = replace(found[index], state="partial", error=error)
    settled = {name: (those[0][0], found[those[0][1]]) for name, those in offers.items() if name not in contested}
    return Plugins(tuple(found), settled, contested, loaded)


def _contest(rivals: list[Plugin]) -> str:
    titles = " and by ".join(plugin.title for plugin in rivals)
    if len(rivals) == 1:
        return f"offered twice by {titles}: give one another name, @source(name=...)"
    return f"offered by {titles}: name {' or '.join(repr(plugin.key) for plugin in rivals)} under plugins.disabled"
