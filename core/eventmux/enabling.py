"""What `sources` and `streams` ask for, held against what the plugins offer. Reads values, not files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from .catalog import Catalog, EnabledSource, missing_source
from .config import EXPECTED
from .errors import suggestion
from .policy import Bounds, Policy, Restart

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from .config import Config, SourceConfig
    from .document import Document, Loc, Problem
    from .plugins import Plugin, Plugins
    from .source import Source


class Enabling:
    """Finds every problem instead of stopping at the first; makes the catalog when there is none.

    The problems are looked for in the document, which may be faulty elsewhere: what has not the right type is passed
    over here, and reported by who knows the types. The catalog is made of values that have theirs.
    """

    def __init__(self, document: Document, plugins: Plugins) -> None:
        self._document = document
        self._plugins = plugins
        value = _mapping(document.value)
        self._sections = _mapping(value.get("sources"))
        self._selections = _mapping(value.get("streams"))

    def problems(self) -> Iterator[Problem]:
        for name, section in self._sections.items():
            yield from self._source_problems(name, _mapping(section))
        for name, members in self._selections.items():
            if name in self._sections:
                text = "is the name of a source, too: give the stream another one"
                yield self._document.problem(("streams", name), text, key=True)
            yield from self._stream_problems(("streams", name), members if isinstance(members, list) else [])

    def catalog(self, config: Config) -> Catalog:
        return Catalog({name: self._enabled(name, section) for name, section in config.sources.items()}, config.streams)

    def _enabled(self, name: str, section: SourceConfig) -> EnabledSource:
        used = section.use or name
        unset = self._unset(name)
        if used not in self._plugins.offers:
            reason = unset or self._why_missing(used)
            return EnabledSource(name=name, source=missing_source(name), plugin="", unavailable=reason)
        source, plugin = self._plugins.offers[used]
        return EnabledSource(
            name=name,
            source=source,
            plugin=plugin.name,
            fixed=section.params,
            defaults=section.defaults,
            policy=_policy(source.policy, section),
            pipe=section.pipe,
            unavailable=unset or self._unconfigured(name, source, section.params),
        )

    def _source_problems(self, name: str, section: Mapping[str, Any]) -> Iterator[Problem]:
        at = ("sources", name)
        use = section.get("use")
        if not isinstance(use, str | None):
            return
        used = use or name
        if used in self._plugins.offers:
            source, plugin = self._plugins.offers[used]
            params, defaults = _mapping(section.get("params")), _mapping(section.get("defaults"))
            yield from self._parameter_problems((*at, "params"), source, plugin, params)
            yield from self._parameter_problems((*at, "defaults"), source, plugin, defaults)
            for both in params.keys() & defaults.keys():
                yield self._document.problem((*at, "defaults", both), "is fixed under params: leave one out", key=True)
            if source.takes and section.get("shared") is False:
                text = f"source {used!r} takes events from outside, which are for all: leave it shared"
                yield self._document.problem((*at, "shared"), text)
            yield from self._pipe_problems((*at, "pipe"), source, section.get("pipe"))
        elif not self._unset(name) and not self._why_missing(used):
            disabled = [plugin.name for plugin in self._plugins.found if plugin.state == "disabled"]
            hint = f" (plugins that are disabled: {', '.join(disabled)})" if disabled else ""
            text = f"no source {used!r}{hint}{suggestion(used, self._plugins.offers)}"
            yield self._document.problem((*at, "use") if used == use else at, text, key=used != use)

    def _why_missing(self, used: str) -> str | None:
        """Why nobody offers it, if that is not this file's fault: a plugin that could is broken or disabled."""
        if used in self._plugins.contested:
            return f"it is {self._plugins.contested[used]}"
        for plugin in self._plugins.found:
            if plugin.name == used and plugin.state == "disabled":
                return f"plugin {plugin.title} is disabled under plugins.disabled"
            if plugin.name == used and plugin.error:
                return f"plugin {plugin.title} cannot be used; eventmux plugins says why"  # clients read this, too
        failed = [plugin.name for plugin in self._plugins.found if plugin.state == "failed"]
        if failed:
            near = suggestion(used, self._plugins.offers)
            return f"no plugin that could be loaded offers {used!r} (failed: {', '.join(failed)}){near}"
        return None

    def _parameter_problems(
        self, at: Loc, source: Source[...], plugin: Plugin, given: Mapping[str, Any]
    ) -> Iterator[Problem]:
        known = frozenset(source.parameters.model_fields)
        settable = known - source.config_only if at[-1] == "defaults" else known
        for parameter in given:
            if parameter not in known:
                text = f"no such parameter{suggestion(parameter, settable)}"
            elif parameter not in settable:
                text = "only plugins.yaml can set it: move it to params"
            else:
                continue
            yield self._document.problem((*at, parameter), text, key=True)
        if not given:
            return
        # Each value by itself: what clients will give beside it is not known yet.
        try:
            source.parameters.model_validate({name: value for name, value in given.items() if name in known})
        except ValidationError as invalid:
            for fault in invalid.errors(include_url=False, include_context=False):
                loc = (*at, *fault["loc"])
                if fault["loc"] and fault["loc"][0] in given and not self._is_unset(loc):
                    yield self._document.problem(loc, in_words(fault))
        except Exception as error:  # noqa: BLE001 - a validator is the plugin's code; its text may hold a value
            text = f"plugin {plugin.title} could not check this, it raised {type(error).__name__}: mend the plugin"
            yield self._document.problem(at, text)

    def _pipe_problems(self, at: Loc, source: Source[...], steps: Any) -> Iterator[Problem]:
        known = frozenset(source.events.values())
        for index, step in enumerate(steps if isinstance(steps, list) and not source.relays else ()):
            names = _mapping(step).get("only")
            for position, event in enumerate(names if isinstance(names, list) else ()):
                if isinstance(event, str) and event not in known:
                    text = f"no event {event!r}{suggestion(event, known)}"
                    yield self._document.problem((*at, index, "only", position), text)

    def _stream_problems(self, at: Loc, members: list[Any]) -> Iterator[Problem]:
        for index, member in enumerate(members):
            if not isinstance(member, str):
                continue
            if member not in self._sections:
                text = f"no source {member!r} is enabled{suggestion(member, self._sections)}"
                yield self._document.problem((*at, index), text)
            elif member in members[:index]:
                yield self._document.problem((*at, index), f"source {member!r} is named twice: leave one out")

    def _is_unset(self, loc: Loc) -> bool:
        return any(loc[: len(unset)] == unset for unset in self._document.unset)

    def _unset(self, name: str) -> str | None:
        """Why this source waits for the environment, with the place of each variable."""
        waiting = []
        for loc, variables in self._document.unset.items():
            if loc[:2] == ("sources", name):
                place = self._document.problem(loc, "")
                where = f"({self._document.file}:{place.line}:{place.column})"
                waiting += [f"the environment variable {variable} is not set {where}" for variable in variables]
        return "; ".join(waiting) or None

    def _unconfigured(self, name: str, source: Source[...], params: Mapping[str, Any]) -> str | None:
        fields = source.parameters.model_fields
        missing = sorted(p for p in source.config_only if fields[p].is_required() and p not in params)
        places = " and ".join(f"sources.{name}.params.{parameter}" for parameter in missing)
        return f"set {places} in {self._document.file}" if missing else None


def in_words(fault: ErrorDetails) -> str:
    """The message of pydantic, or ours where pydantic speaks of Python."""
    if fault["input"] is None and fault["type"] != "missing":
        return "is empty: give it a value, or leave the key out"
    if fault["type"] in {"dict_type", "model_type", "model_attributes_type", "dataclass_type"}:
        return "a mapping is expected: {key: value}"
    if fault["type"] == "list_type":
        return "a list is expected: [a, b]"
    if fault["type"] == "string_pattern_mismatch":
        pattern = fault["msg"].partition("'")[2].removesuffix("'")  # the context is left out, for it may hold values
        return EXPECTED.get(pattern, fault["msg"])
    return fault["msg"].removeprefix("Value error, ")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _policy(author: Policy, section: SourceConfig) -> Policy:
    """The author's proposal, and over it what the operator has said."""
    said = section.model_dump(
        include={"shared", "linger", "overflow", "max_runs"}, exclude_unset=True, exclude_none=True
    )
    history = Bounds(**{**asdict(author.history), **section.history.model_dump(exclude_unset=True)})
    restart = Restart(**{**asdict(author.restart), **section.restart.model_dump(exclude_unset=True)})
    return replace(author, history=history, restart=restart, **said)
