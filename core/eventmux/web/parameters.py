"""A request read into what it asks for: sources with their parameters, and the words of the service.

Errors have FastAPI's own shape and come before the first byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from math import isfinite
from typing import Annotated, Any, NoReturn, Protocol
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from ..catalog import EnabledSource
from ..errors import MAX_FAULTS, MAX_SHOWN, MediaTypeError, TooLargeError, suggestion
from ..policy import Limits
from ..runs import Wanted

Error = dict[str, Any]
Query = dict[str, list[str]]


class Sources(Protocol):
    """Where a source is found by its name: the catalog, or what somebody has of it."""

    def source(self, name: str) -> EnabledSource: ...


_AGO = re.compile(r"(\d{1,9})(s|m|h|d)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def parse_since(text: str, now: float) -> int:
    """Nanoseconds since 1970. Raises ValueError. A time without an offset is UTC."""
    if text == "earliest":
        return 0
    if ago := _AGO.fullmatch(text):
        return max(1, int((now - int(ago[1]) * _SECONDS[ago[2]]) * 1e9))
    try:
        time = datetime.fromisoformat(text)
        stamp = time.replace(tzinfo=time.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("write earliest, a time ago like 10m (s, m, h, d), or an ISO 8601 time") from None
    return max(1, int(stamp * 1e9))


def check_since(text: str) -> str:
    parse_since(text, 0)
    return text


class Words(BaseModel):
    """The query words of the service, on every stream."""

    model_config = ConfigDict(frozen=True)

    last_event_id: Annotated[
        str | None, Field(description="The cursor to go on from; the header `Last-Event-ID` comes first.")
    ] = None
    since: Annotated[
        str | None,
        AfterValidator(check_since),
        Field(description="Where the cursor says nothing: `earliest`, a time ago like `10m`, or an ISO 8601 time."),
    ] = None
    limit: Annotated[int | None, Field(ge=1, description="End after so many events.")] = None
    events: Annotated[
        list[str] | None, Field(max_length=64, description="Only events of these names, separated by commas.")
    ] = None
    qualify: Annotated[bool, Field(description="Name events `source/name`.")] = False

    def since_time(self, now: float) -> int | None:
        """`since` as nanoseconds since 1970, 0 for the earliest; None if it is not said. `now`: seconds since 1970."""
        return None if self.since is None else parse_since(self.since, now)


NO_WORDS = Words()


def read_query(request: Request, limits: Limits) -> Query:
    """The query as name -> values. Raises TooLargeError for one that is too long."""
    if len(request.scope["query_string"]) > limits.query:
        raise TooLargeError(
            f"the query is longer than {limits.query} bytes: send the parameters as a JSON body by POST"
        )
    query: Query = {}
    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        query.setdefault(name, []).append(value)
    return query


def take_words(query: Query, wanted: Sequence[EnabledSource]) -> Words:
    """The words of the service; what stays in `query` is for the sources."""
    values: dict[str, Any] = {}
    if query.keys().isdisjoint(Words.model_fields):
        return NO_WORDS
    for name in query.keys() & Words.model_fields.keys():
        given = query.pop(name)
        if name == "events":
            values[name] = [event for value in given for event in value.split(",") if event]
        elif name == "last_event_id":
            values[name] = next((value for value in reversed(given) if value), None)
        elif len(given) > 1:
            refuse([error(("query", name), "Given more than once", given)])
        else:
            values[name] = given[0]
    try:
        words = Words.model_validate(values)
    except ValidationError as invalid:
        refuse(list(located(invalid, lambda loc: ("query", *loc))))
    _check_events(words.events, wanted)
    return words


def _check_events(names: Sequence[str] | None, wanted: Sequence[EnabledSource]) -> None:
    if names is None or any(enabled.source.relays for enabled in wanted):
        return  # a relay's names are known at run time only
    known = {name for enabled in wanted for name in enabled.source.events.values()}
    qualified = {f"{enabled.name}/{name}" for enabled in wanted for name in enabled.source.events.values()}
    unknown = [name for name in names if name not in known | qualified]
    if unknown or not names:
        text = (
            f"No event {unknown[0][:MAX_SHOWN]!r} here{suggestion(unknown[0], known)}" if unknown else "No name given"
        )
        refuse([error(("query", "events"), text, ",".join(names))])


def take_selection(query: Query, catalog: Sources, limits: Limits) -> list[EnabledSource]:
    """`sources=a,b`. Raises UnknownSourceError; refuses an empty one, too many, and one source twice."""
    if "sources" not in query:
        refuse(
            [error(("query", "sources"), "Field required: name the sources, like sources=a,b", None, kind="missing")]
        )
    names = [name.strip() for value in query.pop("sources") for name in value.split(",")]
    return select([name for name in names if name], catalog, ("query", "sources"), limits)


def select(names: Sequence[str], catalog: Sources, loc: tuple[str, ...], limits: Limits) -> list[EnabledSource]:
    if not names:
        refuse([error(loc, "Name at least one source", None)])
    if len(names) > limits.sources:
        refuse([error(loc, f"At most {limits.sources} sources in one stream", len(names))])
    if twice := [name for name in names if names.count(name) > 1]:
        refuse([error(loc, f"Source {twice[0][:MAX_SHOWN]!r} is named twice", ",".join(names))])
    return [catalog.source(name) for name in names]


def wanted_by_query(query: Query, wanted: Sequence[EnabledSource]) -> list[Wanted]:
    """`message=hi` goes to every source that has the parameter, `echo.message=hi` to that one, and wins."""
    given: dict[str, dict[str, Any]] = {enabled.name: {} for enabled in wanted}
    errors: list[Error] = []
    for name, values in sorted(query.items(), key=lambda item: "." in item[0]):
        takers = _takers(name, wanted)
        if not takers:
            errors.append(error(("query", name), _no_taker(name, wanted), values[0], kind="extra_forbidden"))
        for enabled in takers:
            parameter = name.rpartition(".")[2]
            try:
                given[enabled.name][parameter] = _query_value(enabled.query_kinds.get(parameter), values)
            except ValueError as invalid:
                errors.append(error(("query", name), str(invalid), values[0]))

    def loc(enabled: EnabledSource, found: tuple[Any, ...]) -> tuple[Any, ...]:
        if not found:
            return ("query",)
        long = f"{enabled.name}.{found[0]}"
        is_short = long not in query and (len(wanted) == 1 or found[0] in query)
        return ("query", found[0] if is_short else long, *found[1:])

    return _validate(wanted, given, loc, errors)


def _takers(name: str, wanted: Sequence[EnabledSource]) -> list[EnabledSource]:
    prefix, dot, _ = name.rpartition(".")
    if dot:
        return [enabled for enabled in wanted if enabled.name == prefix]
    # One that has it fixed is passed over while another may take it; alone, it says that it is fixed.
    return [enabled for enabled in wanted if name in enabled.settable] or [
        enabled for enabled in wanted if name in enabled.source.parameters.model_fields
    ]


def refuse_rest(query: Query) -> None:
    """With POST, the parameters of sources stand in the body, and nowhere else."""
    text = "With POST, write the parameters of sources in the body; the query takes " + ", ".join(Words.model_fields)
    if query:
        refuse([error(("query", name), text, values[0], kind="extra_forbidden") for name, values in query.items()])


def wanted_by_body(body: Mapping[str, Any], wanted: Sequence[EnabledSource], at: tuple[str, ...]) -> list[Wanted]:
    """`body` holds the parameters of each source under its name."""
    errors: list[Error] = []
    given: dict[str, Mapping[str, Any]] = {}
    for enabled in wanted:
        value = body.get(enabled.name)
        given[enabled.name] = value if isinstance(value, Mapping) else {}
        if not isinstance(value, (Mapping, type(None))):
            errors.append(error((*at, enabled.name), "Input should be an object with the source's parameters", value))
    is_nested = at != ("body",)
    return _validate(wanted, given, lambda enabled, found: (*at, *(enabled.name,) * is_nested, *found), errors)


async def read_body(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object in the body. Raises TooLargeError, and what `parse_body` does."""
    return parse_body(request, await read_text(request, limits))


