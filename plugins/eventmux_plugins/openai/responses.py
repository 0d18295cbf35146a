"""The responses API: a question into a request's body, its events into ours. No connection is made here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eventmux_plugins.openai.events import Delta, Done, Reasoning, Refusal, Started, ToolCall, Usage
from eventmux_plugins.openai.failures import ReportedError, UnfinishedError
from eventmux_plugins.openai.question import Question, without_none
from eventmux_plugins.openai.upstream import Upstream

PATH = "/responses"
REASONS = {"max_output_tokens": "length"}  # the chat API's word for it, so that a client needs to know one only


class _Sent(Upstream):
    type: str | None = None


class _Text(Upstream):
    delta: str | None = None


class _Error(Upstream):
    code: str | None = None
    message: str | None = None


class _Item(Upstream):
    type: str | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    status: str | None = None


class _Output(Upstream):
    item: _Item


class _Details(Upstream):
    reasoning_tokens: int | None = None
    reason: str | None = None


class _Usage(Upstream):
    input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_details: _Details | None = None


class _Response(Upstream):
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None
    error: _Error | None = None
    incomplete_details: _Details | None = None


class _State(Upstream):
    response: _Response


def request(question: Question) -> dict[str, Any]:
    # Merged, because {summary: auto}, by which OpenAI tells its models' reasoning, is the operator's to set.
    reasoning = without_none({"effort": question.reasoning_effort}) | (question.extra_body.get("reasoning") or {})
    body = {
        "model": question.model,
        "input": question.conversation(),
        "instructions": question.system,
        "temperature": question.temperature,
        "max_output_tokens": question.max_tokens,
        "stream": True,
        "store": False,  # this API keeps answers for 30 days unless told not to; the chat API does not
    }
    return without_none(body) | question.extra_body | ({"reasoning": reasoning} if reasoning else {})


class Answer:
    """Events of the service in, ours out. `whole` once it has said that nothing more will come."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._reasoning = ""
        self._called = False
        self._final: _Response | None = None
        self._finish: str | None = None

    @property
    def whole(self) -> bool:
        return self._finish is not None

    def read(self, sent: object) -> Iterator[Started | Delta | Reasoning | Refusal | ToolCall]:
        kind = _Sent.model_validate(sent).type
        match kind:
            case "response.created":
                response = _State.model_validate(sent).response
                yield Started(id=response.id, model=response.model or self._model)
            case "response.output_text.delta":
                yield Delta(text=_Text.model_validate(sent).delta or "")
            case "response.refusal.delta":
                yield Refusal(text=_Text.model_validate(sent).delta or "")
            case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
                self._reasoning = self._reasoning or kind  # one thought told twice is told once
                if kind == self._reasoning:
                    yield Reasoning(text=_Text.model_validate(sent).delta or "")
            case "response.output_item.done":
                yield from self._item(_Output.model_validate(sent).item)
            case "response.completed" | "response.incomplete":
                self._close(_State.model_validate(sent).response, complete=kind == "response.completed")
            case "response.failed":
                error = _State.model_validate(sent).response.error or _Error()
                raise ReportedError(error.code, error.message)
            case "error":
                error = _Error.model_validate(sent)
                raise ReportedError(error.code, error.message)

    def _item(self, item: _Item) -> Iterator[ToolCall]:
        if item.type in {"function_call", "custom_tool_call"} and item.status in {None, "completed"}:
            self._called = True
            yield ToolCall(
                id=item.call_id or item.id, name=item.name or "", arguments=item.arguments or item.input or ""
            )

    def _close(self, response: _Response, *, complete: bool) -> None:
        self._final = response
        if complete:
            self._finish = "tool_calls" if self._called else "stop"
        else:
            reason = (response.incomplete_details or _Details()).reason or "incomplete"
            self._finish = REASONS.get(reason, reason)

    def end(self) -> Iterator[Usage | Done]:
        """What is known at the end only. Raises UnfinishedError if the service never said that it had finished."""
        if self._finish is None or self._final is None:
            raise UnfinishedError
        usage = self._final.usage
        if usage and usage.input_tokens is not None and usage.output_tokens is not None:
            details = usage.output_tokens_details or _Details()
            yield Usage(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                reasoning_tokens=details.reasoning_tokens,
            )
        yield Done(finish_reason=self._finish)
