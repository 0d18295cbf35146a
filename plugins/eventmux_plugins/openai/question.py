"""A question as the client asked it. How a service wants to be asked is not said here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1, max_length=100_000)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Message(BaseModel):
    """One turn of the conversation so far."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`compatible`: asked of another service than OpenAI's own."""

    model: str
    messages: tuple[Message, ...]
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    reasoning_effort: Effort | None = None
    compatible: bool = False
    extra_body: dict[str, Any] = field(default_factory=dict)

    def conversation(self) -> list[dict[str, str]]:
        return [message.model_dump() for message in self.messages]


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
