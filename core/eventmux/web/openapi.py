"""The OpenAPI document, and what of it who asks is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse

from . import formats
from .components import PROBLEM, TEXT, Schema, components
from .operations import merged_operation

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..access import Principal
    from ..catalog import Catalog
    from ..service import Service
    from .auth import Guard

VERSION = "3.2.0"

_CHALLENGE: Schema = {"WWW-Authenticate": {"description": "RFC 6750, 3", "schema": TEXT}}
_REFUSALS: Schema = {
    "401": {"description": "No token, or none that is valid", "headers": _CHALLENGE, "content": PROBLEM},
    "403": {
        "description": "A token that may not, or a page of an origin that is not allowed",
        "headers": _CHALLENGE,
        "content": PROBLEM,
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
                        "properties": {"ticket": TEXT, "expires_in": {"type": "number"}},
                    }
                }
            },
        },
        "401": _REFUSALS["401"],
        "429": {"description": "Too many tickets wait to be used", "content": PROBLEM},
        "503": {"description": "The store is away", "content": PROBLEM},
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
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "stream.end" not in schemas:
            schemas.update(components(service.catalog))
        return document if guard.is_open else _guarded(document, lets_anybody=guard.lets_anybody)

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


def _guarded(document: Schema, *, lets_anybody: bool) -> Schema:
    """With what a request must bring, and how it is refused without. `lets_anybody`: some get along with nothing."""
    paths = {path: dict(item) for path, item in document["paths"].items()}
    for path, item in paths.items():
        schemes = _STREAM_SCHEMES if path.startswith("/sse") else _SCHEMES if path.startswith(_WITH_TOKEN) else {}
        for method, operation in item.items() if schemes else ():
            security: list[Schema] = [{name: []} for name in schemes]
            if lets_anybody and path != "/metrics":
                security.append({})
            item[method] = {**operation, "security": security, "responses": {**operation["responses"], **_REFUSALS}}
    paths["/tickets"] = {"post": _TICKETS}
    return {**document, "paths": paths, "components": {**document["components"], "securitySchemes": _STREAM_SCHEMES}}


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
    ours = components(catalog)
    others = {name: schema for name, schema in document["components"]["schemas"].items() if name not in ours}
    shown = {**others, **components(readable, publishable)}
    return {**document, "paths": paths, "components": {**document["components"], "schemas": shown}}
