"""RESP2, read in whole pieces of what has come: a burst of events is one call, where redis-py awaits every line."""

from __future__ import annotations

import asyncio
from typing import Any

from redis._parsers.base import AsyncBaseParser  # what `parser_class` of a connection must be
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

PIECE = 256 * 1024
STATUS, ERROR, NUMBER, BULK, LIST = b"+-:$*"
CLOSED = "the connection was closed by the server"


class Parser(AsyncBaseParser):
    """Of one connection. An answer is a bytes, int, list, None or a ResponseError."""

    def __init__(self, socket_read_size: int) -> None:
        super().__init__(socket_read_size)
        self._begin(None)

    def _begin(self, stream: asyncio.StreamReader | None) -> None:
        self._stream = stream
        self._buffer = b""
        self._at = 0
        self._answer: Any = None
        self._open: list[tuple[list[Any], int]] = []  # lists of which something is still to come, and how long they get

    def on_connect(self, connection: Any) -> None:
        self._begin(connection._reader)  # noqa: SLF001 - as all its parsers do

    def on_disconnect(self) -> None:
        self._begin(None)

    async def can_read(self) -> bool:
        """Something has come that was not asked for, or the end has."""
        stream = self._stream
        if stream is None or self._at < len(self._buffer) or stream.at_eof() or stream.exception():
            return True
        return bool(stream._buffer)  # type: ignore[attr-defined] # noqa: SLF001 - as redis-py's

    async def can_read_destructive(self) -> bool:
        return await self.can_read()

    async def read_response(self, disable_decoding: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002
        return (await self.read(1))[0]

    async def read(self, count: int) -> list[Any]:
        """So many answers."""
        answers = []
        for _ in range(count):
            while (missing := self._parse()) > 0:
                await self._more(missing)
            answer, self._answer = self._answer, None
            if isinstance(answer, RedisConnectionError):
                raise answer
            answers.append(answer)
        return answers

    async def _more(self, missing: int) -> None:
        pieces = [self._buffer[self._at :]]
        while missing > 0:
            piece = await self._stream.read(PIECE) if self._stream else b""
            if not piece:
                raise RedisConnectionError(CLOSED)
            pieces.append(piece)
            missing -= len(piece)
        self._buffer, self._at = b"".join(pieces), 0

    def _parse(self) -> int:  # noqa: C901 - in one piece: a call for each word would be half of its cost
        """So many bytes are missing at least; 0, if an answer is whole."""
        buffer, at, unfinished = self._buffer, self._at, self._open
        size = len(buffer)
        while True:
            end = buffer.find(b"\r\n", at)
            if end < 0:
                self._at = at
                return 1
            kind = buffer[at]
            value: Any = None
            if kind == BULK:
                start = end + 2
                length = int(buffer[at + 1 : end])
                if length >= 0:
                    end = start + length
                    if end + 2 > size:
                        self._at = at
                        return end + 2 - size
                    value = buffer[start:end]
            elif kind == LIST:
                length = int(buffer[at + 1 : end])
                if length > 0:
                    unfinished.append(([], length))
                    at = end + 2
                    continue
                value = [] if length == 0 else None
            elif kind == NUMBER:
                value = int(buffer[at + 1 : end])
            else:
                value = self._line(kind, buffer[at + 1 : end])
            at = end + 2
            while unfinished:
                items, length = unfinished[-1]
                items.append(value)
                if len(items) < length:
                    break
                value = items
                unfinished.pop()
            else:
                self._at, self._answer = at, value
                return 0

    def _line(self, kind: int, line: bytes) -> Any:
        if kind == STATUS:
            return line
        if kind == ERROR:
            return self.parse_error(line.decode(errors="replace"))  # type: ignore[no-untyped-call]
        raise InvalidResponse(f"not an answer of Redis: {chr(kind)!r}")
