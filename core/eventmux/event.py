"""Event and its name. What a source yields; how it becomes bytes is not said here."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, RootModel

from .errors import DefinitionError

T = TypeVar("T")

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
MAX_NAME = 128  # letters

_BREAK = re.compile(r"[\r\n\0]")


def snake_case(name: str) -> str:
    """`ReverseEcho` -> `reverse_echo`, `HTTPError` -> `http_error`."""
    return _WORD.sub("_", name).lower()


def check_event_name(name: str) -> str:
    """Return `name`, or raise ValueError for one that a client could not listen to or that would break the framing.

    A line break ends the field (WHATWG HTML 9.2.6), `error` and `open` are EventSource's own events, and what
    begins with `stream.` is said by the service.
    """
    if not name or len(name) > MAX_NAME:
        raise ValueError(f"an event name has 1 to {MAX_NAME} characters: got {len(name)}")
    if _BREAK.search(name):
        raise ValueError(f"an event name cannot hold a line break or NUL: got {name!r}")
    if name in {"error", "open"} or name.startswith("stream."):
        raise ValueError(f"the event name {name!r} is reserved: 'error', 'open' and 'stream.*' are not a source's")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"an event name must be text: got {name!r}") from None
    return name


def _named_after(cls: type[Event]) -> type:
    """The class that names an event: of `EventOf[Quote]` the payload's, of another generic's instance the generic's."""
    generic = cls.__pydantic_generic_metadata__
    if generic["origin"] is None:
        return cls
    wrapped = generic["args"][0]
    return wrapped if issubclass(generic["origin"], RootModel) and isinstance(wrapped, type) else generic["origin"]


class Event(BaseModel):
    """One event of a source. Its fields are the event's JSON; its class names the SSE event, in snake_case.

    `class Quote(Event, name="quote.v2")` names it otherwise. Raises DefinitionError for a reserved name.
    """

    event_name: ClassVar[str] = "event"

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        try:
            cls.event_name = check_event_name(name or snake_case(_named_after(cls).__name__))
        except ValueError as error:
            raise DefinitionError(
                f'event {cls.__name__}: {error}; say class {cls.__name__}(Event, name="...")'
            ) from None


class EventOf(Event, RootModel[T], Generic[T]):
    """An event around a payload model that exists already: `EventOf[Quote](quote)` is named `quote`, its data is
    the quote's own JSON.
    """


def event_type(event: Event) -> type[Event]:
    """The class that a source must have declared for this event: `EventOf(quote)` counts as `EventOf[type(quote)]`."""
    found = type(event)
    if isinstance(event, EventOf) and found is EventOf:
        wrapped: type[Event] = EventOf[type(event.root)]  # type: ignore[misc,assignment] # made now
        return wrapped
    return found
