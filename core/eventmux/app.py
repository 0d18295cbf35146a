"""create_app: builds every part, in order. Nothing is done at import, and two apps share nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler, request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException

from .errors import EventmuxError, Refusal, TooLargeError
from .hub import Hub
from .meter import Meter
from .settings import Settings, load_settings
from .watchdog import Watchdog
from .web import catalog, dashboard, metrics, openapi, status, streams, trial
from .web.outlet import Delivery

if TYPE_CHECKING:
    from fastapi import Response, params
    from starlette.types import Lifespan

log = logging.getLogger("eventmux")

FAILED = 500  # and statuses above: not by a fault of the client


def create_app(settings: Settings | None = None, dependencies: Sequence[params.Depends] = ()) -> FastAPI:
    """The service as an ASGI application, from ./plugins.yaml if nothing is given.

    `dependencies`: FastAPI's, of every stream; one that raises an HTTPException refuses it, and with one that
    yields, which is held for as long as the stream, the portable way is taken. `app.state.hub` is its hub,
    for who runs the server. Raises ConfigError.
    """
    settings = settings or _from_file()
    meter = Meter()
    for name in settings.catalog.sources:
        meter.of(name)  # a counter that begins with its first event hides that event from rate()
    hub = Hub(settings.limits, meter)
    delivery = Delivery(settings.config.server, meter)
    app = FastAPI(
        title="eventmux",
        version=version("eventmux"),
        description="Event sources as Server-Sent Events, one by one or merged.",
        lifespan=_lifespan(settings, hub, delivery),
    )
    app.state.hub = hub
    app.include_router(status.router(settings.catalog, hub, settings.plugins.found))
    app.include_router(catalog.router(settings.catalog, hub))
    app.include_router(metrics.router(hub))
    app.include_router(dashboard.router())
    streams.add_routes(app, settings.catalog, hub, delivery, dependencies)
    _count_refusals(app, meter)
    openapi.install(app, settings.catalog)
    return app


def _from_file() -> Settings:
    """What `eventmux serve` prints about plugins goes to the log, where there is no command to print it."""
    settings = load_settings()
    for plugin in settings.plugins.broken:
        log.error("plugin %s: %s", plugin.title, plugin.error)
    return settings


def _lifespan(settings: Settings, hub: Hub, delivery: Delivery) -> Lifespan[FastAPI]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 - its name is Starlette's contract
        if delivery.is_direct and (reason := await trial.why_not(settings.config.server)):
            log.warning("streams go through ASGI, at more cost: %s", reason)
            delivery.is_direct = False
        watch = asyncio.create_task(_drain_at_exit(hub), name="eventmux exit")
        watchdog = Watchdog(settings.config.server.stall, settings.catalog.sources, settings.plugins, hub.meter)
        watchdog.start()
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            await hub.close()
            delivery.close()
            watchdog.stop()

    return lifespan


async def _drain_at_exit(hub: Hub) -> None:
    """Under a plain uvicorn nobody tells an application that the server wants to exit: its streams would keep it for
    ever. sse-starlette finds out; `eventmux serve` does not need it, and drains half a second earlier.
    """
    await EventSourceResponse._listen_for_exit_signal()  # noqa: SLF001 - there is no public way
    hub.drain()


_REFUSALS: dict[int, Refusal] = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    413: "too_large",
    429: "rate",
    503: "unavailable",
}


def _count_refusals(app: FastAPI, meter: Meter) -> None:
    """Answer what is refused before a stream begins as FastAPI does, and count it by its reason."""

    def count(request: Request, reason: Refusal) -> None:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if path.split("/", 2)[1:2] == ["sse"]:  # what else is asked for is no stream
            meter.refused(reason)

    async def refused(request: Request, error: Exception) -> Response:
        count(request, getattr(error, "refusal", "failed"))
        return _refused(error)

    async def invalid(request: Request, error: Exception) -> Response:
        count(request, "invalid")
        return await request_validation_exception_handler(request, cast("RequestValidationError", error))

    async def other(request: Request, error: Exception) -> Response:
        status = cast("HTTPException", error).status_code
        count(request, _REFUSALS.get(status, "failed" if status >= FAILED else "invalid"))
        return await http_exception_handler(request, cast("HTTPException", error))

    app.add_exception_handler(EventmuxError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)


def _refused(error: Exception) -> JSONResponse:
    status = getattr(error, "status", 500)
    # Whoever sends too much is not read to the end: the connection is closed on them.
    headers = {"connection": "close"} if status == TooLargeError.status else None
    return JSONResponse({"detail": str(error)}, status, headers)
