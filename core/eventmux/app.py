"""create_app: builds every part, in order. Nothing is done at import, and two apps share nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from sse_starlette import EventSourceResponse

from .hub import Hub
from .local_tickets import LocalTickets
from .reload import Reload
from .service import Service
from .settings import Settings, load_settings
from .shared_tickets import SharedTickets
from .watchdog import Watchdog
from .web import auth, catalog, dashboard, metrics, openapi, refusals, status, trial
from .web.auth import Guard
from .web.credentials import TicketFilter
from .web.gate import Gate
from .web.outlet import Delivery
from .web.routes import Routes
from .web.siblings import Siblings
from .web.streams import Streams
from .web.visits import Visits

if TYPE_CHECKING:
    from fastapi import params
    from starlette.types import Lifespan

    from .worker import Worker

log = logging.getLogger("eventmux")


def create_app(
    settings: Settings | None = None, dependencies: Sequence[params.Depends] = (), *, worker: Worker | None = None
) -> FastAPI:
    """The service as an ASGI application, from ./plugins.yaml if nothing is given.

    `dependencies`: FastAPI's, of every stream; one that raises an HTTPException refuses it, and with one that
    yields, which is held for as long as the stream, the portable way is taken. `worker`: which of several processes
    it is for. `app.state.hub` is its hub, for who runs the server. Raises ConfigError.
    """
    settings = settings or _from_file()
    service = Service(settings)
    meter = service.hub.meter
    delivery, visits = Delivery(settings.config.server, meter), Visits(settings.limits, service.hub)
    tickets = SharedTickets(service.replica) if service.replica else LocalTickets()
    guard, gate, siblings = Guard(settings, tickets), Gate(settings.config), Siblings(worker)
    guard.on_change = visits.review
    app = FastAPI(
        title="eventmux",
        version=version("eventmux"),
        description="Event sources as Server-Sent Events, one by one or merged.",
        lifespan=_lifespan(service, delivery, guard, siblings),
    )
    app.state.service = service
    app.state.hub, app.state.visits, app.state.guard, app.state.gate = service.hub, visits, guard, gate
    app.include_router(status.router(service, guard, siblings))
    app.include_router(catalog.router(service, guard))
    app.include_router(metrics.router(service.hub, guard, siblings))
    app.include_router(auth.router(guard))
    app.include_router(dashboard.router(guard))
    for part in (delivery, visits, guard, gate, Routes(app, Streams(service, delivery, visits, guard), dependencies)):
        service.add(part.follow)
    refusals.install(app, meter)
    openapi.install(app, service, guard)
    app.add_middleware(gate.around)
    app.add_middleware(TicketFilter)  # the last one added is the outermost
    return app


def _from_file() -> Settings:
    """What `eventmux serve` prints about plugins goes to the log, where there is no command to print it."""
    settings = load_settings()
    for plugin in settings.plugins.broken:
        log.error("plugin %s: %s", plugin.title, plugin.error)
    return settings


def _lifespan(service: Service, delivery: Delivery, guard: Guard, siblings: Siblings) -> Lifespan[FastAPI]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server = service.settings.config.server
        if delivery.is_direct and (reason := await trial.why_not(server)):
            log.warning("streams go through ASGI, at more cost: %s", reason)
            delivery.is_direct = False
        await service.hub.open()
        watch = None
        if not getattr(app.state, "is_drained", False):
            watch = asyncio.create_task(_drain_at_exit(service.hub, delivery, server.grace), name="eventmux exit")
        watchdog = Watchdog(server.stall, service, service.hub.meter)
        watchdog.start()
        try:
            async with siblings.listening(), Reload(service).running():
                yield
        finally:
            if watch:
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch
            await guard.close()
            await service.hub.close()
            delivery.close()
            watchdog.stop()

    return lifespan


async def _drain_at_exit(hub: Hub, delivery: Delivery, grace: float) -> None:
    """Under a plain uvicorn nobody tells an application that the server wants to exit: its streams would keep it for
    ever, and those of clients that take nothing. sse-starlette finds out; `eventmux serve` does not need it.
    """
    await EventSourceResponse._listen_for_exit_signal()  # noqa: SLF001 - there is no public way
    hub.drain()
    await asyncio.sleep(grace)
    delivery.close()
