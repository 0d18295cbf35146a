"""Requests for streams: from their parameters to their responses. Which paths lead here is not said here."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi import Request, Response

from ..cursor import Cursor, parse_cursor
from ..errors import MAX_FAULTS, FullError
from ..selection import Selection, Start
from ..trace import parse_traceparent
from . import formats, parameters
from .opening import opening
from .response import EventStream
from .visits import Caller, Visits

if TYPE_CHECKING:
    from ..access import Principal
    from ..catalog import EnabledSource
    from ..policy import Limits
    from ..service import Service
    from .auth import Guard
    from .outlet import Delivery
    from .reach import Reach

ARRAY_LIMIT = 1_000  # events in a JSON array where the client says no limit: it is read as a whole

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class Streams:
    """A request for a stream, from its parameters to its response."""

    def __init__(self, service: Service, delivery: Delivery, visits: Visits, guard: Guard) -> None:
        self.service = service
        self.delivery = delivery
        self.visits = visits
        self.guard = guard

    async def merged(self, request: Request) -> Response:
        access = await self._access(request)
        query = parameters.read_query(request, self._limits)
        if request.method == "POST":
            body = await self._body_of_sources(request)
            selected = parameters.select(list(body), access, ("body", "sources"), self._limits)
            return self._open(request, access.principal, query, selected, body)
        selected = parameters.take_selection(query, access, self._limits)
        return self._open(request, access.principal, query, selected)

    def one(self, enabled: EnabledSource) -> Endpoint:
        async def stream(request: Request) -> Response:
            access = await self._access(request)
            access.check(enabled.name, [enabled.name])
            is_post = request.method == "POST"
            body = {enabled.name: await parameters.read_body(request, self._limits)} if is_post else None
            query = parameters.read_query(request, self._limits)
            return self._open(request, access.principal, query, [enabled], body, at=("body",))

        return stream

    def named(self, name: str, members: Sequence[EnabledSource]) -> Endpoint:
        async def stream(request: Request) -> Response:
            access = await self._access(request)
            access.check(name, [member.name for member in members])
            body = await self._body_of_sources(request) if request.method == "POST" else None
            if body:
                _refuse_strangers(body, members)
            query = parameters.read_query(request, self._limits)
            return self._open(request, access.principal, query, members, body, name=name)

        return stream

    async def unknown(self, request: Request) -> Response:
        raise (await self._access(request)).unknown(request.path_params["name"])

    async def _access(self, request: Request) -> Reach:
        """First of all who asks: nobody else learns what is there, or what would be wrong with it."""
        return self.guard.access(await self.guard.authenticate(request, by_ticket=True), self.service.catalog)

    def turning_away(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint, and what a client is told who cannot be served before a stream is made for it."""

        async def stream(request: Request) -> Response:
            try:
                return await endpoint(request)
            except FullError as full:
                media_type = formats.media_type(request.headers.get("accept", ""))
                return EventStream(partial(_raise, full), formats.format_of(media_type, qualify=False), self.delivery)

        return stream

    @property
    def _limits(self) -> Limits:
        return self.visits.limits

    async def _body_of_sources(self, request: Request) -> Mapping[str, Any]:
        return parameters.sources_of(await parameters.read_body(request, self._limits))

    def _open(
        self,
        request: Request,
        principal: Principal,
        query: parameters.Query,
        enabled: Sequence[EnabledSource],
        body: Mapping[str, Any] | None = None,
        *,
        at: tuple[str, ...] = ("body", "sources"),
        name: str | None = None,
    ) -> Response:
        for source in enabled:
            source.check_available()
        words = parameters.take_words(query, enabled)
        if body is None:
            wanted = parameters.wanted_by_query(query, enabled)
        else:
            parameters.refuse_rest(query)
            wanted = parameters.wanted_by_body(body, enabled, at)
        cursor = _cursor(request, words.last_event_id)
        if cursor and all(cursor.has_ended(source.name) for source in enabled):
            return Response(status_code=204)  # EventSource stops for good (WHATWG HTML 9.2.3)
        trace = _trace(request)
        start = Start(cursor, words.since_time(time.time()), principal.id, trace)
        media_type = formats.media_type(request.headers.get("accept", ""))
        limit = words.limit or (ARRAY_LIMIT if media_type == formats.JSON else None)
        events = None if words.events is None else frozenset(words.events)
        form = formats.format_of(media_type, qualify=words.qualify)
        mark, reconnects = principal.mark, media_type == formats.SSE
        selection = Selection(form, events, limit, reconnects=reconnects, mark=mark, name=name)
        address = request.client.host if request.client else None
        caller = Caller(principal, tuple([source.name for source in enabled]), address, trace)
        subscribe = self.guard.opening(request, partial(self.service.hub.subscribe, wanted, start, selection))
        begin = partial(self.visits.begin, caller, subscribe)
        load, ticket = partial(self.service.hub.load, wanted, start), self.guard.ticket(request)
        check = partial(self.visits.check, caller)
        before = partial(opening, check, load, ticket) if ticket or self.service.hub.is_shared else None
        return EventStream(begin, form, self.delivery, principal.expires, before)


def _raise(error: Exception) -> NoReturn:
    raise error


def _cursor(request: Request, word: str | None) -> Cursor | None:
    """The client's cursor, None if it brings none. What cannot be read matches no source: that is a gap for each."""
    given = [value for name, value in request.scope["headers"] if name == b"last-event-id" and value]
    try:
        # Browsers send the UTF-8 of the id; Starlette's own view of a header is Latin-1.
        text = given[-1].decode() if given else word
        return parse_cursor(text) if text else None
    except ValueError:
        return Cursor.unreadable()


def _trace(request: Request) -> str | None:
    """Its `traceparent`; of several, none is believed (W3C Trace Context, 3.2)."""
    given = [value for name, value in request.scope["headers"] if name == b"traceparent"]
    trace = parse_traceparent(given[0].decode("latin-1")) if len(given) == 1 else None
    return str(trace) if trace else None


def _refuse_strangers(body: Mapping[str, Any], members: Sequence[EnabledSource]) -> None:
    names = {member.name for member in members}
    text = f"Not a source of this stream: it has {', '.join(sorted(names))}"
    errors = [
        parameters.error(("body", "sources", name), text, None, kind="extra_forbidden")
        for name in islice((name for name in body if name not in names), MAX_FAULTS)
    ]
    if errors:
        parameters.refuse(errors)
