"""What is answered where a request gets no stream, and how that is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler, request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import EventmuxError, Refusal
from .gate import HEADERS

if TYPE_CHECKING:
    from ..meter import Meter

FAILED = 500  # and statuses above: not by a fault of the client

_REFUSALS: dict[int, Refusal] = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    413: "too_large",
    429: "rate",
    503: "unavailable",
}


def install(app: FastAPI, meter: Meter) -> None:
    """Answer what is refused before a stream begins as FastAPI does, and count it by its reason."""

    def count(request: Request, reason: Refusal) -> None:
        path = get_route_path(request.scope)
        if path.split("/", 2)[1:2] == ["sse"]:  # what else is asked for is no stream
            meter.refused(reason)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, EventmuxError)  # noqa: S101 - for mypy; it is what the handler is for
        count(request, error.refusal)
        return JSONResponse({"detail": error.told}, error.status, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        count(request, "invalid")
        return await request_validation_exception_handler(request, cast("RequestValidationError", error))

    async def other(request: Request, error: Exception) -> Response:
        status = cast("HTTPException", error).status_code
        count(request, _REFUSALS.get(status, "failed" if status >= FAILED else "invalid"))
        return await http_exception_handler(request, cast("HTTPException", error))

    async def failed(request: Request, error: Exception) -> Response:  # noqa: ARG001 - the server logs it
        # Starlette gives this one past every middleware, so the gate cannot add its headers.
        count(request, "failed")
        headers = {name.decode(): value.decode() for name, value in HEADERS.items()}
        return JSONResponse({"detail": "Internal Server Error"}, FAILED, headers)

    app.add_exception_handler(EventmuxError, refused)
    app.add_exception_handler(Exception, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)
    app.add_exception_handler(ClientDisconnect, _left)


async def _left(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's contract
    """A client has gone, or was cut off, before all of its body had come. Nobody reads the answer, and it is no failure
    that the log should hold.
    """
    return Response(status_code=400)
