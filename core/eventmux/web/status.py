"""`GET /healthz` and `GET /readyz`: for whoever watches the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

if TYPE_CHECKING:
    from ..service import Service
    from .auth import Guard


def router(service: Service, guard: Guard) -> APIRouter:
    routes = APIRouter(tags=["service"])

    @routes.get("/healthz", operation_id="healthz")
    async def healthz() -> dict[str, str]:
        """The loop turns."""
        return {"status": "ok"}

    @routes.get("/readyz", operation_id="readyz")
    async def readyz(request: Request) -> JSONResponse:
        """Whether new streams are welcome (200, or 503 while the service drains), the state of every source with its
        reason, and what is wrong with plugins and with the configuration's file. A source that is unavailable does not
        make the service unready, and neither does a file that cannot be applied: what held before still does.
        """
        hub, settings = service.hub, service.settings
        shown, faulty, faults = settings.catalog, settings.plugins.broken, service.faults
        if guard.hides:
            shown = settings.catalog.readable(await guard.glance(request))
            if shown.sources != settings.catalog.sources:
                faulty, faults = [], ()  # an error's text may name any source
        body: dict[str, Any] = {
            "status": "draining" if hub.is_draining else "ready",
            "sources": {
                name: {key: value for key, value in hub.health(enabled)._asdict().items() if value is not None}
                for name, enabled in shown.sources.items()
            },
            "plugins": [
                {"name": plugin.name, "distribution": plugin.distribution, "state": plugin.state, "error": plugin.error}
                for plugin in faulty
            ],
            "configuration": {
                "file": settings.file,
                "state": "rejected" if service.faults else "applied",
                "error": faults,
                "needs_restart": service.pending,
            },
        }
        return JSONResponse(body, 503 if hub.is_draining else 200)

    return routes
