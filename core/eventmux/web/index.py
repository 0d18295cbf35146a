"""Finds a route by its whole path. A router tries its routes one after the other: with fifty sources, a stream would
cost 150 regular expressions before it begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from starlette._utils import get_route_path
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match, NoMatchFound

if TYPE_CHECKING:
    from fastapi.routing import APIRoute
    from starlette.types import Receive, Scope, Send


METHODS = ("GET", "HEAD", "POST")


class Index(BaseRoute):
    """Stands before the routes that it knows, and leads to the one that would be found. What it does not know, another
    method or a path under a prefix, is left to the router.
    """

    path = "/sse"  # for who looks at the paths of routes

    def __init__(self, routes: Iterable[APIRoute]) -> None:
        """`routes`: without parameters in their paths."""
        self._routes = {(method, route.path): route for route in routes for method in route.methods or ()}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope.get("root_path"):
            return Match.NONE, {}
        route = self._routes.get((scope["method"], scope["path"]))
        return route.matches(scope) if route else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        route: APIRoute = scope["route"]  # as it has matched
        await route.handle(scope, receive, send)

    def url_path_for(self, name: str, /, **path_params: object) -> NoReturn:
        raise NoMatchFound(name, path_params)


class OtherMethods(BaseRoute):
    """Answers other methods of streams. A router would name those of the route that it finds first, and so tell
    whether there is a source of that name.
    """

    path = "/sse"

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["method"] in METHODS:
            return Match.NONE, {}
        path = get_route_path(scope)
        return (Match.FULL if path == "/sse" or path.startswith("/sse/") else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = JSONResponse({"detail": "Method Not Allowed"}, 405, {"Allow": ", ".join(METHODS)})
        await response(scope, receive, send)

    def url_path_for(self, name: str, /, **path_params: object) -> NoReturn:
        raise NoMatchFound(name, path_params)
