"""The stream routes: one per source and named stream, and `/sse` for any selection."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.dependencies.utils import get_dependant

from ..cursor import Cursor, parse_cursor
from ..errors import UnknownSourceError
from ..hub import Start
from ..stream import Selection
from ..trace import parse_traceparent
from . import formats, openapi, parameters
from .index import Index
from .response import EventStream

if TYPE_CHECKING:
    from fastapi import FastAPI, params
    from fastapi.dependencies.models import Dependant

    from ..catalog import Catalog, EnabledSource
    from ..hub import Hub
    from .outlet import Delivery

ARRAY_LIMIT = 1_000  # events in a JSON array where the client says no limit: it is read as a whole

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


def add_routes(
    app: FastAPI, catalog: Catalog, hub: Hub, delivery: Delivery, dependencies: Sequence[params.Depends] = ()
) -> None:
    """Routes for everything in the catalog. `dependencies`: FastAPI's, of every stream.

    With one that yields, no stream takes its connection over: it would be left when the response's task is freed.
    """
    streams, index = Streams(catalog, hub, delivery), Index()

    def add(path: str, endpoint: Endpoint, name: str, document: Callable[[str], dict[str, Any]]) -> None:
        for method in ("GET", "POST", "HEAD"):
            app.router.add_api_route(
                path,
                endpoint,
                methods=[method],
                name=f"{name} {method}",
                operation_id=f"{name}_{method.lower()}",
                include_in_schema=method != "HEAD",
                status_code=200,
                response_class=EventStream,
                response_model=None,
                openapi_extra=document(method),
                dependencies=dependencies,
            )
            index.add(app.router.routes[-1])  # type: ignore[arg-type] # the one just made

    add("/sse", streams.merged, "merged", partial(openapi.merged_operation, catalog))
    for name, enabled in catalog.sources.items():
        add(f"/sse/{name}", streams.one(enabled), name, partial(openapi.source_operation, enabled))
    for name, members in catalog.streams.items():
        wanted = [catalog.sources[member] for member in members]
        add(f"/sse/{name}", streams.named(wanted), name, partial(openapi.stream_operation, name, wanted))
    app.router.add_api_route(
        "/sse/{name}",
        streams.unknown,
        methods=["GET", "POST", "HEAD"],
        include_in_schema=False,
        dependencies=dependencies,
    )
    index.install(app)
    if any(_holds(dependency.dependency) for dependency in dependencies):
        delivery.is_direct = False


def _holds(dependency: Callable[..., Any] | None) -> bool:
    """Whether it, or one that it depends on, is held until the response has ended."""
    if dependency is None:
        return False
    found = get_dependant(path="", call=dependency)
    calls = [call for inner in [found, *_all_of(found)] for call in (inner.call, type(inner.call).__call__)]
    return any(inspect.isasyncgenfunction(call) or inspect.isgeneratorfunction(call) for call in calls)


def _all_of(dependant: Dependant) -> list[Dependant]:
    return [found for inner in dependant.dependencies for found in [inner, *_all_of(inner)]]


class Streams:
    """A request for a stream, from its parameters to its response."""

    def __init__(self, catalog: Catalog, hub: Hub, delivery: Delivery) -> None:
        self._catalog = catalog
        self._hub = hub
        self._delivery = delivery

    async def merged(self, request: Request) -> Response:
        query = parameters.read_query(request)
        if request.method == "POST":
            body = await _body_of_sources(request)
            selected = parameters.select(list(body), self._catalog, ("body", "sources"))
            return self._open(request, query, selected, body)
        return self._open(request, query, parameters.take_selection(query, self._catalog))

    def one(self, enabled: EnabledSource) -> Endpoint:
        async def stream(request: Request) -> Response:
            body = {enabled.name: await parameters.read_body(request)} if request.method == "POST" else None
            return self._open(request, parameters.read_query(request), [enabled], body, at=("body",))

        return stream

    def named(self, members: Sequence[EnabledSource]) -> Endpoint:
        async def stream(request: Request) -> Response:
            body = await _body_of_sources(request) if request.method == "POST" else None
            if body:
                _refuse_strangers(body, members)
            return self._open(request, parameters.read_query(request), members, body)

        return stream

    async def unknown(self, request: Request) -> Response:
        raise UnknownSourceError(request.path_params["name"], [*self._catalog.sources, *self._catalog.streams])

    def _open(
        self,
        request: Request,
        query: parameters.Query,
        enabled: Sequence[EnabledSource],
        body: Mapping[str, Any] | None = None,
        *,
        at: tuple[str, ...] = ("body", "sources"),
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
        start = Start(cursor, words.since_time(time.time()), trace=_trace(request))
        media_type = formats.media_type(request.headers.get("accept", ""))
        limit = words.limit or (ARRAY_LIMIT if media_type == formats.JSON else None)
        events = None if words.events is None else frozenset(words.events)
        form = formats.format_of(media_type, qualify=words.qualify)
        selection = Selection(form, events, limit, reconnects=media_type == formats.SSE)
        return EventStream(lambda: self._hub.subscribe(wanted, start, selection), form, self._delivery)


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


async def _body_of_sources(request: Request) -> Mapping[str, Any]:
    """The `sources` of `{"sources": {"echo": {"message": "hi"}, "clock": {}}}`."""
    body = await parameters.read_body(request)
    surplus = [
        parameters.error(("body", name), 'The body is {"sources": {name: parameters}}', None, kind="extra_forbidden")
        for name in body
        if name != "sources"
    ]
    sources = body.get("sources", {})
    if not isinstance(sources, dict):
        text = "Input should be an object: the parameters of each source under its name"
        surplus.append(parameters.error(("body", "sources"), text, sources, kind="dict_type"))
    if surplus:
        parameters.refuse(surplus)
    return dict(sources)


def _refuse_strangers(body: Mapping[str, Any], members: Sequence[EnabledSource]) -> None:
    names = {member.name for member in members}
    text = f"Not a source of this stream: it has {', '.join(sorted(names))}"
    errors = [
        parameters.error(("body", "sources", name), text, None, kind="extra_forbidden")
        for name in body
        if name not in names
    ]
    if errors:
        parameters.refuse(errors)
