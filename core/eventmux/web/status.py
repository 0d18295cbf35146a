"""`GET /healthz` and `GET /readyz`: for whoever watches the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

if TYPE_CHECKING:
    from ..hub import Hub
    from ..service import Service
    from .auth import Guard
    from .siblings import Siblings

READY, DRAINING, STORE_AWAY = "ready", "draining", "store away"


def router(service: Service, guard: Guard, siblings: Siblings) -> APIRouter:
    routes = APIRouter(tags=["service"])

    async def told() -> bytes:
        return _status(service.hub).encode()

    siblings.answer("status", told)

    async def statuses() -> dict[int, str]:
        """Of all workers, in their order. One that does not answer starts, has ended or stands still."""
        answers = await siblings.ask("status")
        found = {number: answers.get(number, b"unreachable").decode() for number in siblings.others}
        return dict(sorted({**found, siblings.number: _status(service.hub)}.items()))

    @routes.get("/healthz", operation_id="healthz")
    async def healthz() -> dict[str, str]:
        """The loop turns."""
        return {"status": "ok"}

    @routes.get("/readyz", operation_id="readyz")
    async def readyz(request: Request) -> JSONResponse:
        """Whether new streams are welcome (200, or 503 while the service drains, its store is away or a worker of it
        does not answer), the state of every source with its reason, and what is wrong with the store, with plugins and
        with the configuration's file. A source that is unavailable does not make the service unready, and neither does
        a file that cannot be applied: what held before still does.
        """
        workers = await statuses()
        hub, settings = service.hub, service.settings
        shown, faulty, faults = settings.catalog, settings.plugins.broken, service.faults
        store = _store(hub.fault)
        if guard.hides:
            shown = settings.catalog.readable(await guard.glance(request))
            if shown.sources != settings.catalog.sources:
                faulty, faults = [], ()  # an error's text may name any source
                store.pop("reason", None)  # and hosts of ours
        body: dict[str, Any] = {
            "status": next((status for status in workers.values() if status != READY), READY),
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
                "needs_restart": settings.pending,
            },
        }
        if hub.is_shared:
            body["store"] = store
        if siblings.others:
            body["workers"] = [{"worker": number, "status": status} for number, status in workers.items()]
        return JSONResponse(body, 200 if body["status"] == READY else 503)

    return routes


def _status(hub: Hub) -> str:
    if hub.is_draining:
        return DRAINING
    return READY if hub.fault is None else STORE_AWAY


def _store(fault: str | None) -> dict[str, str]:
    return {"state": "ok"} if fault is None else {"state": "away", "reason": fault}
