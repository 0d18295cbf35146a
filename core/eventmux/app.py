"""create_app: builds every part, in order. Nothing is done at import, and two apps share nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from .errors import EventmuxError, TooLargeError
from .hub import Hub
from .settings import Settings, load_settings
from .web import catalog, dashboard, openapi, status, streams, trial
from .web.outlet import Delivery

if TYPE_CHECKING:
    from fastapi import params
    from starlette.types import Lifespan

log = logging.getLogger("eventmux")


def create_app(settings: Settings | None = None, dependencies: Sequence[params.Depends] = ()) -> FastAPI:
    """The service as an ASGI application, from ./plugins.yaml if nothing is given.

    `dependencies`: FastAPI's, of every stream; one that raises an HTTPException refuses it, and with one that
    yields, which is held for as long as the stream, the portable way is taken. `app.state.hub` is its hub,
    for who runs the server. Raises ConfigError.
    """
    settings = settings or _from_file()
    hub = Hub(settings.limits)
    delivery = Delivery(settings.config.server)
    app = FastAPI(
        title="eventmux",
        version=version("eventmux"),
        description="Event sources as Server-Sent Events, one by one or merged.",
        lifespan=_lifespan(settings, hub, delivery),
    )
    app.state.hub = hub
    app.include_router(status.router(settings.catalog, hub, settings.plugins.found))
    app.include_router(catalog.router(settings.catalog, hub))
    app.include_router(dashboard.router())
    streams.add_routes(app, settings.catalog, hub, delivery, dependencies)
    app.add_exception_handler(EventmuxError, _refused)
    app.add_exception_handler(ClientDisconnect, _left)
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
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if delivery.is_direct and (reason := await trial.why_not(settings.config.server)):
            log.warning("streams go through ASGI, at more cost: %s", reason)
            delivery.is_direct = False
        watch = None
        if not getattr(app.state, "is_drained", False):
            watch = asyncio.create_task(
                _drain_at_exit(hub, delivery, settings.config.server.grace), name="eventmux exit"
            )
        try:
            yield
        finally:
            if watch:
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch
            await hub.close()
            delivery.close()

    return lifespan


async def _drain_at_exit(hub: Hub, delivery: Delivery, grace: float) -> None:
    """Under a plain uvicorn nobody tells an application that the server wants to exit: its streams would keep it for
    ever, and those of clients that take nothing. sse-starlette finds out; `eventmux serve` does not need it.
    """
    await EventSourceResponse._listen_for_exit_signal()  # noqa: SLF001 - there is no public way
    hub.drain()
    await asyncio.sleep(grace)
    delivery.close()


async def _refused(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - Starlette's contract
    status = getattr(error, "status", 500)
    # Whoever sends too much is not read to the end: the connection is closed on them.
    headers = {"connection": "close"} if status == TooLargeError.status else None
    return JSONResponse({"detail": str(error)}, status, headers)


async def _left(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's contract
    """A client has gone, or was cut off, before all of its body had come. Nobody reads the answer, and it is no failure
    that the log should hold.
    """
    return Response(status_code=400)
