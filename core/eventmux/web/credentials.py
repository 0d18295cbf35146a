"""Where in a request its credentials are. What they are worth is not said here."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote_plus

from pydantic import SecretStr
from starlette.requests import HTTPConnection

from ..cursor import MARK, parse_cursor
from ..errors import AmbiguousCredentialsError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "eventmux_token"
TICKET = "eventmux.ticket"  # in the scope: what `?ticket=` held


class TicketFilter:
    """Takes tickets out of the query before anything can log it. It must be the outermost middleware: what is further
    out, and servers, see the scope as it is afterwards.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["query_string"]:
            _take_tickets(scope)
        await self._app(scope, receive, send)


def _take_tickets(scope: Scope) -> None:
    if b"ticket" not in scope["query_string"] and b"%" not in scope["query_string"]:
        return
    kept, taken = [], []
    for part in scope["query_string"].decode("latin-1").split("&"):
        name, _, value = part.partition("=")
        if unquote_plus(name) == "ticket":
            taken.append(SecretStr(unquote_plus(value)))
        else:
            kept.append(part)
    if taken:
        scope["query_string"] = "&".join(kept).encode("latin-1")
        scope[TICKET] = taken


def credentials_of(request: HTTPConnection) -> tuple[str | None, str | None]:
    """The token and the ticket, of which there may be one. What is no token is an empty one: it is not valid."""
    given = request.headers.getlist("authorization")
    tickets = request.scope.get(TICKET, ())
    if len(given) + len(tickets) > 1:
        raise AmbiguousCredentialsError("credentials are given more than once: send one, in one way (RFC 6750, 2)")
    if given:
        scheme, _, token = given[0].partition(" ")
        return token.strip() if scheme.lower() == "bearer" else "", None
    if tickets:
        return None, tickets[0].get_secret_value()
    return request.cookies.get(COOKIE), None


def proof_of(request: HTTPConnection) -> str | None:
    """That in the mark of the cursor, "" for a mark without; None where there is no mark. What cannot be read but for
    its mark has one: whoever was somebody is not let in as nobody because a proxy has cut his cursor.
    """
    given = [value for name, value in request.scope["headers"] if name == b"last-event-id" and value]
    if not given:
        query = parse_qsl(request.scope["query_string"].decode("latin-1"))
        given = [value.encode() for name, value in query if name == "last_event_id" and value]
    try:
        return parse_cursor(given[-1].decode()).mark if given else None
    except ValueError:
        return "" if given[-1].startswith(MARK) else None
