"""The promises of `@source`: what it reads from a signature, and what it refuses, with the remedy."""

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import pytest
from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError
from sse_starlette import ServerSentEvent
from typing_extensions import TypeAliasType

from distributions import on_path
from eventmux import ConfigOnly, Context, DefinitionError, Event, EventOf, Source, SourceError, source
from eventmux.errors import UndeclaredEventError
from eventmux.plugins import load_plugins


class Tick(Event):
    at: int


class Tock(Event):
    at: int


class Quote(BaseModel):
    price: float


async def ticks() -> AsyncIterator[Tick]:
    yield Tick(at=1)


def define(function: Callable[..., Any], **options: Any) -> Source[...]:
    """@source, where a test gives it what a type checker would refuse already."""
    return source(**options)(function) if options else source(function)


def refusal(function: Callable[..., Any], **options: Any) -> str:
    with pytest.raises(DefinitionError) as refused:
        define(function, **options)
    return str(refused.value)


# The name and the description


@pytest.mark.parametrize(("function", "name"), [("clock", "clock"), ("reverse_echo", "reverse-echo"), ("x2_y", "x2-y")])
def test_a_source_is_named_after_its_function_in_kebab_case(function: str, name: str) -> None:
    async def generator() -> AsyncIterator[Tick]:
        yield Tick(at=1)

    generator.__name__ = function
    assert source(generator).name == name


def test_a_name_that_is_given_wins_over_the_functions() -> None:
    assert source(name="beat-2")(ticks).name == "beat-2"


@pytest.mark.parametrize(
    "name", ["Clock", "re_verse", "-a", "a-", "a--b", "2x", "a b", "a.b", "a/b", "é", "x" * 64, "a\n"]
)
def test_a_name_that_is_not_kebab_case_is_refused(name: str) -> None:
    assert refusal(ticks, name=name) == (
        f"source {name!r}: a name is kebab-case, like 'reverse-echo', of at most 63 letters"
    )


def test_a_function_whose_name_gives_no_name_is_refused() -> None:
    async def _private() -> AsyncIterator[Tick]:
        yield Tick(at=1)

    assert refusal(_private) == "source '-private': a name is kebab-case, like 'reverse-echo', of at most 63 letters"


def test_the_docstring_is_the_description_without_its_indentation() -> None:
    async def described() -> AsyncIterator[Tick]:
        """One line.

        Another.
        """
        yield Tick(at=1)

    assert source(described).description == "One line.\n\nAnother."
    assert source(ticks).description == ""


def test_a_source_is_private_unless_its_author_says_shared() -> None:
    assert (source(ticks).policy.shared, source(shared=True)(ticks).policy.shared) == (False, True)


async def test_calling_a_source_calls_its_function(anyio_backend: str) -> None:
    @source
    async def count(to: int) -> AsyncIterator[Tick]:
        for at in range(to):
            yield Tick(at=at)

    assert [event.at async for event in count(2)] == [0, 1]


# What is no source


async def plain() -> None:
    """An async function without a yield."""


def sync_generator() -> Iterator[Tick]:
    yield Tick(at=1)


def function() -> AsyncIterator[Tick]:
    return ticks()


class Ticks:
    def __aiter__(self) -> AsyncIterator[Tick]:
        return ticks()


@pytest.mark.parametrize("thing", [plain, sync_generator, function, Ticks, len], ids=lambda thing: thing.__name__)
def test_what_is_no_async_generator_function_is_refused(thing: Callable[..., Any]) -> None:
    assert refusal(thing, name="mine") == (
        "source 'mine': it is not an async generator: write 'async def' and 'yield' its events"
    )


# What it yields


async def generator(x: int = 1) -> Any:
    yield Tick(at=x)


def returning(annotation: Any) -> Callable[..., Any]:
    """The generator with this return annotation."""

    @functools.wraps(generator)
    async def copy(x: int = 1) -> Any:
        yield Tick(at=x)

    del copy.__wrapped__
    copy.__annotations__ = {"x": int} | ({} if annotation is inspect.Signature.empty else {"return": annotation})
    return copy


TickOrTock = TypeAliasType("TickOrTock", Tick | Tock)


