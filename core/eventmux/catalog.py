"""The enabled sources and the named streams: what `plugins.yaml` makes of what the plugins offer."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import InitErrorDetails, PydanticCustomError

from .access import Principal
from .errors import MAX_FAULTS, PluginError, UnavailableError, UnknownSourceError
from .event import Event
from .operators import Step
from .policy import Policy
from .source import Source

log = logging.getLogger("eventmux.catalog")

MAX_SOURCES = 32  # in one stream


@dataclass(frozen=True)
class EnabledSource:
    """A source under the name that clients use. `fixed` parameters are the operator's; `defaults` clients may change.

    `unavailable`: why it cannot run now and what to do, or None.
    """

    name: str
    source: Source[...]
    plugin: str
    fixed: Mapping[str, Any] = field(default_factory=dict, repr=False)  # secrets among it
    defaults: Mapping[str, Any] = field(default_factory=dict, repr=False)
    policy: Policy = field(default_factory=Policy)
    pipe: Sequence[Step] = ()
    unavailable: str | None = None

    @property
    def shared(self) -> bool:
        return self.policy.shared

    @cached_property
    def settable(self) -> frozenset[str]:
        """The parameters that a client may set."""
        return frozenset(self.source.parameters.model_fields) - self.source.config_only - frozenset(self.fixed)

    def validate(self, given: Mapping[str, Any]) -> BaseModel:
        """The parameters of a run, from what a client gave. Raises pydantic's ValidationError, or PluginError."""
        surplus = list(itertools.islice((name for name in given if name not in self.settable), MAX_FAULTS))
        if surplus:
            raise ValidationError.from_exception_data(
                self.name, [_surplus(self, name) for name in surplus], hide_input=True
            )
        return self._checked(self.source.parameters, {**self.defaults, **given, **self.fixed}, "its parameters")

    def message(self, given: Any) -> BaseModel:
        """What the source takes from outside, from what somebody has published. Raises as `validate` does."""
        assert self.source.takes is not None  # noqa: S101 - else there is no way to publish to it
        return self._checked(self.source.takes, given, "what was published")

    def _checked(self, model: type[BaseModel], value: Any, what: str) -> BaseModel:
        try:
            return model.model_validate(value)
        except ValidationError:
            raise
        except Exception as error:
            # pydantic turns a ValueError of a validator into its own; whatever else comes is the plugin's failure.
            incident = secrets.token_hex(4)
            log.exception(
                "source %s of plugin %s could not check %s, incident %s", self.name, self.plugin, what, incident
            )
            raise PluginError(f"source {self.name!r} could not check {what}: incident {incident}") from error

    def check_available(self) -> None:
        if self.unavailable:
            raise UnavailableError(f"source {self.name!r} is unavailable: {self.unavailable}")

    @cached_property
    def query_kinds(self) -> Mapping[str, str]:
        """How each parameter stands in a query: `text`, `list` (repeated) or `json`."""
        schema = self.source.parameters.model_json_schema()
        properties = schema.get("properties", {})
        return {name: _query_kind(properties[name], schema.get("$defs", {})) for name in properties}

    def parameters_schema(self, ref_template: str = "#/$defs/{model}") -> dict[str, Any]:
        """JSON Schema of what a client may set, with the defaults that hold here."""
        schema = self.source.parameters.model_json_schema(ref_template=ref_template)
        properties = {name: dict(schema["properties"][name]) for name in schema.get("properties", {})}
        schema["properties"] = {name: value for name, value in properties.items() if name in self.settable}
        for name in self.settable & self.defaults.keys():
            schema["properties"][name]["default"] = self.defaults[name]
        required = [name for name in schema.pop("required", []) if name in self.settable - self.defaults.keys()]
        if required:
            schema["required"] = required
        return schema


def _query_kind(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _query_kind(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    kinds = {_query_kind(option, definitions) for key in ("anyOf", "oneOf", "allOf") for option in schema.get(key, ())}
    if schema.get("type") == "array":
        items = schema.get("items", {})
        kinds.add("list" if _query_kind(items, definitions) == "text" else "json")
    elif schema.get("type") == "object":
        kinds.add("json")
    return "json" if "json" in kinds else "list" if "list" in kinds else "text"


def _surplus(source: EnabledSource, name: str) -> InitErrorDetails:
    if name in source.fixed:
        text = "Parameter {name} is fixed by plugins.yaml"
    elif name in source.source.config_only:
        text = "Parameter {name} can be set in plugins.yaml only"
    elif source.settable:
        text = "No such parameter: {source} takes " + ", ".join(sorted(source.settable))
    else:
        text = "No such parameter: {source} takes none"
    kind = PydanticCustomError("extra_forbidden", text, {"name": name, "source": source.name})
    return InitErrorDetails(type=kind, loc=(name,), input=None)


def missing_source(name: str) -> Source[...]:
    """What stands in the catalog for a source that no plugin offers; it is never run."""

    async def nothing() -> AsyncIterator[Event]:
        return
        yield

    return Source(
        name=name,
        function=nothing,
        description="",
        parameters=create_model("NoParameters"),
        events={},
        relays=True,
        context=None,
        config_only=frozenset(),
    )


@dataclass(frozen=True)
class Catalog:
    """Everything that a client can ask for, by name."""

    sources: Mapping[str, EnabledSource]
    streams: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def readable(self, principal: Principal) -> Catalog:
        """What of it the principal may read; of a stream, only as a whole."""
        sources = {name: enabled for name, enabled in self.sources.items() if principal.may_read(name)}
        streams = {name: members for name, members in self.streams.items() if sources.keys() >= set(members)}
        return Catalog(sources, streams)

    def source(self, name: str) -> EnabledSource:
        """Raises UnknownSourceError, with the nearest name."""
        try:
            return self.sources[name]
        except KeyError:
            raise UnknownSourceError(name, self.sources, is_stream=name in self.streams) from None

    def keeping(self, before: Catalog) -> Catalog:
        """The same, with the sources of `before` where they are equal: what has not changed is the same object."""
        kept = {name: old for name, old in before.sources.items() if self.sources.get(name) == old}
        return Catalog({name: kept.get(name, enabled) for name, enabled in self.sources.items()}, self.streams)
