"""An event stream read by the letter of WHATWG HTML 9.2.6, as EventSource reads it. Shares no code with the service."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Message:
    """A dispatched event."""

    event: str
    data: str
    id: str


@dataclass
class Parser:
    """`feed` takes bytes as they come, cut anywhere, and gives the events dispatched by them."""

    last_event_id: str = ""
    retry: int | None = None
    comments: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._is_first = True
        self._data: list[str] = []
        self._event = ""
        self._id = self.last_event_id  # what a reconnect begins with

    def feed(self, chunk: bytes) -> list[Message]:
        self._text += self._decoder.decode(chunk)
        if self._is_first and self._text:
            self._text = self._text.removeprefix("\ufeff")
            self._is_first = False
        messages = []
        while (line := self._next_line()) is not None:
            if message := self._line(line):
                messages.append(message)
        return messages

    def _next_line(self) -> str | None:
        for index, letter in enumerate(self._text):
            if letter == "\n":
                line, self._text = self._text[:index], self._text[index + 1 :]
                return line
            if letter == "\r":
                if index + 1 == len(self._text):
                    return None  # a line feed may follow, and belongs to it
                end = index + 2 if self._text[index + 1] == "\n" else index + 1
                line, self._text = self._text[:index], self._text[end:]
                return line
        return None

    def _line(self, line: str) -> Message | None:
        if line == "":
            return self._dispatch()
        if line.startswith(":"):
            self.comments.append(line[1:])
            return None
        name, colon, value = line.partition(":")
        if colon and value.startswith(" "):
            value = value[1:]
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)
        return None

    def _dispatch(self) -> Message | None:
        self.last_event_id = self._id
        data, event = self._data, self._event
        self._data, self._event = [], ""
        if not data:
            return None
        return Message(event or "message", "\n".join(data), self.last_event_id)


def parse(text: bytes) -> list[Message]:
    return Parser().feed(text)