@pytest.mark.parametrize(
    ("annotation", "names"),
    [
        (AsyncIterator[Tick], {"tick"}),
        (AsyncGenerator[Tick, None], {"tick"}),
        (AsyncIterable[Tick], {"tick"}),
        (AsyncIterator[Tick | Tock], {"tick", "tock"}),
        (AsyncIterator[Union[Tick, Tock]], {"tick", "tock"}),  # noqa: UP007
        (AsyncIterator[TickOrTock], {"tick", "tock"}),
        (AsyncIterator[Annotated[Tick | Tock, "a note"]], {"tick", "tock"}),
        (AsyncIterator[Annotated[Tick, "a note"] | Tock], {"tick", "tock"}),
        (AsyncIterator[TickOrTock | EventOf[Quote]], {"tick", "tock", "quote"}),
    ],
    ids=str,
)
def test_the_events_are_those_of_the_return_annotation(annotation: Any, names: set[str]) -> None:
    read = define(returning(annotation))
    assert set(read.events.values()) == names
    assert not read.relays


def test_a_source_may_relay_events_that_are_named_at_run_time() -> None:
    read = define(returning(AsyncIterator[Tick | ServerSentEvent]))
    assert (set(read.events.values()), read.relays) == ({"tick"}, True)
    assert define(returning(AsyncIterator[ServerSentEvent])).relays


@pytest.mark.parametrize(
    "annotation", [inspect.Signature.empty, None, Tick, Iterator[Tick], AsyncIterator, list[Tick], Any], ids=str
)
def test_a_source_that_does_not_say_what_it_yields_is_refused(annotation: Any) -> None:
    assert refusal(returning(annotation)) == (
        "source 'generator': say what it yields: -> AsyncIterator[MyEvent], or AsyncIterator[A | B]"
    )


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (AsyncIterator[str], "str"),
        (AsyncIterator[dict[str, int]], "dict"),
        (AsyncIterator[Quote], "Quote"),
        (AsyncIterator[Any], "Any"),
        (AsyncIterator[Event], "Event"),
        (AsyncIterator[Tick | None], "NoneType"),
        (AsyncIterator[Tick | Quote], "Quote"),
        (AsyncIterator[TypeAliasType("Words", str)], "str"),  # type: ignore[misc]
    ],
    ids=str,
)
def test_a_source_that_yields_what_is_no_event_is_refused_with_what_to_yield(annotation: Any, shown: str) -> None:
    assert refusal(returning(annotation)) == (
        f"source 'generator': it yields {shown}: yield subclasses of Event, EventOf[{shown}] or ServerSentEvent"
    )


def test_two_events_of_one_name_are_refused() -> None:
    class Tick2(Event, name="tick"):
        pass

    assert refusal(returning(AsyncIterator[Tick | Tick2])) == (
        "source 'generator': two of its events are named 'tick': give one another name"
    )


# The names of events


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Tick", "tick"),
        ("ReverseEcho", "reverse_echo"),
        ("HTTPServerError", "http_server_error"),
        ("ServerHTTP", "server_http"),
        ("Quote2Bid", "quote2_bid"),
        ("V2", "v2"),
        ("already_snake", "already_snake"),
    ],
)
def test_an_event_is_named_after_its_class_in_snake_case(name: str, expected: str) -> None:
    named: type[Event] = type(name, (Event,), {})
    assert named.event_name == expected


def test_a_name_that_is_given_is_the_events() -> None:
    class Price(Event, name="quote.v2"):
        pass

    assert Price.event_name == "quote.v2"


def test_a_subclass_of_an_event_has_a_name_of_its_own() -> None:
    class Price(Event, name="quote.v2"):
        pass

    class Bid(Price):
        pass

    assert Bid.event_name == "bid"


@pytest.mark.parametrize("name", ["error", "open", "stream.end", "stream.x", "stream."])
def test_a_name_that_is_the_services_or_eventsources_own_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        type("Mine", (Event,), {}, name=name)
    assert str(refused.value) == (
        f"event Mine: the event name {name!r} is reserved: 'error', 'open' and 'stream.*' are not a source's; "
        'say class Mine(Event, name="...")'
    )


