"""@source, and what it makes: a named source with its parameters, events and policy. How it runs is not said here."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, ParamSpec, TypeVar, overload

from pydantic import BaseModel
from sse_starlette import ServerSentEvent

from .errors import DefinitionError, UndeclaredEventError
from .event import Event, event_type
from .inbox import Inbox
from .policy import Bounds, Policy
from .signature import Context, read_signature

P = ParamSpec("P")
E = TypeVar("E", bound="Event | ServerSentEvent")

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MAX_NAME = 63  # letters; a DNS label's bound, so that a name also fits a host, a metric or a Redis key

DEFAULT_BOUNDS = Bounds()


@dataclass(frozen=True)
class Source(Generic[P]):
    """A source as its plugin offers it. Calling it calls the generator function, which is how a unit test uses it."""

    name: str
    function: Callable[P, AsyncIterator[Any]]
    description: str
    parameters: type[BaseModel]
    events: Mapping[type[Event], str]
    relays: bool
    context: str | None
    config_only: frozenset[str]
    inbox: str | None = None
    takes: type[BaseModel] | None = None
    policy: Policy = field(default_factory=Policy)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Any]:
        return self.function(*args, **kwargs)

    def event_name(self, event: Event | ServerSentEvent) -> str:
        """The SSE name of an event of this source; raises UndeclaredEventError for one that its annotation lacks."""
        if name := self.events.get(type(event)):  # type: ignore[arg-type] # a relay's is in no dict
            return name
        if isinstance(event, ServerSentEvent) and self.relays:
            return event.event or "message"
        if isinstance(event, Event) and (name := self.events.get(event_type(event))):
            return name
        allowed = ", ".join([kind.__name__ for kind in self.events] + ["ServerSentEvent"] * self.relays)
        raise UndeclaredEventError(f"it yielded {type(event).__name__}, and its annotation allows {allowed}")

    def run(
        self, parameters: BaseModel, context: Context, inbox: Inbox[Any] | None = None
    ) -> AsyncIterator[Event | ServerSentEvent]:
        """One execution with validated parameters."""
        arguments: dict[str, Any] = {name: getattr(parameters, name) for name in self.parameters.model_fields}
        if self.context:
            arguments[self.context] = context
        if self.inbox:
            arguments[self.inbox] = inbox
        run: Callable[..., AsyncIterator[Any]] = self.function
        return run(**arguments)


@overload
def source(function: Callable[P, AsyncIterator[E]], /) -> Source[P]: ...
@overload
def source(
    *,
    name: str | None = None,
    shared: bool = False,
    once: bool = False,
    linger: float | None = None,
    history: Bounds = DEFAULT_BOUNDS,
    check: Callable[..., None] | None = None,
) -> Callable[[Callable[P, AsyncIterator[E]]], Source[P]]: ...
def source(
    function: Callable[P, AsyncIterator[Any]] | None = None,
    /,
    *,
    name: str | None = None,
    shared: bool = False,
    once: bool = False,
    linger: float | None = None,
    history: Bounds = DEFAULT_BOUNDS,
    check: Callable[..., None] | None = None,
) -> Source[P] | Callable[[Callable[P, AsyncIterator[Any]]], Source[P]]:
    """Make a source of an async generator function; its signature says everything else.

    `name`: instead of the function's name in kebab-case. `shared`: one run for all subscribers with equal parameters
    instead of one per request. `once`: a reconnect never starts it again, since each run costs. `linger`: seconds that
    a run outlives its last subscriber; by default 10 if shared, 30 if private. `history`: how much of its log is kept.
    `plugins.yaml` has the last word on these. `check`: called with the parameters, as keywords, before a run starts;
    the ValueError that it raises is the client's 422.

    Raises DefinitionError, naming source and remedy, for what cannot be served.
    """

    def read(function: Callable[P, AsyncIterator[Any]]) -> Source[P]:
        made = _read(function, name, check)
        if made.takes and not shared:
            raise DefinitionError(f"source {made.name!r}: what is published is for all: write @source(shared=True)")
        return replace(made, policy=Policy(shared=shared, once=once, linger=linger, history=history))

    return read if function is None else read(function)


def _read(function: Callable[P, AsyncIterator[Any]], name: str | None, check: Callable[..., None] | None) -> Source[P]:
    title = name or getattr(function, "__name__", "source").replace("_", "-")
    try:
        if not NAME.fullmatch(title) or len(title) > MAX_NAME:
            raise DefinitionError(f"a name is kebab-case, like 'reverse-echo', of at most {MAX_NAME} letters")
        read = read_signature(function, check)
        return Source(
            name=title,
            function=function,
            description=inspect.getdoc(function) or "",
            parameters=read.parameters,
            events=read.events,
            relays=read.relays,
            context=read.context,
            inbox=read.inbox,
            takes=read.takes,
            config_only=read.config_only,
        )
    except DefinitionError as error:
        raise DefinitionError(f"source {title!r}: {error}") from error.__cause__
