"""Who asks, by whatever a request brings, and tickets for those who can bring nothing else. What tokens are worth, the
authority knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import HTTPConnection

from ..access import EVERYBODY, NOBODY, Principal
from ..authority import INVALID, Authority
from ..config import AuthConfig
from ..cursor import mark_of
from ..errors import AuthenticationError, CredentialsError, FullError
from .credentials import credentials_of, proof_of
from .hook import asked
from .opening import USED
from .reach import Reach

if TYPE_CHECKING:
    from ..catalog import Catalog
    from ..settings import Settings
    from ..subscription import Subscription
    from ..tickets import Grant, Ticket, Tickets

FOUND = "eventmux.found"  # in the scope: the ticket by which it was found out who asks
RULES = "eventmux.rules"  # in the scope: by which it was found out who asks


class Guard:
    """Knows who asks and what they may have. A service has one for its whole life: `apply` gives it new settings, and
    its tickets stay. `on_change` is told then, by what it can ask whether somebody may still read what he reads.
    """

    def __init__(self, settings: Settings, tickets: Tickets) -> None:
        self.tickets = tickets
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
    def lets_anybody(self) -> bool:
        """Whether something may be done without a token."""
        return self._authority is not None and self._authority.anonymous is not None

    @property
    def hides(self) -> bool:
        return self._config is not None and self._config.hide

    def access(self, principal: Principal, catalog: Catalog) -> Reach:
        return Reach(principal, catalog, self.hides)

    async def authenticate(self, request: HTTPConnection, *, by_ticket: bool = False) -> Principal:
        """Who asks. `by_ticket`: whether a ticket will do. Raises ChallengeError, PluginError, FullError."""
        request.scope[RULES] = self._rules
        if self.is_open:
            return EVERYBODY
        token, ticket = credentials_of(request)
        if ticket is not None:
            return await self._holder(request, ticket, by_ticket=by_ticket)
        for plugin in self._hooks:
            if found := await asked(plugin, request):
                return found
        if token is not None:
            return await self._bearer(token)
        if proof_of(request) is not None:
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
        """A ticket for who asks, and its seconds. Raises TooManyTicketsError and FullError beside what
        `require_principal` does.
        """
        principal = await self.require_principal(request)
        lifetime = (self._config or AuthConfig()).ticket_lifetime
        token, _ = credentials_of(request)
        credential = self._authority.credential(principal, token) if self._authority and token else b""
        return await self.tickets.issue(principal, credential, lifetime), lifetime

    @staticmethod
    def ticket(request: Request) -> Ticket | None:
        """By which it was found out who asks. It is to be claimed before a stream is opened."""
        found: Ticket | None = request.scope.get(FOUND)
        return found

    def opening(self, request: Request, subscribe: Callable[[], Subscription]) -> Callable[[], Subscription]:
        """`subscribe`, by which the ticket of the request is used, if it has one. Raises FullError where there are
        other rules by now than those by which it was found out who asks.
        """
        ticket, rules = self.ticket(request), request.scope[RULES]

        def use() -> Subscription:
            if rules is not self._rules:
                raise FullError("who may read what has just been changed")
            subscription = subscribe()
            if ticket:
                ticket.open(subscription)
            return subscription

        return use

    async def _bearer(self, token: str) -> Principal:
        if self._authority is None:
            raise AuthenticationError(INVALID)
        return await self._authority.principal(token)

    async def _holder(self, request: HTTPConnection, ticket: str, *, by_ticket: bool) -> Principal:
        if not by_ticket:
            raise AuthenticationError("a ticket opens a stream, and nothing else: bring a token")
        found = await self.tickets.find(ticket, proof_of(request))
        principal = self._renewed(found.grant) if found else None
        if principal is None:
            raise AuthenticationError(USED)
        request.scope[FOUND] = found
        return principal

    def _renewed(self, grant: Grant) -> Principal | None:
        now: Principal | None = grant.principal if self._hooks else None
        if grant.principal.scheme != "hook":
            now = self._authority.renewed(grant.principal, grant.credential) if self._authority else None
        return now and replace(now, mark=mark_of(grant.proof))

    async def close(self) -> None:
        self.tickets.close()
        if self._authority:
            await self._authority.close()


def _nothing(_: object) -> None:
    pass


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