@pytest.mark.parametrize("name", ["Open", "Error"])
def test_a_class_whose_own_name_is_reserved_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="is reserved"):
        type(name, (Event,), {})


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\0b", "\ud800", "x" * 129])
def test_a_name_that_would_break_the_framing_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="event Mine: "):
        type("Mine", (Event,), {}, name=name)


def test_an_event_around_a_payload_is_named_after_the_payload_and_its_data_is_the_payloads() -> None:
    assert EventOf[Quote].event_name == "quote"
    assert EventOf[Quote](Quote(price=1.5)).model_dump_json() == '{"price":1.5}'


def test_what_is_yielded_has_the_name_that_was_declared() -> None:
    read = define(returning(AsyncIterator[Tick | EventOf[Quote]]))
    assert read.event_name(Tick(at=1)) == "tick"
    assert read.event_name(EventOf[Quote](Quote(price=1))) == "quote"
    assert read.event_name(EventOf(Quote(price=1))) == "quote"


class Dearer(Quote):
    pass


@pytest.mark.parametrize(
    "event",
    [Tock(at=1), EventOf(Dearer(price=1)), EventOf(1), ServerSentEvent(data="x"), Quote(price=1), {"at": 1}, None],
    ids=lambda event: type(event).__name__,
)
def test_what_was_not_declared_is_an_error_that_says_what_is(event: Any) -> None:
    read = define(returning(AsyncIterator[Tick | EventOf[Quote]]))
    with pytest.raises(UndeclaredEventError) as refused:
        read.event_name(event)
    assert str(refused.value).endswith("and its annotation allows Tick, EventOf[Quote]")
    assert str(refused.value).startswith(f"it yielded {type(event).__name__}")


def test_a_relayed_event_has_its_own_name_or_the_default_of_eventsource() -> None:
    read = define(returning(AsyncIterator[ServerSentEvent]))
    assert read.event_name(ServerSentEvent(data="x", event="news")) == "news"
    assert read.event_name(ServerSentEvent(data="x")) == "message"


# Parameters


async def wanting(
    count: int,
    *,
    interval: Annotated[float, Field(gt=0, description="seconds")] = 1.0,
    mode: Literal["slow", "fast"] = "slow",
    tags: list[str] | None = None,
) -> AsyncIterator[Tick]:
    yield Tick(at=count)


def test_the_parameters_are_a_model_of_the_signature() -> None:
    parameters = source(wanting).parameters
    assert parameters.model_validate({"count": "3"}).model_dump() == {
        "count": 3,
        "interval": 1.0,
        "mode": "slow",
        "tags": None,
    }
    schema = parameters.model_json_schema()
    assert schema["required"] == ["count"]
    assert schema["properties"]["interval"] == {
        "default": 1.0,
        "description": "seconds",
        "exclusiveMinimum": 0,
        "title": "Interval",
        "type": "number",
    }


@pytest.mark.parametrize(
    "given",
    [{}, {"count": "x"}, {"count": 1, "interval": 0}, {"count": 1, "mode": "odd"}, {"count": 1, "extra": 1}],
    ids=str,
)
def test_parameters_that_are_missing_wrong_or_surplus_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        source(wanting).parameters.model_validate(given)


def test_an_error_about_parameters_does_not_show_what_was_given() -> None:
    with pytest.raises(ValidationError) as refused:
        source(wanting).parameters.model_validate({"count": "hunter2"})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["copy", "json", "schema", "dict", "model", "model_config_name", "construct", "validate"]
)
def test_a_parameter_may_be_named_like_an_attribute_of_basemodel(name: str) -> None:
    async def shadow() -> AsyncIterator[Tick]:
        yield Tick(at=1)

    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="x", annotation=str)
    shadow.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    shadow.__annotations__ = {name: str, "return": AsyncIterator[Tick]}
    read = source(shadow)
    assert read.parameters.model_validate({name: "y"}).model_dump() == {name: "y"}


def test_a_parameter_without_an_annotation_is_refused() -> None:
    async def loose(interval=1.0) -> AsyncIterator[Tick]:  # type: ignore[no-untyped-def]
        yield Tick(at=1)

    assert refusal(loose) == "source 'loose': parameter 'interval' has no annotation: say its type"


