"""The operations of the OpenAPI document: every source's parameters, and as `itemSchema` its events (OpenAPI 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from . import formats
from .components import CONTROL_EVENTS, PROBLEM, TEXT, Schema, event_ref, hoisted, ref
from .parameters import Words

if TYPE_CHECKING:
    from ..catalog import Catalog, EnabledSource


def source_operation(enabled: EnabledSource, method: str) -> Schema:
    body = hoisted(enabled.parameters_schema(ref(enabled.name)))
    parameters = _query_parameters(enabled) if method == "GET" else []
    return _operation(
        enabled.source.description.partition("\n")[0] or enabled.name,
        enabled.source.description,
        parameters,
        body if method == "POST" else None,
        [enabled],
        tag="sources",
    )


def publish_operation(enabled: EnabledSource) -> Schema:
    return {
        "summary": f"Publish to {enabled.name}",
        "description": "The parameters in the query say which run it is for, as they do for its readers.",
        "tags": ["sources"],
        "parameters": _query_parameters(enabled),
        "requestBody": {
            "required": True,
            "content": {formats.JSON: {"schema": {"$ref": f"#/components/schemas/{enabled.name}.takes"}}},
        },
        "responses": {
            "202": {"description": "It is on its way to the source"},
            **_problems(),
            "503": {"description": "The source is unavailable, or does not keep up", "content": PROBLEM},
        },
    }


def stream_operation(name: str, members: Sequence[EnabledSource], method: str) -> Schema:
    text = f"The stream {name}: {', '.join(member.name for member in members)} as one."
    parameters = [p for member in members for p in _query_parameters(member, prefix=f"{member.name}.")]
    body = _sources_body(members)
    return _operation(
        text, text, parameters if method == "GET" else [], body if method == "POST" else None, members, tag="streams"
    )


def merged_operation(catalog: Catalog, method: str, refusals: Schema | None = None) -> Schema:
    """`refusals`: responses that it has beside its own."""
    members = list(catalog.sources.values())
    sources = {
        "name": "sources",
        "in": "query",
        "required": True,
        "description": "The sources to merge, separated by commas.",
        "style": "form",
        "explode": False,
        "schema": {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"enum": sorted(catalog.sources)}},
    }
    prefixed = [
        {**parameter, "required": False}
        for member in members
        for parameter in _query_parameters(member, prefix=f"{member.name}.")
    ]
    operation = _operation(
        "Any selection of sources, merged",
        "A parameter without a prefix goes to every selected source that has it: `message=hi` is `echo.message=hi` and "
        "`reverse-echo.message=hi`. One with a prefix wins.",
        [sources, *prefixed] if method == "GET" else [],
        _sources_body(members) if method == "POST" else None,
        members,
        tag="streams",
    )
    return {**operation, "responses": {**(refusals or {}), **operation["responses"]}}


def _operation(
    summary: str,
    description: str,
    parameters: list[Schema],
    body: Schema | None,
    sources: Sequence[EnabledSource],
    *,
    tag: str,
) -> Schema:
    operation: Schema = {
        "summary": summary,
        "description": description,
        "tags": [tag],
        "parameters": [*parameters, *_word_parameters()],
        "responses": _responses(sources),
    }
    if body is not None:
        operation["requestBody"] = {"content": {formats.JSON: {"schema": body}}}
    return operation


def _responses(sources: Sequence[EnabledSource]) -> Schema:
    events = [(s.name, name, s.source.relays) for s in sources for name in s.source.events.values()]
    items = [_sse_item([name, f"{source}/{name}"], event_ref(source, name)) for source, name, _ in events]
    lines = [_line_item([name, f"{source}/{name}"], event_ref(source, name)) for source, name, _ in events]
    if any(source.source.relays for source in sources):
        items.append({"properties": {"event": TEXT, "data": TEXT}})
        lines.append({"properties": {"event": TEXT, "data": TEXT}})
    items += [_sse_item([name], {"$ref": f"#/components/schemas/{name}"}) for name in CONTROL_EVENTS]
    lines += [_line_item([name], {"$ref": f"#/components/schemas/{name}"}) for name in CONTROL_EVENTS]
    # anyOf: sources that have one event name in common may both describe an event.
    return {
        "200": {
            "description": "The stream. `Accept` chooses between SSE, JSON lines and, with a bound, a JSON array.",
            "content": {
                formats.SSE: {"itemSchema": {"type": "object", "anyOf": items}},
                formats.NDJSON: {"itemSchema": {"type": "object", "anyOf": lines}},
                formats.JSON: {"schema": {"type": "array", "items": {"type": "object", "anyOf": lines}}},
            },
        },
        "204": {"description": "Every source of the stream has ended for this cursor: do not come back."},
        "404": {"description": "No such source", "content": PROBLEM},
        **_problems(),
        "503": {"description": "A source is unavailable, or, for who is no EventSource, no room", "content": PROBLEM},
    }


def _problems() -> Schema:
    """What every route answers that takes parameters and a body."""
    not_taken = "No HTTP, or a host that is not trusted"
    return {
        "400": {"description": not_taken, "content": {"text/plain": {"schema": TEXT}}},
        "403": {"description": "A page of an origin that is not allowed", "content": PROBLEM},
        "413": {"description": "Body or query too large", "content": PROBLEM},
        "415": {"description": "Body not sent as JSON", "content": PROBLEM},
        "422": {"description": "Wrong parameters", "content": PROBLEM},
        "431": {"description": "URL and headers over 64 KiB", "content": {"text/plain": {"schema": TEXT}}},
    }


def _sse_item(names: list[str], data: Schema) -> Schema:
    """One dispatched event, in the shape of OpenAPI 3.2's section on Server-Sent Events. `names`: without `qualify`,
    and with it.
    """
    return {
        "required": ["event", "data"],
        "properties": {
            "id": TEXT,
            "event": {"enum": names},
            "data": {"type": "string", "contentMediaType": formats.JSON, "contentSchema": data},
        },
    }


def _line_item(names: list[str], data: Schema) -> Schema:
    return {
        "required": ["id", "source", "event", "data"],
        "properties": {"id": TEXT, "source": TEXT, "event": {"enum": names}, "data": data},
    }


def _query_parameters(enabled: EnabledSource, prefix: str = "") -> list[Schema]:
    schema = enabled.parameters_schema(ref(enabled.name))
    found: list[Schema] = []
    for name, details in schema["properties"].items():
        parameter: Schema = {"name": f"{prefix}{name}", "in": "query", "required": name in schema.get("required", ())}
        if description := details.get("description"):
            parameter["description"] = description
        if enabled.query_kinds[name] == "json":
            parameter["content"] = {formats.JSON: {"schema": details}}
        else:
            parameter["schema"] = details
        found.append(parameter)
    return found


def _word_parameters() -> list[Schema]:
    properties = Words.model_json_schema()["properties"]
    words: list[Schema] = [
        {"name": name, "in": "query", "required": False, "description": details["description"], "schema": details}
        for name, details in properties.items()
    ]
    for word in words:
        if word["name"] == "events":
            word |= {"style": "form", "explode": False}
    header = {"name": "Last-Event-ID", "in": "header", "required": False, "schema": TEXT}
    return [*words, {**header, "description": "The cursor to go on from, as EventSource sends it."}]


def _sources_body(members: Iterable[EnabledSource]) -> Schema:
    properties = {member.name: hoisted(member.parameters_schema(ref(member.name))) for member in members}
    sources = {"type": "object", "additionalProperties": False, "properties": properties}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {"sources": sources},
        "required": ["sources"],
    }
