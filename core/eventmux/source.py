"""@source: a signature read into a name, parameters and events. How a source runs is not said here."""

from __future__ import annotations

import inspect
import logging
import re
import types
import typing
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Generic, ParamSpec, TypeVar, get_args, get_origin, overload

from pydantic import BaseModel, ConfigDict, create_model, model_validator
from pydantic.errors import PydanticUserError
from sse_starlette import ServerSentEvent

from .errors import DefinitionError, UndeclaredEventError
from .event import Event, event_type
from .policy import Bounds, Policy

P = ParamSpec("P")
E = TypeVar("E", bound="Event | ServerSentEvent")

RESERVED_PARAMETERS = frozenset({"sources", "last_event_id", "since", "limit", "events", "qualify", "ticket"})
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MAX_NAME = 63  # letters; a DNS label's bound, so that a name also fits a host, a metric or a Redis key

DEFAULT_BOUNDS = Bounds()

_STREAMS = (AsyncIterator, AsyncGenerator, AsyncIterable)


class ConfigOnly:
    """Marks a parameter that only `plugins.yaml` can set: `api_key: Annotated[SecretStr, ConfigOnly]`.

    While a required one is not set there, the source is listed as unavailable, with the remedy.
    """


@dataclass(frozen=True, slots=True)
class Context:
    """What a run knows of its surroundings: a parameter annotated `ctx: Context` receives it.

    `source`: the name under which it is enabled. `last`: the last event of the log that this run continues, or None.
    `principal`: whom a private run serves, or None. `log`: a logger of its own.
    """

    source: str
    last: Event | ServerSentEvent | None = None
    principal: str | None = None
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("eventmux.source"))


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
    policy: Policy = field(default_factory=Policy)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Any]:
        return self.function(*args, **kwargs)

    def event_name(self, event: Event | ServerSentEvent) -> str:
        """The SSE name of an event of this source; raises UndeclaredEventError for one that its annotation lacks."""
        if name := self.events.get(type(event)):  # type: ignore[arg-type]
            return name
        if isinstance(event, ServerSentEvent) and self.relays:
            return event.event or "message"
        if isinstance(event, Event) and (name := self.events.get(event_type(event))):
            return name
        allowed = ", ".join([kind.__name__ for kind in self.events] + ["ServerSentEvent"] * self.relays)
        raise UndeclaredEventError(f"it yielded {type(event).__name__}, and its annotation allows {allowed}")

    def run(self, parameters: BaseModel, context: Context) -> AsyncIterator[Event | ServerSentEvent]:
        """One execution with validated parameters."""
        arguments: dict[str, Any] = {name: getattr(parameters, name) for name in self.parameters.model_fields}
        if self.context:
            arguments[self.context] = context
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
        return replace(made, policy=Policy(shared=shared, once=once, linger=linger, history=history))

    return read if function is None else read(function)


def _read(
    function: Callable[P, AsyncIterator[Any]], name: str | None, check: Callable[..., None] | None
) -> Source[P]:
    title = name or getattr(function, "__name__", "source").replace("_", "-")
    try:
        if not NAME.fullmatch(title) or len(title) > MAX_NAME:
            raise DefinitionError(f"a name is kebab-case, like 'reverse-echo', of at most {MAX_NAME} letters")
        if not inspect.isasyncgenfunction(function):
            raise DefinitionError("it is not an async generator: write 'async def' and 'yield' its events")
        hints = _hints(function)
        events, relays = _events(hints.pop("return", None))
        contexts = [parameter for parameter, hint in hints.items() if hint is Context]
        return Source(
            name=title,
            function=function,
            description=inspect.getdoc(function) or "",
            parameters=_parameters(function, hints, check),
            events=events,
            relays=relays,
            context=contexts[0] if contexts else None,
            config_only=frozenset(p for p, hint in hints.items() if _is_config_only(hint)),
        )
    except DefinitionError as error:
        raise DefinitionError(f"source {title!r}: {error}") from error.__cause__


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise DefinitionError(
            f"the annotation {error.name!r} is not known at run time: import it at the top of the module, "
            "not under TYPE_CHECKING"
        ) from error


def _is_config_only(hint: Any) -> bool:
    return get_origin(hint) is Annotated and any(
        mark is ConfigOnly or isinstance(mark, ConfigOnly) for mark in hint.__metadata__
    )


def _events(returned: Any) -> tuple[dict[type[Event], str], bool]:
    """The event classes with their names, and whether ServerSentEvent is among what the annotation allows."""
    if get_origin(returned) not in _STREAMS or not get_args(returned):
        raise DefinitionError("say what it yields: -> AsyncIterator[MyEvent], or AsyncIterator[A | B]")
    events: dict[type[Event], str] = {}
    relays = False
    for kind in _members(get_args(returned)[0]):
        if isinstance(kind, type) and issubclass(kind, ServerSentEvent):
            relays = True
        elif isinstance(kind, type) and issubclass(kind, Event) and kind is not Event:
            if kind.event_name in events.values():
                raise DefinitionError(f"two of its events are named {kind.event_name!r}: give one another name")
            events[kind] = kind.event_name
        else:
            shown = getattr(kind, "__name__", str(kind))
            raise DefinitionError(f"it yields {shown}: yield subclasses of Event, EventOf[{shown}] or ServerSentEvent")
    return events, relays


def _members(kind: Any) -> tuple[Any, ...]:
    if isinstance(getattr(kind, "__value__", None), object) and type(kind).__name__ == "TypeAliasType":
        return _members(kind.__value__)
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(member for part in get_args(kind) for member in _members(part))
    return (kind,)


def _parameters(
    function: Callable[..., Any], hints: dict[str, Any], check: Callable[..., None] | None
) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise DefinitionError(f"parameter {parameter} cannot be set by name: declare each parameter by itself")
        if parameter.name not in hints:
            raise DefinitionError(f"parameter {parameter.name!r} has no annotation: say its type")
        if parameter.name in RESERVED_PARAMETERS:
            raise DefinitionError(f"parameter {parameter.name!r} is a word of the service: give it another name")
        if hints[parameter.name] is not Context:
            fields[parameter.name] = (
                hints[parameter.name],
                ... if parameter.default is parameter.empty else parameter.default,
            )
    validators: dict[str, Any] = {}
    if check is not None:

        def checked(self: BaseModel) -> BaseModel:
            check(**{name: getattr(self, name) for name in type(self).model_fields})
            return self

        validators["check"] = model_validator(mode="after")(checked)
    config = ConfigDict(
        extra="forbid", validate_default=True, protected_namespaces=(), hide_input_in_errors=True, frozen=True
    )
    try:
        with warnings.catch_warnings():
            # A parameter named like an old method of BaseModel ("copy", "json") is the author's right.
            warnings.filterwarnings("ignore", message="Field name .* shadows an attribute", category=UserWarning)
            title = "".join(word.title() for word in function.__name__.split("_")) + "Parameters"
            model: type[BaseModel] = create_model(title, __config__=config, __validators__=validators, **fields)
            model.model_json_schema()
    except (PydanticUserError, NameError, TypeError, ValueError) as error:
        raise DefinitionError(f"its parameters cannot be read: {error}") from error
    return model
