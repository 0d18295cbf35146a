"""Where in a request its credentials are, and what it is answered without. What they are worth, others know."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_plus

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from ..access import EVERYBODY, NOBODY, Principal
from ..authority import INVALID, Authority, digest
from ..config import AuthConfig
from ..cursor import MARK, parse_cursor
from ..errors import (
    AmbiguousCredentialsError,
    AuthenticationError,
    CredentialsError,
    ForbiddenError,
    FullError,
    PluginError,
    UnknownSourceError,
)
from ..tickets import Tickets

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ..catalog import Catalog, EnabledSource
    from ..plugins import Plugin
    from ..settings import Settings
    from ..subscription import Subscription

log = logging.getLogger("eventmux.auth")

COOKIE = "eventmux_token"
TICKET = "eventmux.ticket"  # in the scope: what `?ticket=` held
RULES = "eventmux.rules"  # in the scope: by which it was found out who asks
HOOK_SECONDS = 10.0  # that a plugin may take to say who asks


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


@dataclass(frozen=True, slots=True)
class Access:
    """What a principal has of a catalog. `hides`: whether the rest is as if it were not there."""

    principal: Principal
    catalog: Catalog
    hides: bool = False

    @property
    def readable(self) -> Catalog:
        return self.catalog.readable(self.principal)

    def source(self, name: str) -> EnabledSource:
        """For a selection. Raises UnknownSourceError, in which stands nothing that is hidden, or ForbiddenError."""
        enabled = self.catalog.sources.get(name)
        if enabled is None or not self.principal.may_read(name):
            if enabled and not self.hides:
                raise self._forbidden(f"source {name!r}")
            self.readable.source(name)
        return self.catalog.sources[name]

    def check(self, name: str, members: list[str]) -> None:
        """The same for what has a path of its own: a source, or a stream with these members."""
        forbidden = next((member for member in members if not self.principal.may_read(member)), None)
        if forbidden is None:
            return
        if self.hides:
            raise self.unknown(name)
        raise self._forbidden(f"source {name!r}" if members == [name] else f"source {forbidden!r} of stream {name!r}")

    def check_publish(self, name: str) -> None:
        """The same for who publishes, to a source that may be unknown."""
        if self.principal.may_publish(name):
            return
        if name not in self.catalog.sources or (self.hides and not self.principal.may_read(name)):
            raise self.unknown(name)
        raise self._forbidden(f"source {name!r}", "publish to")

    def unknown(self, name: str) -> UnknownSourceError:
        readable = self.readable
        return UnknownSourceError(name, [*readable.sources, *readable.streams])

    def _forbidden(self, what: str, action: str = "read") -> Exception:
        if self.principal.is_anonymous:
            return CredentialsError(f"nobody may {action} {what} without a token: send Authorization: Bearer")
        return ForbiddenError(
            f"{self.principal.name!r} may not {action} {what}: ask its operator, or use another token"
        )


class Guard:
    """Knows who asks and what they may have. A service has one for its whole life: `apply` gives it new settings, and
    its tickets stay. `on_change` is told then, by what it can ask whether somebody may still read what he reads.
    """

    def __init__(self, settings: Settings) -> None:
        self.tickets = Tickets()
        self.on_change: Callable[[Callable[[Principal, Iterable[str]], bool]], None] = _nothing
        self._config: AuthConfig | None = None
        self._authority: Authority | None = None
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """From the next request on."""
        self.follow(settings)()

    def follow(self, settings: Settings) -> Callable[[], None]:
        """As a Part of the service."""
        config, authority, before = settings.config.auth, self._authority, self._authority
        if config != self._config:  # else the keys that have been fetched stay
            authority = Authority(config, settings.directory, before) if config else None

        def apply() -> None:
            self._config, self._authority = config, authority
            self._hooks = settings.plugins.guards
            self._rules = object()
            self.is_open = not settings.is_guarded
            self.on_change(may_still)

        def may_still(principal: Principal, sources: Iterable[str]) -> bool:
            now = self._now(principal, before)
            return now is not None and all(now.may_read(name) for name in sources if name in settings.catalog.sources)

        return apply

    def _now(self, principal: Principal, before: Authority | None) -> Principal | None:
        """What has become of a principal that has a stream; None if it is nobody any more."""
        if self.is_open:
            return EVERYBODY
        if principal.is_anonymous:
            return self._authority.anonymous if self._authority else None
        if principal.scheme == "hook":
            return principal if self._hooks else None
        return self._authority.successor(principal, before) if self._authority and before else None

    @property
    def hides(self) -> bool:
        return self._config is not None and self._config.hide

    def access(self, principal: Principal, catalog: Catalog) -> Access:
        return Access(principal, catalog, self.hides)

    async def authenticate(self, request: HTTPConnection, *, by_ticket: bool = False) -> Principal:
        """Who asks. `by_ticket`: whether a ticket will do. Raises ChallengeError, PluginError, FullError."""
        request.scope[RULES] = self._rules
        if self.is_open:
            return EVERYBODY
        token, ticket = _credentials(request)
        if ticket is not None:
            return self._holder(request, ticket, by_ticket=by_ticket)
        for plugin in self._hooks:
            if found := await _asked(plugin, request):
                return found
        if token is not None:
            return await self._bearer(token)
        if _proof(request) is not None:
            raise CredentialsError("this stream was opened with a token, and goes on with one only: bring it again")
        if self._authority and self._authority.anonymous:
            return self._authority.anonymous
        raise CredentialsError("bring a token: send Authorization: Bearer, the cookie eventmux_token, or a ticket")

    async def glance(self, request: HTTPConnection) -> Principal:
        """The same for what everybody may ask, though not everybody is told everything."""
        try:
            return await self.authenticate(request)
        except CredentialsError:
            return NOBODY

    async def require_principal(self, request: Request) -> Principal:
        """As a dependency of FastAPI's: any principal will do but an anonymous one."""
        principal = await self.authenticate(request)
        if principal.is_anonymous and not self.is_open:
            raise CredentialsError("bring a token: send Authorization: Bearer, or the cookie eventmux_token")
        return principal

    async def issue(self, request: Request) -> tuple[str, float]:
        """A ticket for who asks, and its seconds. Raises TooManyTicketsError beside what `require_principal` does."""
        principal = await self.require_principal(request)
        lifetime = (self._config or AuthConfig()).ticket_lifetime
        token, _ = _credentials(request)
        credential = digest(token) if token else b""
        return self.tickets.issue(principal, credential, lifetime), lifetime

    def opening(self, request: Request, subscribe: Callable[[], Subscription]) -> Callable[[], Subscription]:
        """`subscribe`, by which a ticket of the request is used. Nothing else opens a stream with it meanwhile. Raises
        FullError where there are other rules by now than those by which it was found out who asks.
        """
        given, rules = request.scope.get(TICKET), request.scope[RULES]

        def check() -> Subscription:
            if rules is not self._rules:
                raise FullError("who may read what has just been changed")
            return subscribe()

        if self.is_open or not given:
            return check
        text, proof = given[0].get_secret_value(), _proof(request)

        def use() -> Subscription:
            if not self.tickets.is_good(text, proof):
                raise AuthenticationError(USED)
            subscription = check()
            self.tickets.use(text, subscription)
            return subscription

        return use

    async def _bearer(self, token: str) -> Principal:
        if self._authority is None:
            raise AuthenticationError(INVALID)
        return await self._authority.principal(token)

    def _holder(self, request: HTTPConnection, ticket: str, *, by_ticket: bool) -> Principal:
        if not by_ticket:
            raise AuthenticationError("a ticket opens a stream, and nothing else: bring a token")
        found = self.tickets.holder(ticket, _proof(request))
        principal = found and self._renewed(*found)
        if principal is None:
            raise AuthenticationError(USED)
        return principal

    def _renewed(self, principal: Principal, credential: bytes) -> Principal | None:
        if principal.scheme == "hook":
            return principal if self._hooks else None
        now = self._authority.renewed(principal, credential) if self._authority else None
        return now and replace(now, mark=principal.mark)

    async def close(self) -> None:
        if self._authority:
            await self._authority.close()


