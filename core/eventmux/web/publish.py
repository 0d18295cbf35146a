"""`POST /publish/{name}`: an event for a source that takes events from outside."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from pydantic import ValidationError

from ..errors import TakesNothingError
from ..hub import Wanted
from . import parameters

if TYPE_CHECKING:
    from ..catalog import Catalog, EnabledSource
    from ..hub import Hub
    from .auth import Guard
    from .visits import Visits

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


def publishing(enabled: EnabledSource, catalog: Catalog, hub: Hub, visits: Visits, guard: Guard) -> Endpoint:
    """The endpoint of one source. The parameters in the query say which of its runs it is for."""
    takes = enabled.source.takes
    assert takes is not None  # noqa: S101 - the caller makes a route only where something is taken

    async def publish(request: Request) -> Response:
        guard.access(await guard.authenticate(request), catalog).check_publish(enabled.name)
        enabled.check_available()
        query = parameters.read_query(request, visits.limits)
        (wanted,) = parameters.wanted_by_query(query, [enabled])
        body = await parameters.read_body(request, visits.limits)
        try:
            message = takes.model_validate(body)
        except ValidationError as invalid:
            parameters.refuse(list(parameters.located(invalid, lambda loc: ("body", *loc))))
        hub.publish(Wanted(enabled, wanted.parameters), message)
        return Response(status_code=202)

    return publish


def unknown(catalog: Catalog, guard: Guard) -> Endpoint:
    """The endpoint of every other name."""

    async def refuse(request: Request) -> Response:
        access, name = guard.access(await guard.authenticate(request), catalog), request.path_params["name"]
        access.check_publish(name)
        if name in catalog.sources:
            raise TakesNothingError(f"source {name!r} takes no events from outside: its plugin must give it an Inbox")
        raise access.unknown(name)

    return refuse
