"""The stream routes: one per source and named stream, and `/sse` for any selection."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.utils import get_dependant
from fastapi.routing import APIRoute

from ..cursor import Cursor, parse_cursor
from ..errors import UnknownSourceError
from ..hub import Start
from ..stream import Selection
from . import formats, openapi, parameters
from .index import Index
from .response import EventStream

if TYPE_CHECKING:
    from fastapi import FastAPI, params
    from fastapi.dependencies.models import Dependant
    from starlette.routing import BaseRoute

    from ..catalog import Catalog, EnabledSource
    from ..service import Service
    from ..settings import Settings
    from .outlet import Delivery

ARRAY_LIMIT = 1_000  # events in a JSON array where the client says no limit: it is read as a whole

UNKNOWN = "/sse/{name}"  # the path of all that there is not; it comes last

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
Document = Callable[[str], dict[str, Any]] | None


class Served(NamedTuple):
    """A path, and what it was made for."""

    serves: object
    routes: list[APIRoute]


class Routes:
    """The stream routes of an application. They follow the catalog, as a Part of the service."""

    def __init__(
        self, app: FastAPI, service: Service, delivery: Delivery, dependencies: Sequence[params.Depends] = ()
    ) -> None:
        """`dependencies`: FastAPI's, of every stream. With one that yields, no stream takes its connection over: it
        would be left when the response's task is freed.
        """
        self._app = app
        self._streams = Streams(service, delivery)
        self._dependencies = dependencies
        self._routes: list[BaseRoute] = []
        self._paths: Mapping[str, Served] = {}
        if any(_holds(dependency.dependency) for dependency in dependencies):
            delivery.is_direct = False
        self.follow(service.settings)()

    def follow(self, settings: Settings) -> Callable[[], None]:
        paths = self._made(settings.catalog)
        return lambda: self._put(paths)

    def _put(self, paths: Mapping[str, Served]) -> None:
        """In one step, in the place of those of before; routes of others stay where they are."""
        found = [route for served in paths.values() for route in served.routes]
        routes: list[BaseRoute] = [Index([route for route in found if route.path != UNKNOWN]), *found]
        all_of_them, before = self._app.router.routes, {id(route) for route in self._routes}
        others = [route for route in all_of_them if id(route) not in before]
        at = all_of_them.index(self._routes[1]) - 1 if self._routes else len(others)
        all_of_them[:] = [routes[0], *others[:at], *routes[1:], *others[at:]]
        self._routes, self._paths = routes, paths
        self._app.openapi_schema = None  # it is made anew when it is asked for

    def _made(self, catalog: Catalog) -> Mapping[str, Served]:
        """What serves the same as before is the same: a path costs 6 ms."""
        streams, paths = self._streams, dict[str, Served]()

        def add(path: str, serves: object, endpoint: Endpoint, name: str, document: Document) -> None:
            before = self._paths.get(path)
            if before is None or before.serves != serves:
                before = Served(serves, self._path(path, endpoint, name, document))
            paths[path] = before

        add("/sse", catalog.sources, streams.merged, "merged", partial(openapi.merged_operation, catalog))
        for name, enabled in catalog.sources.items():
            add(f"/sse/{name}", enabled, streams.one(enabled), name, partial(openapi.source_operation, enabled))
        for name, members in catalog.streams.items():
            wanted = [catalog.sources[member] for member in members]
            document = partial(openapi.stream_operation, name, wanted)
            add(f"/sse/{name}", wanted, streams.named(name, wanted), name, document)
        add(UNKNOWN, None, streams.unknown, "unknown", None)
        return paths

    def _path(self, path: str, endpoint: Endpoint, name: str, document: Document) -> list[APIRoute]:
        """Its routes. Without a document it stands in none."""
        router = APIRouter(dependency_overrides_provider=self._app)
        for method in ("GET", "POST", "HEAD"):
            router.add_api_route(
                path,
                endpoint,
                methods=[method],
                name=f"{name} {method}",
                operation_id=f"{name}_{method.lower()}",
                include_in_schema=document is not None and method != "HEAD",
                status_code=200,
                response_class=EventStream,
                response_model=None,
                openapi_extra=document(method) if document else None,
                dependencies=self._dependencies,
            )
        return [route for route in router.routes if isinstance(route, APIRoute)]


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

    def __init__(self, service: Service, delivery: Delivery) -> None:
        self._service = service
        self._delivery = delivery

    async def merged(self, request: Request) -> Response:
        query = parameters.read_query(request)
        if request.method == "POST":
            body = await _body_of_sources(request)
            selected = parameters.select(list(body), self._service.catalog, ("body", "sources"))
            return self._open(request, query, selected, body)
        return self._open(request, query, parameters.take_selection(query, self._service.catalog))

    def one(self, enabled: EnabledSource) -> Endpoint:
        async def stream(request: Request) -> Response:
            body = {enabled.name: await parameters.read_body(request)} if request.method == "POST" else None
            return self._open(request, parameters.read_query(request), [enabled], body, at=("body",))

        return stream

    def named(self, name: str, members: Sequence[EnabledSource]) -> Endpoint:
        async def stream(request: Request) -> Response:
            body = await _body_of_sources(request) if request.method == "POST" else None
            if body:
                _refuse_strangers(body, members)
            return self._open(request, parameters.read_query(request), members, body, name=name)

        return stream

    async def unknown(self, request: Request) -> Response:
        catalog = self._service.catalog
        raise UnknownSourceError(request.path_params["name"], [*catalog.sources, *catalog.streams])

    def _open(
        self,
        request: Request,
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
        start = Start(cursor, words.since_time(time.time()))
        media_type = formats.media_type(request.headers.get("accept", ""))
        limit = words.limit or (ARRAY_LIMIT if media_type == formats.JSON else None)
        events = None if words.events is None else frozenset(words.events)
        form = formats.format_of(media_type, qualify=words.qualify)
        selection = Selection(form, events, limit, reconnects=media_type == formats.SSE, name=name)
        return EventStream(lambda: self._service.hub.subscribe(wanted, start, selection), form, self._delivery)


def _cursor(request: Request, word: str | None) -> Cursor | None:
    """The client's cursor, None if it brings none. What cannot be read matches no source: that is a gap for each."""
    given = [value for name, value in request.scope["headers"] if name == b"last-event-id" and value]
    try:
        # Browsers send the UTF-8 of the id; Starlette's own view of a header is Latin-1.
        text = given[-1].decode() if given else word
        return parse_cursor(text) if text else None
    except ValueError:
        return Cursor.unreadable()


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
