"""openai: a model's answer as it is written, whichever service writes it, and a plain word when it fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import aclosing

import pytest
from pydantic import ValidationError

from eventmux import SourceError
from eventmux_plugins.openai import chat, openai, responses
from eventmux_plugins.openai.events import Delta, Done, Reasoning, Refusal, Started, ToolCall, Usage
from eventmux_plugins.openai.question import Message, Question
from openai_server import HELLO, SLOW_TOKENS, Upstream, openai_server

pytestmark = pytest.mark.anyio

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with openai_server() as upstream:
        yield upstream


@pytest.fixture
def upstream(server) -> Iterator[Upstream]:
    server.requests.clear()
    server.left = 0
    yield server
    server.wait_until(lambda: server.open_streams == 0)


@pytest.fixture(params=["chat", "responses"])
def api(request) -> str:
    return request.param


def asking(upstream: Upstream, model: str, **parameters: object):
    """The answer's events, through the parameters' validation."""
    given = {"prompt": "hi", "model": model, "api_key": KEY, "base_url": upstream.base_url, **parameters}
    return openai(**dict(openai.parameters.model_validate(given)))


async def answered(upstream: Upstream, model: str, **parameters: object) -> list[object]:
    return [event async for event in asking(upstream, model, **parameters)]


async def failed(upstream: Upstream, model: str, **parameters: object) -> tuple[list[object], SourceError]:
    """What came before the failure, and the failure."""
    events = []
    with pytest.raises(SourceError) as failure:
        async for event in asking(upstream, model, **parameters):
            events.append(event)
    return events, failure.value


def text(events: list[object], kind: type = Delta) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


async def test_an_answer_is_started_written_in_pieces_counted_and_done(upstream, api):
    assert [
        Started(id="chatcmpl-1" if api == "chat" else "resp_1", model="gpt-5-mini-2026"),
        *(Delta(text=piece) for piece in HELLO),
        Usage(input_tokens=9, output_tokens=12, reasoning_tokens=0),
        Done(finish_reason="stop"),
    ] == await answered(upstream, "gpt-5-mini", api=api)


@pytest.mark.parametrize("model", ["reasoner-deepseek", "reasoner-vllm", "reasoner-both"])
async def test_reasoning_is_told_once_however_the_service_says_it(upstream, api, model):
    events = await answered(upstream, model, api=api)

    assert [Reasoning(text="The user "), Reasoning(text="greets.")] == events[1:3]
    assert "Hello, world!" == text(events)
    assert Usage(input_tokens=9, output_tokens=12, reasoning_tokens=4) in events


@pytest.mark.parametrize(("model", "api"), [("tools", "chat"), ("tools-whole", "chat"), ("tools", "responses")])
async def test_tool_calls_are_put_together_from_their_fragments(upstream, model, api):
    events = await answered(upstream, model, api=api)

    assert [
        ToolCall(id="call_1", name="weather", arguments='{"city":"Berlin"}'),
        ToolCall(id="call_2", name="time", arguments="{}"),
    ] == [event for event in events if isinstance(event, ToolCall)]
    assert Done(finish_reason="tool_calls") == events[-1]


async def test_half_a_tool_call_is_not_told(upstream, api):
    events = await answered(upstream, "tools-length", api=api)

    assert [Usage, Done] == [type(event) for event in events if not isinstance(event, Started)]
    assert Done(finish_reason="length") == events[-1]


async def test_a_refusal_is_not_an_answer(upstream, api):
    events = await answered(upstream, "refusal", api=api)

    assert "I cannot do that." == text(events, Refusal)
    assert "" == text(events)


async def test_an_answer_that_is_too_long_is_done_for_that_reason(upstream, api):
    assert Done(finish_reason="length") == (await answered(upstream, "length", api=api))[-1]


async def test_usage_that_is_not_told_is_not_made_up(upstream, api):
    events = await answered(upstream, "no-usage", api=api)

    assert [] == [event for event in events if isinstance(event, Usage)]
    assert Done(finish_reason="stop") == events[-1]


async def test_usage_in_the_last_chunk_is_told_too(upstream):
    assert Usage(input_tokens=9, output_tokens=12, reasoning_tokens=0) in await answered(upstream, "usage-inline")


async def test_a_service_that_names_neither_answer_nor_model_is_understood(upstream, api):
    events = await answered(upstream, "no-id", api=api)

    assert Started(id=None, model="no-id") == events[0]
    assert "Hello, world!" == text(events)


async def test_events_that_nobody_has_heard_of_are_passed_over(upstream, api):
    assert [Started, *[Delta] * 4, Usage, Done] == [
        type(event) for event in await answered(upstream, "unknown-event", api=api)
    ]


@pytest.mark.parametrize("model", ["cut-after-finish", "silent-after-finish"])
async def test_a_whole_answer_is_done_even_if_its_usage_never_comes(upstream, monkeypatch, api, model):
    monkeypatch.setattr("eventmux_plugins.openai.TRAILER", 0.05)
    events = await answered(upstream, model, api=api)

    assert "Hello, world!" == text(events)
    assert Done(finish_reason="stop") == events[-1]


async def test_the_question_reaches_the_service_by_the_chat_api(upstream):
    tools = [{"type": "function", "function": {"name": "weather"}}]
    parameters = {"system": "Be kind.", "temperature": 0.5, "max_tokens": 7, "reasoning_effort": "low"}
    await answered(upstream, "m", extra_body={"tools": tools, "temperature": 0.1}, **parameters)

    [asked] = upstream.requests
    assert {
        "model": "m",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
        "temperature": 0.1,  # extra_body is the operator's, and wins
        "max_tokens": 7,
        "reasoning_effort": "low",
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": tools,
    } == asked.body
    assert f"Bearer {KEY}" == asked.headers["authorization"]


async def test_the_question_reaches_the_service_by_the_responses_api(upstream):
    parameters = {"system": "Be kind.", "temperature": 0.5, "max_tokens": 7, "reasoning_effort": "low"}
    await answered(upstream, "m", api="responses", extra_body={"reasoning": {"summary": "auto"}}, **parameters)

    [asked] = upstream.requests
    assert {
        "model": "m",
        "input": [{"role": "user", "content": "hi"}],
        "instructions": "Be kind.",
        "temperature": 0.5,
        "max_output_tokens": 7,
        "reasoning": {"effort": "low", "summary": "auto"},
        "stream": True,
        "store": False,
    } == asked.body


async def test_a_conversation_is_asked_as_it_stands(upstream, api):
    messages = [{"role": role, "content": role} for role in ("developer", "user", "assistant", "user")]
    await answered(upstream, "m", prompt=None, messages=messages, api=api)

    assert messages == upstream.requests[0].body["messages" if api == "chat" else "input"]


def test_what_is_not_set_is_not_sent():
    question = Question(model="m", messages=(Message(role="user", content="hi"),))

    assert {"model", "messages", "stream", "stream_options"} == set(chat.request(question))
    assert {"model", "input", "stream", "store"} == set(responses.request(question))


def test_openai_itself_is_asked_with_max_completion_tokens():
    question = Question(model="m", messages=(Message(role="user", content="hi"),), max_tokens=7)

    assert 7 == chat.request(question)["max_completion_tokens"]
    assert "max_tokens" not in chat.request(question)


FAILURES = [
    ("forbidden", False, "may not use the model 'forbidden', code: model_not_found."),
    ("missing", False, "has no model 'missing', or not for"),
    ("bad-request", False, "(HTTP 400, code: context_length_exceeded, parameter: messages)"),
    ("bad-labels", False, "The model service refused the request (HTTP 400)."),
    ("quota", False, "quota of the API key"),
    ("unpaid", False, "quota of the API key"),
    ("conflict", True, "(HTTP 409)"),
    ("rate-limit", True, "rate limit is reached"),
    ("overloaded", True, "(HTTP 503)"),
]


@pytest.mark.parametrize(("model", "retryable", "message"), FAILURES, ids=[model for model, *_ in FAILURES])
async def test_a_refused_question_says_why_and_whether_to_ask_again(upstream, api, model, retryable, message):
    events, failure = await failed(upstream, model, api=api)

    assert message in failure.message
    assert ([], retryable) == (events, failure.retryable)
    assert 1 == len(upstream.requests)  # asked once


async def test_a_refused_key_is_the_operators_to_mend(upstream, api):
    _, failure = await failed(upstream, "m", api=api, api_key="bad-key")

    assert "The model service refused the API key that this source is configured with." == failure.message
    assert not failure.retryable


BROKEN = [
    ("error-midstream", "chat", True, "failed in the middle of its answer, code: server_error."),
    ("error-midstream", "responses", True, "failed in the middle of its answer, code: server_error."),
    ("failed", "responses", False, "failed in the middle of its answer, code: invalid_prompt."),
    ("cut", "chat", True, "was cut in the middle of its answer"),
    ("cut", "responses", True, "was cut in the middle of its answer"),
    ("no-finish", "chat", True, "ended its answer before it was complete"),
    ("no-finish", "responses", True, "ended its answer before it was complete"),
    ("garbage", "chat", True, "sent something that is not an answer"),
    ("garbage", "responses", True, "sent something that is not an answer"),
    ("odd", "chat", True, "sent something that is not an answer"),
    ("odd", "responses", True, "sent something that is not an answer"),
]


@pytest.mark.parametrize(("model", "api", "retryable", "message"), BROKEN, ids=[f"{m}-{a}" for m, a, *_ in BROKEN])
async def test_a_broken_answer_is_told_as_far_as_it_went_and_never_done(upstream, model, api, retryable, message):
    events, failure = await failed(upstream, model, api=api)

    assert message in failure.message
    assert ([Started, Delta], retryable) == ([type(event) for event in events], failure.retryable)


@pytest.mark.parametrize("code", ["502", "429", "408", "overloaded", "rate_limit_exceeded"])
async def test_a_passing_trouble_is_worth_another_try(upstream, api, code):
    _, failure = await failed(upstream, f"code-{code}", api=api)

    assert (f"The model service failed in the middle of its answer, code: {code}.", True) == (
        failure.message,
        failure.retryable,
    )


@pytest.mark.parametrize("code", ["400", "403", "context_length_exceeded", "insufficient_quota", "Invalid-Image"])
async def test_a_lasting_trouble_is_not_worth_another_try(upstream, api, code):
    _, failure = await failed(upstream, f"code-{code}", api=api)

    assert not failure.retryable


async def test_a_connection_cut_in_an_error_text_is_a_cut_connection(upstream, api):
    events, failure = await failed(upstream, "cut-error", api=api)

    assert "was cut in the middle of its answer" in failure.message
    assert ([], True) == (events, failure.retryable)


async def test_of_several_answers_the_first_is_told(upstream):
    events = await answered(upstream, "two", extra_body={"n": 2})

    assert "Hello, world!" == text(events)
    assert Done(finish_reason="stop") == events[-1]


@pytest.mark.parametrize("model", ["silent", "comments", "dribble", "mute"])
async def test_silence_is_given_up_even_if_bytes_dribble_in(upstream, api, model):
    _, failure = await failed(upstream, model, api=api, idle_timeout=0.05)

    assert "The model service sent nothing for 0.05 s." == failure.message
    assert failure.retryable
    await asyncio.to_thread(upstream.wait_until, lambda: upstream.left == 1)


async def test_a_service_that_does_not_begin_to_answer_is_given_up(upstream, api):
    _, failure = await failed(upstream, "hang", api=api, timeout=0.05)

    assert ("The model service did not begin to answer for 0.05 s.", True) == (failure.message, failure.retryable)
    await asyncio.to_thread(upstream.wait_until, lambda: upstream.left == 1)


async def test_a_slow_reader_is_not_taken_for_a_silent_service(upstream, monkeypatch, api):
    monkeypatch.setattr("openai_server.SLOW_TOKENS", 20)  # 0.1 s in all, twice what a silence may last
    monkeypatch.setattr("openai_server.SLOW_PAUSE", 0.005)
    async with aclosing(asking(upstream, "slow", api=api, idle_timeout=0.05)) as events:
        await anext(events)
        await asyncio.to_thread(upstream.wait_until, lambda: upstream.open_streams == 0)

        assert [f"{number} " for number in range(20)] == [e.text async for e in events if isinstance(e, Delta)]


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:{closed}/v1", "http://no-such-host.invalid/v1"])
async def test_a_service_that_is_not_there_is_unreachable(upstream, api, base_url):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        base_url = base_url.format(closed=unused.getsockname()[1])
        _, failure = await failed(upstream, "m", api=api, base_url=base_url)

    assert ("The model service cannot be reached.", True) == (failure.message, failure.retryable)


async def test_closing_the_source_ends_the_answer_at_the_service(upstream, api):
    async with aclosing(asking(upstream, "slow", api=api)) as events:
        async for event in events:
            if event == Delta(text="2 "):
                break

    await asyncio.to_thread(upstream.wait_until, lambda: upstream.left == 1 and upstream.open_streams == 0)


@pytest.mark.parametrize("model", ["silent", "hang"])
async def test_cancelling_the_reader_ends_the_answer_at_the_service(upstream, api, model):
    reading = asyncio.create_task(answered(upstream, model, api=api))
    await asyncio.to_thread(upstream.wait_until, lambda: upstream.open_streams == 1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    await asyncio.to_thread(upstream.wait_until, lambda: upstream.left == 1 and upstream.open_streams == 0)


async def test_nothing_is_left_over_after_an_answer_however_it_ended(upstream, api):
    before = asyncio.all_tasks()
    await answered(upstream, "m", api=api)
    await failed(upstream, "cut", api=api)
    await failed(upstream, "silent", api=api, idle_timeout=0.01)
    async with aclosing(asking(upstream, "slow", api=api)) as events:
        await anext(events)

    gc.collect()  # what is not closed warns now, and a warning is an error
    for _ in range(3):
        await asyncio.sleep(0)
    assert before == asyncio.all_tasks()


async def test_a_slow_answer_is_complete_and_in_order(upstream, monkeypatch, api):
    monkeypatch.setattr("openai_server.SLOW_PAUSE", 0)

    assert [str(number) for number in range(SLOW_TOKENS)] == text(await answered(upstream, "slow", api=api)).split()


@pytest.mark.parametrize("model", [*(model for model, *_ in FAILURES), "error-midstream", "cut", "garbage", "odd"])
async def test_a_failure_shows_the_client_no_key_and_no_address(upstream, api, model):
    _, failure = await failed(upstream, model, api=api)

    for secret in (KEY, "127.0.0.1", "internal.example", "http://"):
        assert secret not in failure.message


@pytest.mark.parametrize("model", [model for model, *_ in FAILURES])
async def test_the_log_shows_the_original_error_and_no_key(upstream, caplog, api, model):
    caplog.set_level(logging.DEBUG)
    _, failure = await failed(upstream, model, api=api)

    logged = "".join(traceback.format_exception(failure)) + caplog.text
    assert f"Error code: {failure.__cause__.status_code}" in logged
    assert "[api_key]" in logged
    assert KEY not in logged


async def test_the_log_shows_what_a_service_said_when_it_failed(upstream):
    _, failure = await failed(upstream, "failed", api="responses")

    assert "invalid_prompt: Not like that" in "".join(traceback.format_exception(failure))


async def test_what_the_service_was_told_by_others_stays_out_of_the_log(upstream):
    _, failure = await failed(upstream, "odd")

    assert "'none'" not in "".join(traceback.format_exception(failure))


async def test_an_error_of_our_own_stays_what_it_is_without_the_key(upstream, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError(f"a bug, with {KEY}")

    monkeypatch.setattr(chat.Answer, "read", broken)
    with pytest.raises(RuntimeError, match=r"^a bug, with \[api_key\]$"):
        await answered(upstream, "m")


async def test_the_environment_does_not_send_the_key_elsewhere(upstream, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.base_url)
    monkeypatch.setattr("eventmux_plugins.openai.OPENAI", "http://127.0.0.1:1/v1")
    await failed(upstream, "m", base_url=None)

    assert [] == upstream.requests


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "say either prompt (one question) or messages (a conversation): got neither"),
        ({"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}, "got both"),
    ],
)
def test_a_question_is_asked_in_exactly_one_way(given, told):
    with pytest.raises(ValidationError) as refused:
        openai.parameters.model_validate({"api_key": KEY, **given})

    assert told in str(refused.value)


OUT_OF_BOUNDS = [
    ("prompt", ""),
    ("prompt", "x" * 100_001),
    ("system", "x" * 100_001),
    ("messages", []),
    ("messages", [{"role": "user", "content": "x"}] * 101),
    ("messages", [{"role": "user", "content": "x" * 100_001}]),
    ("messages", [{"role": "tool", "content": "x"}]),
    ("messages", [{"role": "user", "content": "x", "name": "y"}]),
    ("model", ""),
    ("model", "x" * 201),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "nan"),
    ("max_tokens", 0),
    ("max_tokens", 1_000_001),
    ("reasoning_effort", "hard"),
    ("api", "completions"),
    ("base_url", "localhost:8000/v1"),
    ("base_url", "http://user:password@localhost/v1"),
    ("base_url", "http://localhost/v1?key=secret"),
    ("timeout", 0),
    ("idle_timeout", "inf"),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_BOUNDS, ids=lambda value: repr(value)[:24])
def test_what_is_out_of_bounds_is_refused(name, value):
    parameters = {"prompt": "hi"} if name != "messages" else {}
    with pytest.raises(ValidationError) as refused:
        openai.parameters.model_validate({"api_key": KEY, **parameters, name: value})

    assert {name} == {error["loc"][0] for error in refused.value.errors()}
    assert "secret" not in str(refused.value)
    assert "password" not in str(refused.value)


@pytest.mark.parametrize("key", ["", f"{KEY}\n", f" {KEY}", "sk-ключ"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key):
    with pytest.raises(ValidationError, match="no spaces, line breaks or letters outside ASCII") as refused:
        openai.parameters.model_validate({"prompt": "hi", "api_key": key})

    assert key.strip() == "" or key.strip() not in str(refused.value)


def test_keys_and_addresses_are_for_the_operator_only():
    assert {"api_key", "base_url", "timeout", "idle_timeout", "extra_body"} == openai.config_only
    assert openai.parameters.model_fields["api_key"].is_required()


def test_it_is_private_and_its_events_have_their_names():
    assert not openai.policy.shared
    assert {"started", "delta", "reasoning", "tool_call", "refusal", "usage", "done"} == set(openai.events.values())


def test_the_sdk_is_not_loaded_before_it_is_needed():
    loaded = "import sys, eventmux_plugins.openai; sys.exit('openai' in sys.modules or 'httpx2' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}

    assert 0 == subprocess.run([sys.executable, "-c", loaded], env=environment, check=False).returncode