async def read_text(request: Request, limits: Limits) -> bytes:
    """The body as it came. Raises TooLargeError."""
    text = bytearray()
    if int(request.headers.get("content-length") or 0) > limits.body:
        raise TooLargeError(f"the body is larger than {limits.body} bytes")
    async for chunk in request.stream():
        text += chunk
        if len(text) > limits.body:
            raise TooLargeError(f"the body is larger than {limits.body} bytes")
    return bytes(text)


def parse_body(request: Request, text: bytes) -> dict[str, Any]:
    """The JSON object in it, {} if it is empty. Raises MediaTypeError; refuses what is no JSON.

    The media type is insisted on: a page of another origin may post text/plain without being asked, and a run can
    cost money.
    """
    if not text.strip():
        return {}
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise MediaTypeError("send the body as JSON, with Content-Type: application/json")
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as invalid:
        refuse([error(("body",), f"JSON decode error: {invalid}", None, kind="json_invalid")])
    if not isinstance(value, dict):
        refuse([error(("body",), "Input should be an object", value, kind="dict_type")])
    return dict(value)


def sources_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `sources` of `{"sources": {"echo": {"message": "hi"}, "clock": {}}}`."""
    surplus = [
        error(("body", name), 'The body is {"sources": {name: parameters}}', None, kind="extra_forbidden")
        for name in islice((name for name in body if name != "sources"), MAX_FAULTS)
    ]
    sources = body.get("sources", {})
    if not isinstance(sources, dict):
        text = "Input should be an object: the parameters of each source under its name"
        surplus.append(error(("body", "sources"), text, sources, kind="dict_type"))
    if surplus:
        refuse(surplus)
    return dict(sources)


def _validate(
    wanted: Sequence[EnabledSource], given: Mapping[str, Mapping[str, Any]], loc: Any, errors: list[Error]
) -> list[Wanted]:
    found: list[Wanted] = []
    for enabled in wanted:
        try:
            found.append(Wanted(enabled, enabled.validate(given[enabled.name]), given[enabled.name]))
        except ValidationError as invalid:
            errors += located(invalid, lambda place, enabled=enabled: loc(enabled, place))
    if errors:
        refuse(errors)
    return found


def _query_value(kind: str | None, values: list[str]) -> Any:
    """What pydantic shall see: a list for a list, a value for JSON, else the text. Raises ValueError."""
    if kind == "list":
        return values
    if len(values) > 1:
        raise ValueError("Given more than once")
    if kind == "json":
        try:
            return from_json(values[0], allow_inf_nan=False)
        except ValueError as invalid:
            raise ValueError(f"Write it as JSON: {invalid}") from None
    return values[0]


def _no_taker(name: str, wanted: Sequence[EnabledSource]) -> str:
    prefix, dot, _ = name.rpartition(".")
    if dot and prefix not in {enabled.name for enabled in wanted}:
        return f"{prefix[:MAX_SHOWN]!r} is not among the sources of this stream"
    known = sorted({parameter for enabled in wanted for parameter in enabled.settable})
    return f"No source of this stream has the parameter {name[:MAX_SHOWN]!r}{suggestion(name, known)}"


def error(loc: Iterable[Any], text: str, value: Any, *, kind: str = "value_error") -> Error:
    """One entry of FastAPI's `detail`; a long or odd value is not repeated."""
    found: Error = {"type": kind, "loc": list(loc), "msg": text}
    is_odd = isinstance(value, float) and not isfinite(value)  # 1e999 is JSON; what it is read as cannot be written
    if isinstance(value, (str, int, float, bool)) and not is_odd and len(str(value)) <= MAX_SHOWN:
        found["input"] = value
    return found


def located(invalid: ValidationError, loc: Any) -> Iterable[Error]:
    for fault in invalid.errors(include_url=False, include_context=False)[:MAX_FAULTS]:
        yield error(loc(tuple(fault["loc"])), fault["msg"], fault.get("input"), kind=fault["type"])


def refuse(errors: list[Error]) -> NoReturn:
    """Raises a 422 with the first of the errors."""
    raise RequestValidationError(errors[:MAX_FAULTS])
