"""A stream read from a raw socket: HTTP/1.1, chunks, SSE or JSON lines. What its events mean is not known here."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NDJSON = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a stream. `event` is None for one that only moves the cursor. `source`: where the format says it."""

    cursor: str | None
    event: str | None
    data: Any
    source: str | None = None


class Reader:
    """Bytes of a response in, blocks out. A block that is not complete is not there, as for an EventSource.

    `is_complete`: the server has ended the response in an orderly way. `is_stream`: its end was not known at its
    beginning; who is turned away gets another answer.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self.status = 0
        self.is_complete = self.is_stream = False
        self._lines = lines
        self._raw = bytearray()
        self._text = bytearray()
        self._left = 0  # bytes of the present chunk, with its line end; 0 where a chunk's size comes next

    def feed(self, data: bytes) -> Iterator[Block]:
        self.take(data)
        mark = b"\n" if self._lines else b"\n\n"
        end = self._text.rfind(mark)
        if end < 0:
            return
        whole = bytes(self._text[:end])
        del self._text[: end + len(mark)]
        for part in whole.split(mark):
            if block := (_line(part) if self._lines else _block(part)):
                yield block

    def take(self, data: bytes) -> None:
        """Bytes in, as text of the body: `body` is all of it that `feed` has not read."""
        self._raw += data
        if not self.status:
            head, found, rest = bytes(self._raw).partition(b"\r\n\r\n")
            if not found:
                return
            self.status = int(head.split(b" ", 2)[1])
            self._raw = bytearray(rest)
            self.is_stream = b"transfer-encoding: chunked" in head.lower()
            self.is_complete = not self.is_stream
        while self._raw and not self.is_complete and self._chunk():
            pass

    @property
    def body(self) -> bytes:
        return bytes(self._text if self.is_stream else self._raw)

    def _chunk(self) -> bool:
        """Take what there is of one chunk; False if more bytes are needed."""
        if not self._left:
            size, found, _ = self._raw.partition(b"\r\n")
            if not found:
                return False
            del self._raw[: len(size) + 2]
            self._left = int(size, 16) + 2
            self.is_complete = self._left == 2
            return not self.is_complete
        part = self._raw[: self._left]
        self._left -= len(part)
        del self._raw[: len(part)]
        # The last two bytes of a chunk are its line end.
        self._text += part[: max(0, len(part) - max(0, 2 - self._left))]
        return True


def _block(text: bytes) -> Block | None:
    cursor = event = None
    data: list[bytes] = []
    for line in text.split(b"\n"):
        name, _, value = line.partition(b": ")
        if name == b"id":
            cursor = value.decode()
        elif name == b"event":
            event = value.decode()
        elif name == b"data":
            data.append(value)
    if cursor is None and event is None:
        return None  # a heartbeat, a retry
    return Block(cursor, event, json.loads(b"\n".join(data)) if data else None)


def _line(text: bytes) -> Block | None:
    if not text:
        return None
    found = json.loads(text)
    return Block(found["id"], found["event"], found["data"], found["source"])


async def connect(port: int, request: bytes, *, receive_buffer: int = 0) -> socket.socket:
    """A connection that has sent `request`. `receive_buffer`: bytes that the kernel keeps for a reader that stalls."""
    connection = socket.socket()
    try:
        connection.setblocking(False)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", port))
        await loop.sock_sendall(connection, request)
    except BaseException:
        connection.close()
        raise
    return connection


async def receive(connection: socket.socket, seconds: float) -> bytes | None:
    """What has come; b"" at the end, also at an RST; None if nothing comes in time.

    Not `loop.sock_recv` under a timeout: what is received in the turn in which the time is over would be lost.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await readable.wait()
        return connection.recv(65_536)
    except TimeoutError:
        return None
    except ConnectionResetError:
        return b""
    finally:
        loop.remove_reader(connection)


def reset(connection: socket.socket) -> None:
    """Close it with an RST, as a client that has crashed or a middlebox does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def request(path: str, body: bytes | None = None, **headers: str) -> bytes:
    """A POST where there is a body."""
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


async def held(port: int, *, trim: bool = False) -> dict[str, Any]:
    """What the service says that it holds: the one event of the source `held`."""
    path = f"/sse/held?trim={str(trim).lower()}"
    connection = await connect(port, request(path, Accept="application/json", Connection="close"))
    reader = Reader()
    with connection:
        async with asyncio.timeout(30):
            while not reader.is_complete and (data := await receive(connection, 30)):
                reader.take(data)
    found: dict[str, Any] = json.loads(reader.body)[0]["data"]
    return found