@pytest.mark.parametrize("name", ["sources", "last_event_id", "since", "limit", "events", "qualify", "ticket"])
def test_a_parameter_named_like_a_word_of_the_service_is_refused(name: str) -> None:
    async def greedy() -> AsyncIterator[Tick]:
        yield Tick(at=1)

    greedy.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=int)]
    )
    greedy.__annotations__ = {name: int, "return": AsyncIterator[Tick]}
    assert refusal(greedy) == f"source 'greedy': parameter {name!r} is a word of the service: give it another name"


async def with_args(*numbers: int) -> AsyncIterator[Tick]:
    yield Tick(at=1)


async def with_kwargs(**numbers: int) -> AsyncIterator[Tick]:
    yield Tick(at=1)


async def with_positional(number: int, /) -> AsyncIterator[Tick]:
    yield Tick(at=1)


@pytest.mark.parametrize(
    ("function", "shown"),
    [(with_args, "*numbers: int"), (with_kwargs, "**numbers: int"), (with_positional, "number: int")],
)
def test_a_parameter_that_cannot_be_given_by_name_is_refused(function: Callable[..., Any], shown: str) -> None:
    assert refusal(function).endswith(f"parameter {shown} cannot be set by name: declare each parameter by itself")


def test_a_parameter_of_a_type_that_no_json_can_hold_is_refused() -> None:
    class Opaque:
        pass

    async def odd(thing: Opaque) -> AsyncIterator[Tick]:
        yield Tick(at=1)

    assert refusal(odd).startswith("source 'odd': its parameters cannot be read: ")


def test_parameters_that_belong_together_are_checked_together() -> None:
    def ordered(*, start: int, stop: int) -> None:
        if start > stop:
            raise ValueError("start lies behind stop")

    @source(check=ordered)
    async def span(start: int, stop: int = 10) -> AsyncIterator[Tick]:
        yield Tick(at=start)

    assert span.parameters.model_validate({"start": 1}).model_dump() == {"start": 1, "stop": 10}
    with pytest.raises(ValidationError, match="start lies behind stop"):
        span.parameters.model_validate({"start": 11})


# What is not a client's to set


def test_a_context_is_injected_and_not_a_parameter() -> None:
    async def knowing(ctx: Context, n: int = 1) -> AsyncIterator[Tick]:
        yield Tick(at=n)

    read = source(knowing)
    assert (read.context, list(read.parameters.model_fields)) == ("ctx", ["n"])


async def test_a_run_has_its_context_and_its_parameters(anyio_backend: str) -> None:
    @source
    async def knowing(n: int, *, surroundings: Context, step: int = 2) -> AsyncIterator[Tick]:
        yield Tick(at=n + step + len(surroundings.source))

    run = knowing.run(knowing.parameters.model_validate({"n": 1}), Context(source="four"))
    assert [event async for event in run] == [Tick(at=7)]


Key = Annotated[SecretStr, AfterValidator(lambda key: key)]


def test_what_is_for_the_configuration_only_is_known() -> None:
    async def paid(
        api_key: Annotated[SecretStr, ConfigOnly],
        key: Annotated[Key, ConfigOnly()],
        base_url: Annotated[str, Field(max_length=9), ConfigOnly] = "x",
        prompt: str = "",
    ) -> AsyncIterator[Tick]:
        yield Tick(at=1)

    assert source(paid).config_only == {"api_key", "key", "base_url"}


# A plugin's module, as it is written


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Path]:
    with on_path(tmp_path):
        yield tmp_path


POSTPONED = """from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from eventmux import ConfigOnly, Context, Event, source
from pydantic import Field, SecretStr

if TYPE_CHECKING:
    from decimal import Decimal


class Tick(Event):
    now: datetime
"""


def test_annotations_may_be_postponed(local: Path) -> None:
    text = """
@source
async def late(
    ctx: Context, key: Annotated[SecretStr, ConfigOnly], interval: Annotated[float, Field(gt=0)] = 1.0
) -> AsyncIterator[Tick]:
    yield Tick(now=datetime.now())
"""
    (local / "late.py").write_text(POSTPONED + text, "utf-8")
    plugins = load_plugins(directory=local)
    assert plugins.broken == []
    read, _ = plugins.offers["late"]
    assert (read.context, *read.config_only, *read.events.values()) == ("ctx", "key", "tick")
    assert list(read.parameters.model_fields) == ["key", "interval"]


