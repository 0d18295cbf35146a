"""OpenAPI 3.2 of the stream routes: every source's parameters, and as `itemSchema` its events."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse

from . import formats
from .parameters import Words

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..access import Principal
    from ..catalog import Catalog, EnabledSource
    from ..service import Service
    from .auth import Guard

VERSION = "3.2.0"
Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_CONTROL_EVENTS: dict[str, Schema] = {
    "stream.gap": {
        "reason": {"enum": ["evicted", "restarted", "unknown", "lagged"]},
        "missed": {"type": ["integer", "null"], "minimum": 0},
    },
    "stream.error": {"message": _TEXT, "incident": _TEXT, "retryable": {"type": "boolean"}},
    "stream.end": {"reason": {"enum": ["completed", "failed", "limit", "expired", "lost", "removed"]}},
}

_PROBLEM: Schema = {formats.JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_CHALLENGE: Schema = {"WWW-Authenticate": {"description": "RFC 6750, 3", "schema": _TEXT}}
_REFUSALS: Schema = {
    "401": {"description": "No token, or none that is valid", "headers": _CHALLENGE, "content": _PROBLEM},
    "403": {
        "description": "A token that may not, or a page of an origin that is not allowed",
        "headers": _CHALLENGE,
        "content": _PROBLEM,
    },
}
_SCHEMES: Schema = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "eventmux_token"},
}
_WITH_TOKEN = ("/sources", "/publish/", "/metrics")
_STREAM_SCHEMES: Schema = {
    **_SCHEMES,
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "POST /tickets gives one",
    },
}
_TICKETS: Schema = {
    "summary": "A ticket that opens one stream, once",
    "description": "For an EventSource that cannot send a token: open the stream with `?ticket=`.",
    "operationId": "tickets",
    "tags": ["service"],
    "security": [{name: []} for name in _SCHEMES],
    "responses": {
        "201": {
            "description": "The ticket, and the seconds in which it must be used",
            "content": {
                formats.JSON: {
                    "schema": {
                        "type": "object",
                        "required": ["ticket", "expires_in"],
                        "properties": {"ticket": _TEXT, "expires_in": {"type": "number"}},
                    }
                }
            },
        },
        "401": _REFUSALS["401"],
        "429": {"description": "Too many tickets wait to be used", "content": _PROBLEM},
    },
}


def install(app: FastAPI, service: Service, guard: Guard) -> None:
    """Make `app.openapi()` OpenAPI 3.2 with the components that the operations below refer to, and `/openapi.json` a
    document in which nobody finds what is hidden from him.
    """
    app.openapi_version = VERSION
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        components = document.setdefault("components", {}).setdefault("schemas", {})
        if "stream.end" not in components:
            components.update(_components(service.catalog))
        return document if guard.is_open else _guarded(document)

    async def shown(request: Request) -> JSONResponse:
        document, catalog = openapi(), service.catalog
        if guard.hides:
            document = _shown_to(await guard.glance(request), document, catalog)
        if root := request.scope.get("root_path", "").rstrip("/"):
            document = {**document, "servers": [{"url": root}]}
        return JSONResponse(document)

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way
    app.router.routes[:] = [route for route in app.routes if getattr(route, "path", "") != app.openapi_url]
    app.router.add_route(str(app.openapi_url), shown, include_in_schema=False)


def _guarded(document: Schema) -> Schema:
    """With what a request must bring, and how it is refused without."""
    paths = {path: dict(item) for path, item in document["paths"].items()}
    for path, item in paths.items():
        schemes = _STREAM_SCHEMES if path.startswith("/sse") else _SCHEMES if path.startswith(_WITH_TOKEN) else {}
        for method, operation in item.items() if schemes else ():
            security: list[Schema] = [{name: []} for name in schemes]
            item[method] = {**operation, "security": security, "responses": {**operation["responses"], **_REFUSALS}}
    paths["/tickets"] = {"post": _TICKETS}
    components = {**document["components"], "securitySchemes": _STREAM_SCHEMES}
    return {**document, "paths": paths, "components": components}


def _shown_to(principal: Principal, document: Schema, catalog: Catalog) -> Schema:
    """The document without what the principal may neither read nor publish to."""
    readable = catalog.readable(principal)
    publishable = [enabled for name, enabled in catalog.sources.items() if principal.may_publish(name)]
    hidden = {f"/sse/{name}" for name in (catalog.sources.keys() | catalog.streams.keys())}
    hidden |= {f"/publish/{name}" for name in catalog.sources}
    hidden -= {f"/sse/{name}" for name in (readable.sources.keys() | readable.streams.keys())}
    hidden -= {f"/publish/{enabled.name}" for enabled in publishable}
    paths = {path: item for path, item in document["paths"].items() if path not in hidden}
    paths["/sse"] = {
        method: {**operation, **merged_operation(readable, method.upper(), operation["responses"])}
        for method, operation in paths["/sse"].items()
    }
    ours = _components(catalog)
    others = {name: schema for name, schema in document["components"]["schemas"].items() if name not in ours}
    components = {**document["components"], "schemas": {**others, **_components(readable, publishable)}}
    return {**document, "paths": paths, "components": components}


def source_operation(enabled: EnabledSource, method: str) -> Schema:
    body = _hoisted(enabled.parameters_schema(_ref(enabled.name)))
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
            "503": {"description": "The source is unavailable, or does not keep up", "content": _PROBLEM},
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
    items = [_sse_item([name, f"{source}/{name}"], _event_ref(source, name)) for source, name, _ in events]
    lines = [_line_item([name, f"{source}/{name}"], _event_ref(source, name)) for source, name, _ in events]
    if any(source.source.relays for source in sources):
        items.append({"properties": {"event": _TEXT, "data": _TEXT}})
        lines.append({"properties": {"event": _TEXT, "data": _TEXT}})
    items += [_sse_item([name], {"$ref": f"#/components/schemas/{name}"}) for name in _CONTROL_EVENTS]
    lines += [_line_item([name], {"$ref": f"#/components/schemas/{name}"}) for name in _CONTROL_EVENTS]
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
        "404": {"description": "No such source", "content": _PROBLEM},
        **_problems(),
        "503": {"description": "A source is unavailable, or, for who is no EventSource, no room", "content": _PROBLEM},
    }


def _problems() -> Schema:
    """What every route answers that takes parameters and a body."""
    not_taken = "No HTTP, or a host that is not trusted"
    return {
        "400": {"description": not_taken, "content": {"text/plain": {"schema": _TEXT}}},
        "403": {"description": "A page of an origin that is not allowed", "content": _PROBLEM},
        "413": {"description": "Body or query too large", "content": _PROBLEM},
        "415": {"description": "Body not sent as JSON", "content": _PROBLEM},
        "422": {"description": "Wrong parameters", "content": _PROBLEM},
        "431": {"description": "URL and headers over 64 KiB", "content": {"text/plain": {"schema": _TEXT}}},
    }


def _sse_item(names: list[str], data: Schema) -> Schema:
    """One dispatched event, in the shape of OpenAPI 3.2's section on Server-Sent Events. `names`: without `qualify`,
    and with it.
    """
    return {
        "required": ["event", "data"],
        "properties": {
            "id": _TEXT,
            "event": {"enum": names},
            "data": {"type": "string", "contentMediaType": formats.JSON, "contentSchema": data},
        },
    }


def _line_item(names: list[str], data: Schema) -> Schema:
    return {
        "required": ["id", "source", "event", "data"],
        "properties": {"id": _TEXT, "source": _TEXT, "event": {"enum": names}, "data": data},
    }


def _query_parameters(enabled: EnabledSource, prefix: str = "") -> list[Schema]:
    schema = enabled.parameters_schema(_ref(enabled.name))
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
    header = {"name": "Last-Event-ID", "in": "header", "required": False, "schema": _TEXT}
    return [*words, {**header, "description": "The cursor to go on from, as EventSource sends it."}]


def _sources_body(members: Iterable[EnabledSource]) -> Schema:
    properties = {member.name: _hoisted(member.parameters_schema(_ref(member.name))) for member in members}
    sources = {"type": "object", "additionalProperties": False, "properties": properties}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {"sources": sources},
        "required": ["sources"],
    }


def _components(catalog: Catalog, others: Iterable[EnabledSource] = ()) -> dict[str, Schema]:
    """`others`: sources of which it is only said what they take."""
    found: dict[str, Schema] = {
        "Problem": {"type": "object", "required": ["detail"], "properties": {"detail": {"type": ["string", "array"]}}}
    }
    for name, own in _CONTROL_EVENTS.items():
        properties = {"source": _TEXT, **own}
        found[name] = {"type": "object", "required": list(properties), "properties": properties}
    for enabled in [*catalog.sources.values(), *others]:
        found |= _definitions(enabled.name, enabled.parameters_schema(_ref(enabled.name)))
        if enabled.source.takes:
            schema = enabled.source.takes.model_json_schema(ref_template=_ref(f"{enabled.name}.takes"))
            found |= _definitions(f"{enabled.name}.takes", schema)
            found[f"{enabled.name}.takes"] = _hoisted(schema)
    for enabled in catalog.sources.values():
        # As an event a model may look otherwise than as a parameter: a name space of its own.
        ref = _ref(f"{enabled.name}.model")
        for kind, event in enabled.source.events.items():
            schema = kind.model_json_schema(ref_template=ref, mode="serialization")
            found |= _definitions(f"{enabled.name}.model", schema)
            found[_component(enabled.name, event)] = _hoisted(schema)
    return found


def _definitions(source: str, schema: Mapping[str, Any]) -> dict[str, Schema]:
    return {f"{source}.{name}": definition for name, definition in schema.get("$defs", {}).items()}


def _hoisted(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key != "$defs"}


def _ref(source: str) -> str:
    return f"#/components/schemas/{source}.{{model}}"


def _component(source: str, event: str) -> str:
    """A component's name has letters, digits, dot, dash and underscore only."""
    return f"{source}.event.{re.sub(r'[^A-Za-z0-9._-]', lambda odd: f'_{ord(odd[0]):x}_', event)}"


def _event_ref(source: str, event: str) -> Schema:
    return {"$ref": f"#/components/schemas/{_component(source, event)}"}
