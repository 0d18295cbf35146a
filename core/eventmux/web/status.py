"""`GET /healthz` and `GET /readyz`: for whoever watches the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

if TYPE_CHECKING:
    from ..catalog import Catalog
    from ..hub import Hub
    from ..plugins import Plugin


def router(catalog: Catalog, hub: Hub, plugins: Sequence[Plugin]) -> APIRouter:
    routes = APIRouter(tags=["service"])

    @routes.get("/healthz", operation_id="healthz")
    async def healthz() -> dict[str, str]:
        """The loop turns."""
        return {"status": "ok"}

    @routes.get("/readyz", operation_id="readyz")
    async def readyz() -> JSONResponse:
        """Whether new streams are welcome (200, or 503 while the service drains), the state of every source with its
        reason, and what is wrong with plugins. A source that is unavailable does not make the service unready.
        """
        body: dict[str, Any] = {
            "status": "draining" if hub.is_draining else "ready",
            "sources": {
                name: {key: value for key, value in hub.health(enabled)._asdict().items() if value is not None}
                for name, enabled in catalog.sources.items()
            },
            "plugins": [
                {"name": plugin.name, "distribution": plugin.distribution, "state": plugin.state, "error": plugin.error}
                for plugin in plugins
                if plugin.error
            ],
        }
        return JSONResponse(body, 503 if hub.is_draining else 200)

    return routes
