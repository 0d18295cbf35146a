"""A function's signature read into parameters and events. Whose function it is, and how it runs, is not said here."""

from __future__ import annotations

import inspect
import logging
import types
import typing
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator
from pydantic.errors import PydanticUserError
from sse_starlette import ServerSentEvent
from typing_extensions import TypeAliasType

from .errors import DefinitionError
from .event import Event, EventOf
from .inbox import Inbox

RESERVED_PARAMETERS = frozenset({"sources", "last_event_id", "since", "limit", "events", "qualify", "ticket"})

_STREAMS = (AsyncIterator, AsyncGenerator, AsyncIterable)


class ConfigOnly:
    """Marks a parameter that only `plugins.yaml` can set: `api_key: Annotated[SecretStr, ConfigOnly]`.

    While a required one is not set there, the source is listed as unavailable, with the remedy.
    """


@dataclass(frozen=True, slots=True)
class Context:
    """What a run knows of its surroundings: a parameter annotated `ctx: Context` receives it.

    `source`: the name under which it is enabled. `last`: the last event of the log that this run continues, or None.
    `principal`: whom a private run serves, or None. `log`: a logger of its own. `trace`: the `traceparent` of the
    request that a private run serves, or None; a shared run serves many.
    """

    source: str
    last: Event | ServerSentEvent | None = None
    principal: str | None = None
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("eventmux.source"))
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """`parameters`: a model of them, `extra="forbid"`. `events`: the classes that may be yielded, with their names.
    `relays`: whether ServerSentEvent may be, too. `context` and `inbox`: the parameters that receive these. `takes`:
    what may be published to it. `config_only`: the parameters that clients cannot set.
    """

    parameters: type[BaseModel]
    events: Mapping[type[Event], str]
    relays: bool = False
    context: str | None = None
    inbox: str | None = None
    takes: type[BaseModel] | None = None
    config_only: frozenset[str] = frozenset()


def read_signature(function: Callable[..., Any], check: Callable[..., None] | None) -> Signature:
    """Raises DefinitionError for what cannot be served, with the remedy."""
    if isinstance(function, partial):
        raise DefinitionError("it is a partial: write a function that passes the arguments on")
    if not inspect.isasyncgenfunction(function):
        raise DefinitionError("it is not an async generator: write 'async def' and 'yield' its events")
    hints = _hints(function)
    events, relays = _events(hints.pop("return", None))
    contexts = [parameter for parameter, hint in hints.items() if hint is Context]
    if len(contexts) > 1:
        raise DefinitionError(f"parameters {' and '.join(contexts)} are both a Context: keep one")
    inboxes = {parameter: _taken(hint) for parameter, hint in hints.items() if _is_inbox(hint)}
    if len(inboxes) > 1:
        raise DefinitionError(f"parameters {' and '.join(inboxes)} are both an Inbox: keep one")
    inbox, takes = next(iter(inboxes.items()), (None, None))
    return Signature(
        parameters=_parameters(function, hints, check),
        events=events,
        relays=relays,
        context=contexts[0] if contexts else None,
        inbox=inbox,
        takes=takes,
        config_only=frozenset(parameter for parameter, hint in hints.items() if _is_config_only(hint)),
    )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise DefinitionError(
            f"the annotation {error.name!r} is not known at run time: import or define it at the "
            "top of the module, not under TYPE_CHECKING"
        ) from error
    except (SyntaxError, TypeError, AttributeError) as error:
        raise DefinitionError(f"its annotations cannot be read: {error}") from error


def _is_inbox(hint: Any) -> bool:
    return hint is Inbox or get_origin(hint) is Inbox


def _taken(hint: Any) -> type[BaseModel]:
    """What an Inbox is of."""
    kind = next(iter(get_args(hint)), None)
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        raise DefinitionError("say what its Inbox is of: Inbox[Message], where Message is a pydantic model or an Event")
    return kind


def _is_config_only(hint: Any) -> bool:
    """Whether the mark stands anywhere in the annotation: in an alias, or beside `| None`, it means the same."""
    if isinstance(hint, TypeAliasType):
        return _is_config_only(hint.__value__)
    marks = hint.__metadata__ if get_origin(hint) is Annotated else ()
    return any(mark is ConfigOnly or isinstance(mark, ConfigOnly) for mark in marks) or any(
        _is_config_only(part) for part in get_args(hint)
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
            _check_event(kind)
            if kind.event_name in events.values():
                raise DefinitionError(f"two of its events are named {kind.event_name!r}: give one another name")
            events[kind] = kind.event_name
        else:
            shown = getattr(kind, "__name__", str(kind))
            raise DefinitionError(f"it yields {shown}: yield subclasses of Event, EventOf[{shown}] or ServerSentEvent")
    return events, relays


def _check_event(kind: type[Event]) -> None:
    generic = kind.__pydantic_generic_metadata__
    if kind is EventOf or (generic["origin"] is EventOf and not isinstance(generic["args"][0], type)):
        raise DefinitionError(f"{kind.__name__} has no name of its own: write class Prices({kind.__name__}): ...")
    try:
        kind.model_json_schema(mode="serialization")
    except (PydanticUserError, NameError) as error:
        first = str(error).partition("\n")[0]  # what follows is a link
        raise DefinitionError(f"its event {kind.__name__} cannot be read: {first}") from error


def _members(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, TypeAliasType):
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
        if hints[parameter.name] is not Context and not _is_inbox(hints[parameter.name]):
            fields[parameter.name] = (
                hints[parameter.name],
                ... if parameter.default is parameter.empty else parameter.default,
            )
    title = "".join(word.title() for word in function.__name__.split("_")) + "Parameters"
    try:
        with warnings.catch_warnings():
            # A parameter named like an old method of BaseModel ("copy", "json") is the author's right.
            warnings.filterwarnings("ignore", message="Field name .* shadows an attribute", category=UserWarning)
            model = _model(title, fields, {})
            model.model_json_schema()
            _check_fields(model, fields)
            return (
                model
                if check is None
                else _model(title, fields, {"check": model_validator(mode="after")(_after(check))})
            )
    except (PydanticUserError, NameError, TypeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise DefinitionError(f"its parameters cannot be read: {first}") from error


def _model(title: str, fields: dict[str, Any], validators: dict[str, Any]) -> type[BaseModel]:
    config = ConfigDict(
        extra="forbid", validate_default=True, protected_namespaces=(), hide_input_in_errors=True, frozen=True
    )
    return create_model(title, __config__=config, __validators__=validators, **fields)


def _after(check: Callable[..., None]) -> Callable[[BaseModel], BaseModel]:
    def checked(parameters: BaseModel) -> BaseModel:
        check(**{name: getattr(parameters, name) for name in type(parameters).model_fields})
        return parameters

    return checked


def _check_fields(model: type[BaseModel], fields: dict[str, Any]) -> None:
    """What pydantic would pass over without a word, or find at the first request only."""
    for name in fields:
        if name not in model.model_fields:
            raise DefinitionError(f"parameter {name!r} is a name that pydantic keeps for itself: give it another one")
        if model.model_fields[name].alias or model.model_fields[name].validation_alias:
            raise DefinitionError(f"parameter {name!r} has an alias: clients use the parameter's own name")
    try:
        model.model_validate({})
    except ValidationError as invalid:
        for fault in invalid.errors(include_url=False, include_context=False, include_input=False):
            if fault["type"] != "missing":
                raise DefinitionError(
                    f"the default of parameter {fault['loc'][0]!r} is wrong: {fault['msg']}"
                ) from None
