"""The schemas that operations of the OpenAPI document refer to: events, and models of parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import formats

if TYPE_CHECKING:
    from ..catalog import Catalog, EnabledSource

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
PROBLEM: Schema = {formats.JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
CONTROL_EVENTS: dict[str, Schema] = {
    "stream.gap": {
        "reason": {"enum": ["evicted", "restarted", "unknown", "lagged"]},
        "missed": {"type": ["integer", "null"], "minimum": 0},
    },
    "stream.error": {"message": TEXT, "incident": TEXT, "retryable": {"type": "boolean"}},
    "stream.end": {"reason": {"enum": ["completed", "failed", "limit", "expired", "lost", "removed"]}},
}


def components(catalog: Catalog, others: Iterable[EnabledSource] = ()) -> dict[str, Schema]:
    """`others`: sources of which it is only said what they take."""
    found: dict[str, Schema] = {
        "Problem": {"type": "object", "required": ["detail"], "properties": {"detail": {"type": ["string", "array"]}}}
    }
    for name, own in CONTROL_EVENTS.items():
        properties = {"source": TEXT, **own}
        found[name] = {"type": "object", "required": list(properties), "properties": properties}
    for enabled in [*catalog.sources.values(), *others]:
        found |= _definitions(enabled.name, enabled.parameters_schema(ref(enabled.name)))
        if enabled.source.takes:
            schema = enabled.source.takes.model_json_schema(ref_template=ref(f"{enabled.name}.takes"))
            found |= _definitions(f"{enabled.name}.takes", schema)
            found[f"{enabled.name}.takes"] = hoisted(schema)
    for enabled in catalog.sources.values():
        # As an event a model may look otherwise than as a parameter: a name space of its own.
        model = ref(f"{enabled.name}.model")
        for kind, event in enabled.source.events.items():
            schema = kind.model_json_schema(ref_template=model, mode="serialization")
            found |= _definitions(f"{enabled.name}.model", schema)
            found[_component(enabled.name, event)] = hoisted(schema)
    return found


def _definitions(source: str, schema: Mapping[str, Any]) -> dict[str, Schema]:
    return {f"{source}.{name}": definition for name, definition in schema.get("$defs", {}).items()}


def hoisted(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key != "$defs"}


def ref(source: str) -> str:
    return f"#/components/schemas/{source}.{{model}}"


def _component(source: str, event: str) -> str:
    """A component's name has letters, digits, dot, dash and underscore only."""
    return f"{source}.event.{re.sub(r'[^A-Za-z0-9._-]', lambda odd: f'_{ord(odd[0]):x}_', event)}"


def event_ref(source: str, event: str) -> Schema:
    return {"$ref": f"#/components/schemas/{_component(source, event)}"}
