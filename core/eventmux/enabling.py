"""What `sources:` and `streams:` ask for, held against what the plugins offer. Reads values, not files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from .catalog import Catalog, EnabledSource, missing_source
from .errors import suggestion
from .history import Bounds
from .operators import Step
from .source import Source

if TYPE_CHECKING:
    from .document import Document, Loc, Problem
    from .plugins import Plugins

BUNDLED = "eventmux"  # the distribution whose sources are enabled where nothing is said


class Enabling:
    """Makes the catalog, and collects every problem on the way instead of stopping at the first.

    The document may be faulty elsewhere: what has not the right type is passed over here, and reported by the schema.
    """

    def __init__(self, document: Document, plugins: Plugins) -> None:
        self.problems: list[Problem] = []
        self._document = document
        self._plugins = plugins

    def catalog(self) -> Catalog:
        value = self._document.value
        sections = value if isinstance(value, dict) else {}
        names = sections.get("sources")
        if names is None:
            names = {name: {} for name, (_, plugin) in self._plugins.offers.items() if plugin.distribution == BUNDLED}
        sources = {
            name: enabled
            for name, section in (names.items() if isinstance(names, dict) else ())
            if (enabled := self._enable(name, section if isinstance(section, dict) else {}))
        }
        streams = sections.get("streams")
        return Catalog(sources, dict(self._streams(streams if isinstance(streams, dict) else {}, set(names))))

    def _problem(self, loc: Loc, message: str, *, key: bool = False) -> None:
        self.problems.append(self._document.problem(loc, message, key=key))

    def _enable(self, name: str, section: Mapping[str, Any]) -> EnabledSource | None:
        used = section.get("use") or name
        if used not in self._plugins.offers:
            return self._missing(name, used)
        source, plugin = self._plugins.offers[used]
        fixed = self._parameters(name, source, section, "params")
        defaults = self._parameters(name, source, section, "defaults")
        for both in fixed.keys() & defaults.keys():
            self._problem(("sources", name, "defaults", both), "is fixed under params: leave one out", key=True)
        shared, history = section.get("shared"), section.get("history")
        return EnabledSource(
            name=name,
            source=source,
            plugin=plugin.name,
            fixed=fixed,
            defaults=defaults,
            shared=source.shared if shared is None else bool(shared),
            bounds=Bounds(**history) if isinstance(history, dict) and history.keys() <= {"events", "bytes"} else Bounds(),
            pipe=tuple(self._pipe(name, source, section.get("pipe"))),
            unavailable=self._unset(name) or _unconfigured(name, source, fixed),
        )

    def _missing(self, name: str, used: str) -> EnabledSource | None:
        """A source that nobody offers is an error, unless a plugin that could offer it is broken or disabled."""
        plugins = self._plugins
        if used in plugins.contested:
            reason = f"it is offered by {' and by '.join(plugins.contested[used])}: disable one under plugins.disabled"
        elif any(plugin.name == used and plugin.state == "disabled" for plugin in plugins.found):
            reason = f"plugin {used} is disabled under plugins.disabled"
        elif failed := [plugin for plugin in plugins.found if plugin.state == "failed"]:
            faults = "; ".join(f"{plugin.title}: {plugin.error}" for plugin in failed)
            reason = f"no plugin that could be loaded offers {used!r}; failed are {faults}"
        else:
            loc: Loc = ("sources", name, "use") if used != name else ("sources", name)
            text = f"no source {used!r}{suggestion(used, plugins.offers)}"
            self._problem(loc, text, key=used == name)
            return None
        return EnabledSource(name=name, source=missing_source(name), plugin="", unavailable=reason)

    def _parameters(self, name: str, source: Source[...], section: Mapping[str, Any], key: str) -> dict[str, Any]:
        given = section.get(key)
        if not isinstance(given, dict):
            return {}
        at: Loc = ("sources", name, key)
        known = frozenset(source.parameters.model_fields)
        settable = known - source.config_only if key == "defaults" else known
        for parameter in given:
            if parameter not in known:
                self._problem((*at, parameter), f"no such parameter{suggestion(parameter, settable)}", key=True)
            elif parameter not in settable:
                self._problem((*at, parameter), "can be set under params only", key=True)
        self._check_values(source, given, at)
        return {parameter: value for parameter, value in given.items() if parameter in settable}

    def _check_values(self, source: Source[...], given: Mapping[str, Any], at: Loc) -> None:
        """Each value by itself: what clients will give beside it is not known yet."""
        try:
            source.parameters.model_validate({k: v for k, v in given.items() if k in source.parameters.model_fields})
        except ValidationError as invalid:
            for fault in invalid.errors(include_url=False, include_context=False, include_input=False):
                loc = (*at, *fault["loc"])
                if fault["loc"] and fault["loc"][0] in given and not self._is_unset(loc):
                    self._problem(loc, fault["msg"])

    def _pipe(self, name: str, source: Source[...], steps: Any) -> Iterator[Step]:
        known = frozenset(source.events.values())
        for index, value in enumerate(steps if isinstance(steps, list) else ()):
            try:
                step = Step.model_validate(value)
            except ValidationError:
                continue  # the schema says it
            for event in () if source.relays else step.only or ():
                if event not in known:
                    self._problem(("sources", name, "pipe", index, "only"), f"no event {event!r}{suggestion(event, known)}")
            yield step

    def _streams(self, streams: Mapping[str, Any], sources: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        for name, members in streams.items():
            if name in sources:
                self._problem(("streams", name), "is the name of a source too: give the stream another one", key=True)
            names = [member for member in members if isinstance(member, str)] if isinstance(members, list) else []
            for index, member in enumerate(names):
                if member not in sources:
                    text = f"no source {member!r} is enabled{suggestion(member, sources)}"
                    self._problem(("streams", name, index), text)
                elif member in names[:index]:
                    self._problem(("streams", name, index), f"source {member!r} is named twice")
            yield name, tuple(names)

    def _is_unset(self, loc: Loc) -> bool:
        return any(loc[: len(unset)] == unset for unset in self._document.unset)

    def _unset(self, name: str) -> str | None:
        for loc, variables in self._document.unset.items():
            if loc[:2] == ("sources", name) and len(loc) > 2:
                place = self._document.problem(loc, "")
                names = " and ".join(variables)
                return f"the environment variable {names} is not set ({self._document.file}:{place.line}:{place.column})"
        return None


def _unconfigured(name: str, source: Source[...], fixed: Mapping[str, Any]) -> str | None:
    missing = [
        parameter
        for parameter in source.config_only
        if source.parameters.model_fields[parameter].is_required() and parameter not in fixed
    ]
    if missing:
        return f"set {' and '.join(f'sources.{name}.params.{parameter}' for parameter in sorted(missing))} in plugins.yaml"
    return None
