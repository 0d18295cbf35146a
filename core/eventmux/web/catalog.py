"""`GET /sources`: what there is to subscribe to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

if TYPE_CHECKING:
    from ..catalog import EnabledSource
    from ..hub import Hub
    from ..service import Service
    from .auth import Guard


def router(service: Service, guard: Guard) -> APIRouter:
    routes = APIRouter(tags=["service"])

    @routes.get("/sources", operation_id="sources")
    async def sources(request: Request) -> dict[str, Any]:
        """Every source that may be read, with its parameters and events as JSON Schema, and the named streams."""
        shown = service.catalog.readable(await guard.authenticate(request))
        return {
            "sources": [_describe(enabled, service.hub) for enabled in shown.sources.values()],
            "streams": [
                {"name": name, "sources": list(members), "url": f"/sse/{name}"}
                for name, members in shown.streams.items()
            ],
        }

    return routes


def _describe(enabled: EnabledSource, hub: Hub) -> dict[str, Any]:
    health = hub.health(enabled)
    return {
        "name": enabled.name,
        "plugin": enabled.plugin,
        "description": enabled.source.description,
        "url": f"/sse/{enabled.name}",
        "shared": enabled.shared,
        "state": health.state,
        "reason": health.reason,
        "parameters": enabled.parameters_schema(),
        "events": {name: kind.model_json_schema(mode="serialization") for kind, name in enabled.source.events.items()},
    }
