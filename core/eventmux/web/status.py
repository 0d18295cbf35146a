"""`GET /healthz` and `GET /readyz`: for whoever watches the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

if TYPE_CHECKING:
    from ..catalog import Catalog
    from ..hub import Hub
    from ..plugins import Plugin
    from .auth import Guard


def router(catalog: Catalog, hub: Hub, plugins: Sequence[Plugin], guard: Guard) -> APIRouter:
    routes = APIRouter(tags=["service"])

    @routes.get("/healthz", operation_id="healthz")
    async def healthz() -> dict[str, str]:
        """The loop turns."""
        return {"status": "ok"}

    @routes.get("/readyz", operation_id="readyz")
    async def readyz(request: Request) -> JSONResponse:
        """Whether new streams are welcome (200, or 503 while the service drains), the state of every source, and what
        is wrong with plugins. A source that is unavailable does not make the service unready.
        """
        shown, faulty = catalog, [plugin for plugin in plugins if plugin.error]
        if guard.hides:
            shown = catalog.readable(await guard.glance(request))
            if shown.sources != catalog.sources:
                faulty = []  # an error's text may name any source
        body: dict[str, Any] = {
            "status": "draining" if hub.is_draining else "ready",
            "sources": {
                name: {"state": hub.state(enabled), **({"reason": enabled.unavailable} if enabled.unavailable else {})}
                for name, enabled in shown.sources.items()
            },
            "plugins": [
                {"name": plugin.name, "distribution": plugin.distribution, "state": plugin.state, "error": plugin.error}
                for plugin in faulty
            ],
        }
        return JSONResponse(body, 503 if hub.is_draining else 200)

    return routes
