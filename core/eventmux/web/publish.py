"""`POST /publish/{name}`: an event for a source that takes events from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request, Response
from pydantic import ValidationError

from ..errors import TakesNothingError
from . import parameters

if TYPE_CHECKING:
    from ..catalog import EnabledSource
    from .reach import Reach
    from .streams import Endpoint, Streams


def publishing(enabled: EnabledSource, streams: Streams) -> Endpoint:
    """The endpoint of one source. The parameters in the query say which of its runs it is for."""

    async def publish(request: Request) -> Response:
        (await _access(request, streams)).check_publish(enabled.name)
        enabled.check_available()
        limits = streams.visits.limits
        (wanted,) = parameters.wanted_by_query(parameters.read_query(request, limits), [enabled])
        text = await parameters.read_text(request, limits)
        body = parameters.parse_body(request, text)
        try:
            message = enabled.message(body)
        except ValidationError as invalid:
            parameters.refuse(list(parameters.located(invalid, lambda loc: ("body", *loc))))
        hub = streams.service.hub
        if hub.is_shared:
            await hub.post(wanted, text if body else b"{}")
        else:
            hub.publish(wanted, message, len(text))
        return Response(status_code=202)

    return publish


def unknown(streams: Streams) -> Endpoint:
    """The endpoint of every other name."""

    async def refuse(request: Request) -> Response:
        access, name = await _access(request, streams), request.path_params["name"]
        access.check_publish(name)
        if name in access.catalog.sources:
            raise TakesNothingError(f"source {name!r} takes no events from outside: its plugin must give it an Inbox")
        raise access.unknown(name)

    return refuse


async def _access(request: Request, streams: Streams) -> Reach:
    return streams.guard.access(await streams.guard.authenticate(request), streams.service.catalog)