@pytest.mark.parametrize("signature", ["price: Decimal) -> AsyncIterator[Tick]", ") -> AsyncIterator[Decimal]"])
def test_an_annotation_that_only_a_type_checker_sees_is_named_with_the_remedy(local: Path, signature: str) -> None:
    (local / "late.py").write_text(f"{POSTPONED}\n@source\nasync def late({signature}:\n    yield 1\n", "utf-8")
    (plugin,) = load_plugins(directory=local).broken
    assert plugin.error == (
        "source 'late': the annotation 'Decimal' is not known at run time: "
        "import or define it at the top of the module, not under TYPE_CHECKING (late, line 17)"
    )


def test_the_front_door_has_all_that_a_source_needs() -> None:
    error = SourceError("The exchange is closed.", retryable=True)
    assert (str(error), error.message, error.retryable) == ("The exchange is closed.", "The exchange is closed.", True)
    assert SourceError("no").retryable is False


# Not yet so in source.py


class Color(BaseModel):
    red: int


def test_a_partial_function_is_refused_with_the_remedy() -> None:
    async def count(to: int) -> AsyncIterator[Tick]:
        yield Tick(at=to)

    assert refusal(functools.partial(count, 3), name="three").startswith("source 'three': ")


Secret = TypeAliasType("Secret", Annotated[SecretStr, ConfigOnly])


@pytest.mark.parametrize("annotation", [Annotated[SecretStr, ConfigOnly] | None, Secret], ids=["or None", "an alias"])
def test_config_only_is_seen_wherever_it_stands_in_the_annotation(annotation: Any) -> None:
    async def paid(api_key: Any) -> AsyncIterator[Tick]:
        yield Tick(at=1)

    paid.__annotations__["api_key"] = annotation
    assert source(paid).config_only == {"api_key"}


def test_a_parameter_with_an_alias_is_refused() -> None:
    async def aliased(from_: Annotated[str, Field(alias="from")] = "x") -> AsyncIterator[Tick]:
        yield Tick(at=1)

    refusal(aliased)


@pytest.mark.parametrize("name", ["_private", "model_config"])
def test_a_parameter_that_pydantic_would_lose_is_refused(name: str) -> None:
    async def lossy() -> AsyncIterator[Tick]:
        yield Tick(at=1)

    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="x", annotation=str)
    lossy.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    lossy.__annotations__ = {name: str, "return": AsyncIterator[Tick]}
    refusal(lossy)


def test_two_contexts_are_refused() -> None:
    async def twice(one: Context, two: Context) -> AsyncIterator[Tick]:
        yield Tick(at=1)

    refusal(twice)


@pytest.mark.parametrize("annotation", ["list[", "inspect.Nope"])
def test_an_annotation_that_cannot_be_read_is_named(annotation: str) -> None:
    async def torn(x: Any) -> AsyncIterator[Tick]:
        yield Tick(at=1)

    torn.__annotations__["x"] = annotation
    assert refusal(torn).startswith("source 'torn': ")


def test_a_default_that_its_own_annotation_does_not_allow_is_refused() -> None:
    async def wrong(interval: Annotated[float, Field(gt=0)] = 0.0) -> AsyncIterator[Tick]:
        yield Tick(at=1)

    refusal(wrong)


@pytest.mark.parametrize("annotation", [EventOf, EventOf[list[Color]], EventOf[Color | Quote]], ids=str)
def test_an_event_around_what_has_no_name_is_refused(annotation: Any) -> None:
    refusal(returning(AsyncIterator[annotation]))


def test_an_event_whose_field_only_a_type_checker_knows_is_refused(local: Path) -> None:
    text = """
class Price(Event):
    price: Decimal

@source
async def late() -> AsyncIterator[Price]:
    yield Price(price=1)
"""
    (local / "late.py").write_text(POSTPONED + text, "utf-8")
    (plugin,) = load_plugins(directory=local).broken
    assert "`Decimal`" in str(plugin.error)
