"""openai: a model's answer as it is written, from OpenAI or a service that speaks its API."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr

from eventmux import Bounds, ConfigOnly, SourceError, source
from eventmux_plugins.openai import chat, responses
from eventmux_plugins.openai.events import Delta, Done, Reasoning, Refusal, Started, ToolCall, Usage
from eventmux_plugins.openai.failures import explained
from eventmux_plugins.openai.question import Effort, Message, Question, Text

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream

OPENAI = "https://api.openai.com/v1"  # said here, so that OPENAI_BASE_URL in the environment sends no key elsewhere
TRAILER = 5.0  # seconds to wait, after a whole answer, for its usage and the end of the stream


def one_of_prompt_or_messages(*, prompt: str | None, messages: list[Message] | None, **_: object) -> None:
    if (prompt is None) == (messages is None):
        told = "neither" if prompt is None else "both"
        raise ValueError(f"say either prompt (one question) or messages (a conversation): got {told}")


def header_safe(key: SecretStr) -> SecretStr:
    # A line break, as files end with one, would be refused with an error that shows the whole header.
    if not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()):
        raise ValueError("an API key is not empty and has no spaces, line breaks or letters outside ASCII")
    return key


Key = Annotated[SecretStr, AfterValidator(header_safe)]
# Without user, password or query: HTTP clients log URLs.
Url = Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$", max_length=2000)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


# Each piece is small: by the usual bound in events, a minute on a dead connection would be more than the history keeps.
@source(once=True, history=Bounds(events=100_000), check=one_of_prompt_or_messages)
async def openai(
    *,
    prompt: Text | None = None,
    messages: Annotated[list[Message], Field(min_length=1, max_length=100)] | None = None,
    system: Text | None = None,
    model: Annotated[str, Field(min_length=1, max_length=200)] = "gpt-5-mini",
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None,
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None,
    reasoning_effort: Effort | None = None,
    api: Literal["chat", "responses"] = "chat",
    api_key: Annotated[Key, ConfigOnly],
    base_url: Annotated[Url | None, ConfigOnly] = None,
    timeout: Annotated[Seconds, ConfigOnly] = 30.0,
    idle_timeout: Annotated[Seconds, ConfigOnly] = 60.0,
    extra_body: Annotated[dict[str, Any] | None, ConfigOnly] = None,
) -> AsyncIterator[Started | Delta | Reasoning | ToolCall | Refusal | Usage | Done]:
    """A model's answer to `prompt`, or to a conversation of `messages`, piece by piece.

    `base_url`: another service that speaks this API (vLLM, Ollama, OpenRouter, ...); it is asked with `max_tokens`,
    OpenAI itself with `max_completion_tokens`. `timeout`: seconds until the service begins to answer; `idle_timeout`:
    its longest silence after that. `extra_body`: more fields of the request, such as `tools`; they win over the others.

    Nothing is asked twice: a failure is told at once, with whether asking again can help. Closing this source
    closes the connection to the service, which ends the answer there.
    """
    question = Question(
        model=model,
        messages=tuple(messages or (Message(role="user", content=prompt or ""),)),
        system=system,
        temperature=temperature,
        max_tokens=max_tokens,
        reasoning_effort=reasoning_effort,
        compatible=base_url is not None,
        extra_body=extra_body or {},
    )
    style = chat if api == "chat" else responses
    answer: chat.Answer | responses.Answer = style.Answer(model)
    key = api_key.get_secret_value()
    with explained(model=model, key=key):
        async with (
            # In a thread: importing the SDK takes half a second, and each client's certificates take 20 ms to read.
            await asyncio.to_thread(client_of, base_url or OPENAI, key) as client,
            await begin(client, style.PATH, style.request(question), timeout) as stream,
        ):
            while (sent := await following(stream, idle_timeout, whole=answer.whole)) is not None:
                for event in answer.read(sent):
                    yield event
        for final in answer.end():
            yield final


def client_of(base_url: str, key: str) -> AsyncOpenAI:
    from openai import AsyncOpenAI

    # No retries: a question may have been paid for. No timeouts: the SDK's are started anew by every byte, and a
    # service that sends comments only would never be given up; ours, in begin and following, wait for an event.
    return AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=None)


async def begin(client: AsyncOpenAI, path: str, body: dict[str, Any], seconds: float) -> AsyncStream[object]:
    """The answer as plain objects. To make its own types of them, the SDK stops the event loop for half a second at
    the first answer of the responses API, and makes an audio event of every type that it does not know.
    """
    from openai import AsyncStream

    headers = {"Accept": "text/event-stream"}
    try:
        async with asyncio.timeout(seconds):
            return await client.post(
                path,
                body=body,
                options={"headers": headers},
                cast_to=object,
                stream=True,
                stream_cls=AsyncStream[object],
            )
    except TimeoutError as error:
        raise SourceError(f"The model service did not begin to answer for {seconds:g} s.", retryable=True) from error


async def following(stream: AsyncStream[object], idle_timeout: float, *, whole: bool) -> object:
    """What the service sends next, or None at the end. Once the answer is whole, its connection may break or hang."""
    from openai import APIConnectionError

    try:
        async with asyncio.timeout(min(idle_timeout, TRAILER) if whole else idle_timeout):
            return await anext(stream, None)
    except (TimeoutError, APIConnectionError) as error:
        if whole:
            return None
        if isinstance(error, TimeoutError):
            raise SourceError(f"The model service sent nothing for {idle_timeout:g} s.", retryable=True) from error
        raise
