"""The events of an answer. Which words a service uses for them is not said here."""

from __future__ import annotations

from eventmux import Event


class Started(Event):
    """The service has begun to answer. `id` is the answer's, where the service gives it one."""

    id: str | None
    model: str


class Delta(Event):
    """The next piece of the answer's text."""

    text: str


class Reasoning(Event):
    """The next piece of what the model thinks before it answers, where the service tells."""

    text: str


class ToolCall(Event):
    """A whole call of a tool. `arguments` is JSON as the model wrote it, which need not be valid."""

    id: str | None
    name: str
    arguments: str


class Refusal(Event):
    """The next piece of the model's reason for not answering."""

    text: str


class Usage(Event):
    """What the answer cost, where the service tells. `output_tokens` includes `reasoning_tokens`."""

    input_tokens: int
    output_tokens: int
    reasoning_tokens: int | None


class Done(Event):
    """The answer is whole, or ended for the reason given: `stop`, `tool_calls`, `length`, `content_filter`, ..."""

    finish_reason: str
