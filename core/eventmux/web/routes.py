"""The routes that follow the catalog: one per source and named stream, and `/sse` for any selection."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import APIRouter, Response
from fastapi.dependencies.utils import get_dependant
from fastapi.routing import APIRoute

from . import operations
from .index import METHODS, Index, OtherMethods
from .publish import publishing, unknown
from .response import EventStream

if TYPE_CHECKING:
    from fastapi import FastAPI, params
    from fastapi.dependencies.models import Dependant
    from starlette.routing import BaseRoute

    from ..catalog import Catalog, EnabledSource
    from ..settings import Settings
    from .streams import Endpoint, Streams

UNKNOWN = "/sse/{name}"  # the path of all that there is not; it comes last

Document = Callable[[str], dict[str, Any]] | None


class Served(NamedTuple):
    """A path, and what it was made for."""

    serves: object
    routes: list[APIRoute]


class Routes:
    """The stream routes of an application. They follow the catalog, as a Part of the service."""

    def __init__(self, app: FastAPI, streams: Streams, dependencies: Sequence[params.Depends] = ()) -> None:
        """`dependencies`: FastAPI's, of every stream. With one that yields, no stream takes its connection over: it
        would be left when the response's task is freed.
        """
        self._app = app
        self._streams = streams
        self._dependencies = dependencies
        self._routes: list[BaseRoute] = []
        self._paths: Mapping[str, Served] = {}
        if any(_holds(dependency.dependency) for dependency in dependencies):
            streams.delivery.is_direct = False
        self.follow(streams.service.settings)()

    def follow(self, settings: Settings) -> Callable[[], None]:
        paths = self._made(settings.catalog)
        return lambda: self._put(paths)

    def _put(self, paths: Mapping[str, Served]) -> None:
        """In one step, in the place of those of before; routes of others stay where they are."""
        found = [route for served in paths.values() for route in served.routes]
        first = [Index([route for route in found if "{" not in route.path]), OtherMethods()]
        all_of_them, before = self._app.router.routes, {id(route) for route in self._routes}
        others = [route for route in all_of_them if id(route) not in before]
        at = all_of_them.index(self._routes[-1]) - len(self._routes) + 1 if self._routes else len(others)
        all_of_them[:] = [*first, *others[:at], *found, *others[at:]]
        self._routes, self._paths = [*first, *found], paths
        self._app.openapi_schema = None  # it is made anew when it is asked for

    def _made(self, catalog: Catalog) -> Mapping[str, Served]:
        """What serves the same as before is the same: a path costs 6 ms."""
        streams, paths = self._streams, dict[str, Served]()

        def add(path: str, serves: object, make: Callable[[], list[APIRoute]]) -> None:
            before = self._paths.get(path)
            paths[path] = before if before and before.serves == serves else Served(serves, make())

        def stream(path: str, serves: object, endpoint: Endpoint, name: str, document: Document) -> None:
            add(path, serves, partial(self._stream, path, streams.turning_away(endpoint), name, document))

        stream("/sse", catalog.sources, streams.merged, "merged", partial(operations.merged_operation, catalog))
        for name, enabled in catalog.sources.items():
            stream(f"/sse/{name}", enabled, streams.one(enabled), name, partial(operations.source_operation, enabled))
            if enabled.source.takes:
                add(f"/publish/{name}", enabled, partial(self._publishing, enabled))
        for name, members in catalog.streams.items():
            wanted = [catalog.sources[member] for member in members]
            document = partial(operations.stream_operation, name, wanted)
            stream(f"/sse/{name}", wanted, streams.named(name, wanted), name, document)
        stream(UNKNOWN, None, streams.unknown, "unknown", None)
        add("/publish/{name}", None, self._nothing_taken)
        return paths

    def _stream(self, path: str, endpoint: Endpoint, name: str, document: Document) -> list[APIRoute]:
        """Its routes. Without a document it stands in none."""
        return [
            self._route(
                path,
                endpoint,
                methods=[method],
                name=f"{name} {method}",
                operation_id=f"{name}_{method.lower()}",
                include_in_schema=document is not None and method != "HEAD",
                status_code=200,
                response_class=EventStream,
                openapi_extra=document(method) if document else None,
            )
            for method in METHODS
        ]

    def _publishing(self, enabled: EnabledSource) -> list[APIRoute]:
        route = self._route(
            f"/publish/{enabled.name}",
            publishing(enabled, self._streams),
            methods=["POST"],
            name=f"{enabled.name} publish",
            operation_id=f"{enabled.name}_publish",
            status_code=202,
            response_class=Response,
            openapi_extra=operations.publish_operation(enabled),
        )
        return [route]

    def _nothing_taken(self) -> list[APIRoute]:
        return [self._route("/publish/{name}", unknown(self._streams), methods=["POST"], include_in_schema=False)]

    def _route(self, path: str, endpoint: Endpoint, **words: Any) -> APIRoute:
        router = APIRouter(dependency_overrides_provider=self._app)
        router.add_api_route(path, endpoint, response_model=None, dependencies=self._dependencies, **words)
        (route,) = router.routes
        assert isinstance(route, APIRoute)  # noqa: S101 - for mypy; it is what the router makes
        return route


def _holds(dependency: Callable[..., Any] | None) -> bool:
    """Whether it, or one that it depends on, is held until the response has ended."""
    if dependency is None:
        return False
    found = get_dependant(path="", call=dependency)
    calls = [call for inner in [found, *_all_of(found)] for call in (inner.call, type(inner.call).__call__)]
    return any(inspect.isasyncgenfunction(call) or inspect.isgeneratorfunction(call) for call in calls)


def _all_of(dependant: Dependant) -> list[Dependant]:
    return [found for inner in dependant.dependencies for found in [inner, *_all_of(inner)]]