USED = "this ticket is used, or too old: get a new one by POST /tickets"


def _credentials(request: HTTPConnection) -> tuple[str | None, str | None]:
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


def _proof(request: HTTPConnection) -> str | None:
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


async def _asked(plugin: Plugin, connection: HTTPConnection) -> Principal | None:
    """What the plugin says. Raises what it refuses with, and PluginError for whatever else goes wrong in it."""
    given: list[Any] = []
    try:
        given = (plugin.authenticate or _nobody)(connection=connection)
        async with asyncio.timeout(HOOK_SECONDS):
            for found in given:
                answer = await found if isinstance(found, Awaitable) else found
                if answer is not None:
                    return _checked(answer)
    except AuthenticationError:
        raise
    except Exception as error:
        incident = secrets.token_hex(4)
        log.exception("plugin %s could not say who asks, incident %s", plugin.title, incident)
        raise PluginError(f"who sends this request could not be found out: incident {incident}") from error
    finally:
        for rest in given:
            if inspect.iscoroutine(rest):
                rest.close()  # one that was not asked any more
    return None


def _nothing(_: object) -> None:
    pass


def _nobody(**_: object) -> list[Any]:
    return []


def _checked(answer: Any) -> Principal:
    if not isinstance(answer, Principal):
        raise TypeError(f"authenticate gave {type(answer).__name__}: return a Principal or None")
    if answer.has_expired():
        raise AuthenticationError("the credentials have expired: bring new ones")
    return replace(answer, scheme="hook", mark=MARK)


def router(guard: Guard) -> APIRouter:
    routes = APIRouter()

    @routes.post("/tickets", include_in_schema=False, status_code=201)
    async def tickets(request: Request) -> Response:
        """A ticket that opens one stream, once: `?ticket=` for an EventSource that cannot send a token."""
        if guard.is_open:
            return JSONResponse({"detail": "no auth is configured: streams need no ticket"}, 404)
        ticket, seconds = await guard.issue(request)
        return JSONResponse({"ticket": ticket, "expires_in": seconds}, 201, {"Cache-Control": "no-store"})

    return routes
