"""The chat completions API: a question into a request's body, its chunks into events. No connection is made here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eventmux_plugins.openai.events import Delta, Done, Reasoning, Refusal, Started, ToolCall, Usage
from eventmux_plugins.openai.failures import UnfinishedError
from eventmux_plugins.openai.question import Question, without_none
from eventmux_plugins.openai.upstream import Upstream

PATH = "/chat/completions"
CUT_SHORT = {"length", "content_filter"}


class _Function(Upstream):
    name: str | None = None
    arguments: str | None = None


class _ToolPart(Upstream):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(Upstream):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: object = None
    reasoning: object = None
    tool_calls: list[_ToolPart] | None = None

    def thought(self) -> str:
        # DeepSeek and older vLLM say reasoning_content; newer vLLM, Ollama and OpenRouter say reasoning; some say both.
        return next((text for text in (self.reasoning_content, self.reasoning) if isinstance(text, str) and text), "")


class _Choice(Upstream):
    index: int | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(Upstream):
    reasoning_tokens: int | None = None


class _Usage(Upstream):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _Details | None = None


class _Chunk(Upstream):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None


def request(question: Question) -> dict[str, Any]:
    system = [{"role": "system", "content": question.system}] if question.system else []
    # OpenAI's newer models refuse max_tokens, and many other services do not know its successor.
    limit = "max_tokens" if question.compatible else "max_completion_tokens"
    body = {
        "model": question.model,
        "messages": system + question.conversation(),
        "temperature": question.temperature,
        "reasoning_effort": question.reasoning_effort,
        limit: question.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return without_none(body) | question.extra_body


@dataclass(slots=True)
class _Call:
    """A tool call as far as it has come: its id and name are sent once, its arguments in parts."""

    index: int | None
    id: str | None
    name: str = ""
    arguments: str = ""


class Answer:
    """Chunks in, events out. `whole` once the model has finished; the usage may still follow."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._started = False
        self._calls: list[_Call] = []
        self._usage: _Usage | None = None
        self._finish: str | None = None

    @property
    def whole(self) -> bool:
        return self._finish is not None

    def read(self, sent: object) -> Iterator[Started | Delta | Reasoning | Refusal]:
        chunk = _Chunk.model_validate(sent)
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices or ():
            if choice.index:  # one of several answers, asked for by extra_body: the first is ours
                continue
            if not self._started:
                self._started = True
                yield Started(id=chunk.id or None, model=chunk.model or self._model)
            yield from self._read(choice.delta or _Delta())
            self._finish = choice.finish_reason or self._finish

    def _read(self, delta: _Delta) -> Iterator[Delta | Reasoning | Refusal]:
        if thought := delta.thought():
            yield Reasoning(text=thought)
        if delta.content:
            yield Delta(text=delta.content)
        if delta.refusal:
            yield Refusal(text=delta.refusal)
        for part in delta.tool_calls or ():
            self._collect(part)

    def _collect(self, part: _ToolPart) -> None:
        function = part.function or _Function()
        for call in reversed(self._calls):
            # Its index says which call a part continues; but some services send whole calls under one index.
            if call.index == part.index and part.id in (None, "", call.id):
                break
        else:
            call = _Call(index=part.index, id=part.id or None)
            self._calls.append(call)
        call.name = call.name or function.name or ""
        call.arguments += function.arguments or ""

    def end(self) -> Iterator[ToolCall | Usage | Done]:
        """What is known at the end only. Raises UnfinishedError if the model never said that it had finished."""
        if self._finish is None:
            raise UnfinishedError
        for call in self._calls if self._finish not in CUT_SHORT else ():  # half a call is not to be made
            yield ToolCall(id=call.id, name=call.name, arguments=call.arguments)
        usage = self._usage
        if usage and usage.prompt_tokens is not None and usage.completion_tokens is not None:
            details = usage.completion_tokens_details or _Details()
            yield Usage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                reasoning_tokens=details.reasoning_tokens,
            )
        yield Done(finish_reason=self._finish)
